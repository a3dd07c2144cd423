"""Scenes of RGB with canopy height, and the chips that a training step draws from them.

The folder is the one described in its own README: `scenes.csv`, `scenes/NAME_rgb.tif`, `scenes/NAME_chm.tif`,
`plots.csv`, `plots/ID_rgb.tif`, `plots/ID_chm.tif`; 0.6 m pixels, heights in metres, -9999 where there is none.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import rasterio
import torch
from torch.nn.functional import avg_pool2d, grid_sample

from geodino.errors import InputError

# Share of the chips drawn from each training scene. The farm is there for fields without trees, the plots for forest
# of other places; both are too small to carry more. Scenes under the GPL stand in no list.
SHARES: Mapping[str, float] = {
    "autzen_north": 0.44,
    "autzen_southeast": 0.40,
    "ign_farm": 0.06,
    "ign_garden": 0.02,
    "plots": 0.08,
}
PLOTS = "plots"
PLOT_PX = 33
MOSAIC_PLOTS = 10

# The eastern fifth of this scene chooses the weights; a strip beside it is left unused, so that no ground is shared.
HELD_OUT_SCENE = "autzen_north"
HELD_OUT_PX = 336
GAP_PX = 64

# Metres. Half of the chips are centred on a tree whose class was drawn first, so that tall trees are not rare.
HEIGHT_CLASSES = (2.0, 5.0, 10.0, 20.0, 30.0, math.inf)


@dataclass(frozen=True)
class CanopyScene:
    """One picture with its heights.

    Attributes
    ----------
    name
        Name in `scenes.csv`.
    image
        uint8 (3, H, W), red green blue.
    height
        float32 (H, W), metres above ground; NaN is nodata.
    """

    name: str
    image: npt.NDArray[np.uint8]
    height: npt.NDArray[np.float32]

    def columns(self, start: int, stop: int) -> CanopyScene:
        """The scene between two pixel columns."""
        return CanopyScene(self.name, self.image[:, :, start:stop], self.height[:, start:stop])


def read_scene(folder: Path, name: str) -> CanopyScene:
    """Return one scene of `folder/scenes`."""
    image, height = _read_pair(folder / "scenes", name)
    return CanopyScene(name, image, height)


def training_scenes(folder: Path, *, seed: int) -> tuple[list[CanopyScene], CanopyScene]:
    """Return the scenes to train on and the held-out block that chooses the weights.

    Raises
    ------
    InputError
        A scene of `SHARES` is not listed as training data, or its licence forbids weights under CC BY 4.0.
    """
    _check_licences(folder)
    scenes = []
    held_out = None
    for name in SHARES:
        scene = plot_mosaic(folder, seed=seed) if name == PLOTS else read_scene(folder, name)
        if name == HELD_OUT_SCENE:
            width = scene.height.shape[1]
            held_out = scene.columns(width - HELD_OUT_PX, width)
            scene = scene.columns(0, width - HELD_OUT_PX - GAP_PX)
        scenes.append(scene)
    assert held_out is not None
    return scenes, held_out


def plot_mosaic(folder: Path, *, seed: int) -> CanopyScene:
    """Return the training plots laid side by side, each turned at random, as one scene of 330 x 330 px.

    A plot is 33 px wide, a tenth of a chip; alone it would be mostly empty. The seams are no real edges of forest, and
    the heights beside them are still right.
    """
    with (folder / "plots.csv").open(newline="") as lines:
        names = [row["plot"] for row in csv.DictReader(lines) if row["split"] == "train"]
    rng = np.random.default_rng(seed)
    side = MOSAIC_PLOTS * PLOT_PX
    image = np.zeros((3, side, side), np.uint8)
    height = np.full((side, side), np.nan, np.float32)
    for k in range(MOSAIC_PLOTS**2):
        rgb, chm = _read_pair(folder / "plots", names[k % len(names)])
        turn, flip = int(rng.integers(4)), bool(rng.integers(2))
        rows = slice(k // MOSAIC_PLOTS * PLOT_PX, (k // MOSAIC_PLOTS + 1) * PLOT_PX)
        cols = slice(k % MOSAIC_PLOTS * PLOT_PX, (k % MOSAIC_PLOTS + 1) * PLOT_PX)
        image[:, rows, cols] = _turned(rgb[:, :PLOT_PX, :PLOT_PX], turn, flip)
        height[rows, cols] = _turned(chm[:PLOT_PX, :PLOT_PX], turn, flip)
    return CanopyScene(PLOTS, image, height)


@dataclass(frozen=True)
class Chips:
    """A batch of training chips.

    Attributes
    ----------
    images
        float32 (B, 3, S, S) in 0..1, before mean and std; 0 outside the scene.
    heights
        float32 (B, S, S), metres; 0 where not valid.
    valid
        bool (B, S, S): a height is known.
    """

    images: torch.Tensor
    heights: torch.Tensor
    valid: torch.Tensor


class ChipSampler:
    """Draws batches of chips at random places, turned, scaled and recoloured.

    The batch of a step depends on the seed and the step alone, so a training that was cut goes on with the same chips.
    """

    def __init__(self, scenes: Sequence[CanopyScene], *, size: int, batch_size: int, seed: int) -> None:
        self._size, self._batch_size, self._seed = size, batch_size, seed
        self._layers = [_layers(scene) for scene in scenes]
        self._trees = [_tree_pixels(scene.height) for scene in scenes]
        shares = np.array([SHARES[scene.name] for scene in scenes])
        self._shares = shares / shares.sum()

    def batch(self, step: int) -> Chips:
        """Return the chips of one step."""
        rng = np.random.default_rng((self._seed, step))
        drawn = [self._chip(rng) for _ in range(self._batch_size)]
        images, heights, valid = zip(*drawn, strict=True)
        return Chips(torch.stack(images), torch.stack(heights), torch.stack(valid))

    def _chip(self, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        which = int(rng.choice(len(self._layers), p=self._shares))
        image, labels = self._layers[which]
        rows, cols = labels.shape[1:]
        row, col = rng.uniform(0, rows), rng.uniform(0, cols)
        if rng.random() < 0.5 and self._trees[which]:
            pixels = self._trees[which][rng.integers(len(self._trees[which]))]
            row, col = divmod(int(pixels[rng.integers(len(pixels))]), cols)
            row, col = row + rng.uniform(-0.3, 0.3) * self._size, col + rng.uniform(-0.3, 0.3) * self._size
        centre = _kept_inside(row, rows, self._size), _kept_inside(col, cols, self._size)
        places = _places(rng, centre, (rows, cols), self._size)
        colours = grid_sample(image[None], places, mode="bilinear", align_corners=False)[0]
        height, known, inside = grid_sample(labels[None], places, mode="nearest", align_corners=False)[0]
        return recoloured(colours, rng) * inside, height, known > 0.5


def recoloured(image: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Return a chip as another camera, season and haze might have shown it: (3, S, S) in 0..1 in and out.

    The training scenes have three or four colour renderings in all; NAIP of other places looks different. Every chip
    is changed by its own share, so that some keep nearly the colours they have.
    """
    strength = float(rng.uniform(0, 0.7))
    plain = image
    gain = torch.tensor(np.exp(rng.normal(0, 0.12, (3, 1, 1))), dtype=torch.float32)
    image = (image * gain).clamp(1e-4, 1) ** float(np.exp(rng.uniform(-0.35, 0.35)))
    grey = image.mean(0, keepdim=True)
    image = grey + (image - grey) * rng.uniform(0.5, 1.4)
    middle = image.mean()
    image = middle + (image - middle) * rng.uniform(0.65, 1.35) + rng.uniform(-0.12, 0.12)
    # Towards a 3 x 3 mean is softer, away from it is sharper.
    image = torch.lerp(image, avg_pool2d(image[None], 3, 1, 1, count_include_pad=False)[0], rng.uniform(-0.4, 0.8))
    noise = rng.standard_normal(image.shape, dtype=np.float32) * np.float32(rng.uniform(0, 0.03))
    return torch.lerp(plain, (image + torch.from_numpy(noise)).clamp(0, 1), strength)


