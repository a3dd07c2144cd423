"""A training chip as it might have been seen otherwise: turned, mirrored, shifted, scaled, recoloured.

What is drawn (`Look`) is apart from doing it, so that the same look can be given to an image, to a raster of labels and
to points, and can be drawn again from its seed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.functional import avg_pool2d, grid_sample

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Variety:
    """How far looks may differ from the chip.

    Attributes
    ----------
    free
        Share of the looks at any angle and scale; the others keep their pixels: quarter turns and mirrors (D4).
    zoom
        Largest change of scale, as a logarithm.
    shift
        Largest shift, as a share of the crop's side.
    colour
        Largest share by which colours move towards another camera's, season's and haze's; 0: not at all.
    upright
        Looks keep north up, but for a few degrees of those that are free, and are not mirrored. Shadows fall, and a
        photo's trees lean, to one side, which says something of heights that no turned look can.
    mirrored
        Of upright looks half are mirrored, east to west: for labels of many days and photos, whose shadows fall to
        either side of north. Looks that are not upright are mirrored anyway.
    """

    free: float = 0.6
    zoom: float = 0.25
    shift: float = 0.2
    colour: float = 0.7
    upright: bool = False
    mirrored: bool = False


# Radians.
_NEARLY_UPRIGHT = 0.2


@dataclass(frozen=True)
class Look:
    """Where the pixels of a crop lie in its chip: `chip = matrix @ (crop - size / 2) + centre`, x right, y down."""

    matrix: npt.NDArray[np.float64]
    centre: npt.NDArray[np.float64]
    size: int

    def grid(self, chip_size: int) -> torch.Tensor:
        """Where the crop's pixel centres lie, as grid_sample wants it: (1, S, S, 2), -1..1 over the chip."""
        step = np.arange(self.size) + 0.5 - self.size / 2
        x, y = np.meshgrid(step, step)
        places = np.stack([x, y], axis=-1) @ self.matrix.T + self.centre
        return torch.from_numpy((2 * places / chip_size - 1).astype(np.float32))[None]

    def points(self, points: Floats) -> Floats:
        """Points (M, 2) of the chip in the crop; those outside it too."""
        return ((points - self.centre) @ np.linalg.inv(self.matrix).T + self.size / 2).astype(np.float32)

    @property
    def scale(self) -> float:
        """Chip pixels a crop pixel."""
        return math.sqrt(abs(float(np.linalg.det(self.matrix))))


def plain_look(chip_size: int, size: int) -> Look:
    """The middle of a chip, its pixels untouched."""
    return Look(np.eye(2), np.full(2, _aligned(chip_size / 2, size)), size)


def draw_look(rng: np.random.Generator, variety: Variety, chip_size: int, size: int) -> Look:
    """A random look at a chip; a crop reaches beyond its chip by at most half of the largest shift."""
    free = rng.random() < variety.free
    if variety.upright:
        angle = rng.uniform(-_NEARLY_UPRIGHT, _NEARLY_UPRIGHT) if free else 0.0
    else:
        angle = rng.uniform(0, 2 * math.pi) if free else math.pi / 2 * int(rng.integers(4))
    scale = math.exp(rng.uniform(-variety.zoom, variety.zoom)) if free else 1.0
    mirror = -1.0 if (variety.mirrored or not variety.upright) and rng.random() < 0.5 else 1.0
    cos, sin = math.cos(angle), math.sin(angle)
    matrix = scale * np.array([[cos * mirror, -sin], [sin * mirror, cos]])
    spare = max((chip_size - size) / 2, 0.0) + variety.shift * size
    centre = chip_size / 2 + rng.uniform(-spare, spare, 2)
    if not free:
        matrix = np.round(matrix)
        centre = np.array([_aligned(float(value), size) for value in centre])
    return Look(matrix, centre, size)


def see(image: torch.Tensor, look: Look) -> torch.Tensor:
    """An image (3, H, W) through a look: (3, S, S), reflected where the crop reaches beyond the chip."""
    grid = look.grid(image.shape[-1])
    seen = grid_sample(image[None], grid, mode="bilinear", padding_mode="reflection", align_corners=False)[0]
    return seen.clamp(0, 1)


def see_labels(labels: torch.Tensor, look: Look) -> torch.Tensor:
    """Layers of labels (K, H, W) through a look, each pixel that of its nearest; 0 beyond the chip."""
    grid = look.grid(labels.shape[-1])
    return grid_sample(labels[None], grid, mode="nearest", padding_mode="zeros", align_corners=False)[0]


def recolour(image: torch.Tensor, rng: np.random.Generator, most: float) -> torch.Tensor:
    """A chip (3, S, S) in 0..1 as another camera, season and haze might have shown it.

    Every chip is changed by its own share of what was drawn, so that some keep nearly the colours they have.
    """
    if most <= 0:
        return image
    strength = float(rng.uniform(0, most))
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


def _aligned(centre: float, size: int) -> float:
    """The nearest centre at which a crop's pixels are the chip's."""
    return math.floor(centre - size / 2 + 0.5) + size / 2
