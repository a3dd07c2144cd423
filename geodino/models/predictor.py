"""A loaded model: chips in, height and spread in metres or trees out, on whatever device and batch fit."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import PreTrainedModel

from geodino.errors import ModelError
from geodino.models.canopy import canopy_forward
from geodino.models.catalog import Licence, ModelRow
from geodino.models.network import HeadedNetwork, as_maps
from geodino.models.passes import BYTES_A_PIXEL, at_once, passes
from geodino.models.precision import Precision, autocast, normalise, prepare
from geodino.models.pyramid import CELL
from geodino.models.tta import averaged, fewer_views, views, views_of
from geodino.stitch import Layer
from geodino.windows import PATCH, SIDE_MULTIPLE, Tiling

logger = logging.getLogger(__name__)

# Below about a thousand tokens a call the matrix products of a CPU are 10 to 15 % slower.
_CPU_TOKENS = 1000

_GPU_MOST = 32


# What the heads say of a window, on maps that can be stitched.
LAYERS: Mapping[str, Layer] = {
    "canopy": Layer(("height", "spread")),
    "trees": Layer(("heat", "density", "right", "down"), CELL),
}


class Model:
    """A model, ready to predict.

    Attributes
    ----------
    tasks
        What it has heads for: canopy, trees, segment, classify.
    row
        Its facts: licence, GSD, citation.
    precision
        Of the backbone's matrix products; everything else, the head included, is float32.
    weights_sha256
        Of the weights file; of the list of hashes where there are several.
    tta
        How many views of each window are averaged; of heads that learned from upright pictures fewer.
    """

    outputs: tuple[str, ...] = ("height", "spread")

    def __init__(
        self,
        network: PreTrainedModel,
        row: ModelRow,
        *,
        weights_sha256: str,
        precision: Precision,
        device: torch.device,
        batch_size: int | None = None,
        tta: int = 1,
    ) -> None:
        if batch_size is not None and batch_size < 1:
            raise ModelError(f"batch size {batch_size} must be at least 1")
        self.tta = len(views(tta))
        self.row = row if row.parameters else replace(row, parameters=network.num_parameters())
        self.weights_sha256 = weights_sha256
        self.device = device
        self.precision = precision
        self._batch_size = batch_size
        self._network = prepare(network, self.precision, self.device)
        self.tasks: tuple[str, ...] = ("canopy",)
        if isinstance(network, HeadedNetwork):
            self.tasks = tuple(network.config.heads)
            network.to(memory_format=torch.channels_last)
        else:
            self._network.head.to(memory_format=torch.channels_last)
        for task, number in fewer_views(self.heads, tta).items():
            logger.warning(
                "%s learned %s from upright pictures: of %d views %d can be asked of it", self.name, task, tta, number
            )

    @property
    def name(self) -> str:
        return self.row.name

    @property
    def tiling(self) -> Tiling:
        return self.row.tiling

    @property
    def mean(self) -> tuple[float, float, float]:
        return self.row.mean

    @property
    def std(self) -> tuple[float, float, float]:
        return self.row.std

    @property
    def licence(self) -> Licence:
        return self.row.licence

    @property
    def heads(self) -> dict[str, dict[str, Any]]:
        """What config.json says of each head: `kind`; `threshold`, `spacing`, `classes`, `upright`, `mirrored`."""
        return self._network.config.heads if isinstance(self._network, HeadedNetwork) else {}

    def batch_size(self, side: int) -> int:
        """How many windows of that side, pixels, are predicted at once; falls when memory runs out."""
        return self._batch_size or default_batch_size(side, self.device)

    def at_once(self, side: int) -> int:
        """How many batches of windows of that side, pixels, are best predicted side by side, see `passes`."""
        return at_once(self.device, self.batch_size(side) * side * side)

    def passes(self, side: int) -> AbstractContextManager[ThreadPoolExecutor]:
        """Threads in which so many batches are predicted side by side."""
        return passes(self.device, self.at_once(side))

    def predict(self, images: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Height and spread of each pixel.

        Parameters
        ----------
        images
            (B, 3, S, S) red, green, blue in 0..1, before mean and std; S a multiple of 32. Any B: it is cut into
            batches that fit.

        Returns
        -------
        ndarray
            (B, 2, S, S) float32, metres, in the order of `outputs`. Pixels without imagery are predicted too, and
            the model makes forest of them: mask them from the imagery's validity.

        Raises
        ------
        ModelError
            If a single window does not fit in memory, or the model gives NaN or infinite heights.
        """
        if not len(images):
            return np.empty((0, len(self.outputs), *images.shape[2:]), np.float32)
        return self.maps(images, ("canopy",))["canopy"]

    def asked(self, tasks: Sequence[str]) -> Asked:
        """The model as a run sees it: chips in, the layers of these tasks out, in one pass.

        Raises
        ------
        ModelError
            If it has no head for one of them, or one that gives no map.
        """
        for task in tasks:
            if task not in self.tasks or task not in LAYERS:
                raise ModelError(f"{self.name} makes no map of {task}: it has heads for {', '.join(self.tasks)}")
        return Asked(self, tuple(tasks))

    def maps(
        self, images: npt.NDArray[np.float32], tasks: Sequence[str] | None = None
    ) -> dict[str, npt.NDArray[np.float32]]:
        """What several heads say, in one pass; arguments and errors as for `predict`.

        Parameters
        ----------
        tasks
            Of `tasks`; all of them if None.

        Returns
        -------
        dict
            canopy
                (B, 2, S, S), height and spread, metres.
            trees
                (B, 4, S / 2, S / 2): heat in 0..1, trees a cell, and the tree's place right and down from the cell's
                centre, cells.
            segment
                (B, classes, S, S), probabilities.
            classify
                (B, classes), probabilities.
        """
        if (
            images.ndim != 4
            or images.shape[1] != 3
            or images.shape[2] % SIDE_MULTIPLE
            or images.shape[3] % SIDE_MULTIPLE
        ):
            raise ModelError(
                f"images of shape {images.shape} must be (B, 3, S, S) with S a multiple of {SIDE_MULTIPLE}"
            )
        asked = self.tasks if tasks is None else tuple(tasks)
        unknown = [task for task in asked if task not in self.tasks]
        if unknown:
            raise ModelError(f"{self.name} has no head for {', '.join(unknown)}: it has {', '.join(self.tasks)}")
        return averaged(self._maps, images, {task: views_of(self.heads.get(task, {}), self.tta) for task in asked})

    def _maps(self, images: npt.NDArray[np.float32], asked: Sequence[str]) -> dict[str, npt.NDArray[np.float32]]:
        side = images.shape[-1]
        found: dict[str, list[npt.NDArray[np.float32]]] = {task: [] for task in asked}
        start = 0
        while start < len(images):
            batch = images[start : start + self.batch_size(side)]
            try:
                parts = self._maps_of_batch(batch, asked)
            except RuntimeError as error:
                if not _is_out_of_memory(error):
                    raise
                self._halve_batch(len(batch), side, error)
                continue
            for task, values in parts.items():
                if not np.isfinite(values).all():
                    raise ModelError(
                        f"{self.name} gave NaN or infinite {task} values on {self.device} in {self.precision}: "
                        "check its weights, or try --precision fp32"
                    )
                found[task].append(values)
            start += len(batch)
        return {task: values[0] if len(values) == 1 else np.concatenate(values) for task, values in found.items()}

    def _maps_of_batch(
        self, batch: npt.NDArray[np.float32], tasks: Sequence[str]
    ) -> dict[str, npt.NDArray[np.float32]]:
        with torch.inference_mode(), autocast(self.device, self.precision):
            pixels = normalise(torch.from_numpy(batch).to(self.device), self.row)
            if isinstance(self._network, HeadedNetwork):
                found = as_maps(self._network(pixels, tasks), tuple(batch.shape[2:]))
            else:
                found = {"canopy": torch.stack(canopy_forward(self._network, pixels), dim=1)}
        return {task: values.float().cpu().numpy() for task, values in found.items()}

    def _halve_batch(self, tried: int, side: int, error: RuntimeError) -> None:
        if tried == 1:
            raise ModelError(
                f"one window of {side} px does not fit in the memory of {self.device}: "
                "free some, or use a smaller window or another --device"
            ) from error
        self._batch_size = tried // 2
        logger.warning(
            "%s ran out of memory with %d windows of %d px: going on with %d at a time",
            self.device,
            tried,
            side,
            self._batch_size,
        )
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


@dataclass(frozen=True, eq=False)
class Asked:
    """A model and what is asked of it; a `stream.Predictor`."""

    model: Model
    tasks: tuple[str, ...]

    @property
    def layers(self) -> tuple[Layer, ...]:
        return tuple(LAYERS[task] for task in self.tasks)

    def __call__(self, images: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.float32], ...]:
        """(B, 3, S, S) in 0..1 to (B, K, S / px, S / px) for each layer; errors as for `Model.predict`."""
        maps = self.model.maps(images, self.tasks)
        return tuple(maps[task] for task in self.tasks)


def default_batch_size(side: int, device: torch.device) -> int:
    """How many windows of that side, pixels, are a good batch on the device."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return max(1, min(_GPU_MOST, free // 2 // (BYTES_A_PIXEL * side * side)))
    tokens = (side // PATCH) ** 2
    return -(-_CPU_TOKENS // tokens)


def _is_out_of_memory(error: RuntimeError) -> bool:
    # A CPU allocation fails as a plain RuntimeError "... DefaultCPUAllocator: can't allocate memory ..."
    # (c10/core/impl/alloc_cpu.cpp), Apple's as "MPS backend out of memory".
    text = str(error)
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in text or "out of memory" in text