def _places(rng: np.random.Generator, centre: tuple[float, float], shape: tuple[int, int], size: int) -> torch.Tensor:
    # Where a chip's pixels lie in the scene, as grid_sample wants it: (1, S, S, 2), x then y, -1..1 over the scene.
    # Half of the chips keep the pixels as they are (quarter turns, no scaling), so that sharpness is seen as it is.
    row, col = math.floor(centre[0]) + 0.5, math.floor(centre[1]) + 0.5
    free = rng.random() < 0.5
    angle = rng.uniform(0, 2 * math.pi) if free else math.pi / 2 * int(rng.integers(4))
    scale = math.exp(rng.uniform(-0.15, 0.15)) if free else 1.0
    mirror = -1 if rng.random() < 0.5 else 1
    step = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
    down, right = torch.meshgrid(step * scale, step * scale * mirror, indexing="ij")
    x = col + right * math.cos(angle) - down * math.sin(angle)
    y = row + right * math.sin(angle) + down * math.cos(angle)
    grid = torch.stack([(2 * x + 1) / shape[1] - 1, (2 * y + 1) / shape[0] - 1], -1)
    return grid.float()[None]


def _kept_inside(centre: float, length: int, size: int) -> float:
    # A chip sticks out of its scene by a fifth at most, so that edges are met, but little work goes into nothing.
    reach = 0.3 * size
    return min(max(centre, reach), length - reach) if length > 2 * reach else length / 2


def _layers(scene: CanopyScene) -> tuple[torch.Tensor, torch.Tensor]:
    known = np.isfinite(scene.height)
    labels = np.stack([np.where(known, scene.height, 0), known, np.ones_like(known)]).astype(np.float32)
    return torch.from_numpy(scene.image.astype(np.float32) / 255), torch.from_numpy(labels)


def _tree_pixels(height: npt.NDArray[np.float32]) -> list[npt.NDArray[np.int64]]:
    flat = np.nan_to_num(height).ravel()
    classes = [np.flatnonzero((flat >= low) & (flat < high)) for low, high in pairwise(HEIGHT_CLASSES)]
    return [pixels for pixels in classes if len(pixels)]


def _check_licences(folder: Path) -> None:
    with (folder / "scenes.csv").open(newline="") as lines:
        rows = {row["scene"]: row for row in csv.DictReader(lines)}
    for name in SHARES:
        if name == PLOTS:
            continue
        if name not in rows or rows[name]["split"] != "train":
            raise InputError(f"scene {name!r} must be in {folder / 'scenes.csv'} with split 'train'")
        if "GPL" in rows[name]["licence"]:
            raise InputError(f"scene {name!r} is under {rows[name]['licence']}: leave it out of the training")


def _read_pair(folder: Path, name: str) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]:
    with rasterio.open(folder / f"{name}_rgb.tif") as source:
        image = source.read()
    with rasterio.open(folder / f"{name}_chm.tif") as source:
        height = source.read(1, masked=True).filled(np.nan)
    if image.shape[1:] != height.shape or image.shape[0] != 3 or image.dtype != np.uint8:
        raise InputError(f"{folder / name}: image {image.dtype} {image.shape} must be uint8 (3, {height.shape})")
    return image, height.astype(np.float32)


def _turned(array: npt.NDArray[np.generic], turn: int, flip: bool) -> npt.NDArray[np.generic]:
    turned = np.rot90(array, turn, axes=(-2, -1))
    return turned[..., ::-1] if flip else turned
