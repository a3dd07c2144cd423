"""A DINOv3 backbone with heads of geodino's own: one pass, any of canopy, trees, segment and classify.

    image -> backbone -> taps ─┬─> linear heads
      └──────────> pyramid ────┴─> levels -> pyramid heads

Saved and loaded as any model of transformers: config.json and model.safetensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import AutoConfig, DINOv3ViTConfig, DINOv3ViTModel, PreTrainedConfig, PreTrainedModel

from geodino.errors import ModelError
from geodino.models.dinov3 import Tap, vit_taps
from geodino.models.heads import KINDS, ON_PYRAMID, ClassHead, DPTHead, HeightHead, HeightMaps, TreeHead, TreeMaps
from geodino.models.pyramid import Pyramid, PyramidConfig

MODEL_TYPE = "geodino"

Outputs = dict[str, Any]


class HeadedConfig(PreTrainedConfig):  # type: ignore[misc]
    """What a headed network is made of.

    Attributes
    ----------
    backbone_config
        Of the DINOv3 ViT.
    taps
        After how many blocks the pyramid and the heads look at the tokens, rising.
    pyramid
        `widths`, `middle`, `width` and `blocks` of a `PyramidConfig`; None: no pyramid.
    heads
        Task -> `kind` and what it needs: `bins` and `highest_m` for canopy; `classes`, their names, for the others.
    """

    model_type = MODEL_TYPE

    def __init__(
        self,
        backbone_config: DINOv3ViTConfig | dict[str, Any] | None = None,
        taps: Sequence[int] = (),
        pyramid: dict[str, Any] | None = None,
        heads: dict[str, dict[str, Any]] | None = None,
        **rest: Any,
    ) -> None:
        given = DINOv3ViTConfig(**backbone_config) if isinstance(backbone_config, dict) else backbone_config
        self.backbone_config: DINOv3ViTConfig = given or DINOv3ViTConfig()
        self.taps = list(taps) or [int(self.backbone_config.num_hidden_layers)]
        self.pyramid = pyramid
        self.heads = heads or {}
        super().__init__(**rest)

    @property
    def patch_size(self) -> int:
        return int(self.backbone_config.patch_size)

    def pyramid_config(self) -> PyramidConfig | None:
        if self.pyramid is None:
            return None
        made: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in self.pyramid.items()}
        return PyramidConfig(self.backbone_config.hidden_size, len(self.taps), **made)


class HeadedNetwork(PreTrainedModel):  # type: ignore[misc]
    """Normalised images to what each head says."""

    config_class = HeadedConfig
    base_model_prefix = "backbone"

    def __init__(self, config: HeadedConfig) -> None:
        super().__init__(config)
        self.backbone = DINOv3ViTModel(config.backbone_config)
        pyramid = config.pyramid_config()
        self.pyramid = None if pyramid is None else Pyramid(pyramid)
        self.heads = nn.ModuleDict({task: _head(config, task, dict(wanted)) for task, wanted in config.heads.items()})
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Keep what torch's layers chose: transformers' 0.02 is made for wide layers, and kills narrow ones."""

    def forward(self, images: torch.Tensor, tasks: Sequence[str] | None = None) -> Outputs:
        """What the heads of the tasks say, all if None.

        Parameters
        ----------
        images
            (B, 3, H, W), normalised; H and W multiples of 32.

        Returns
        -------
        dict
            canopy: HeightMaps; trees: TreeMaps; segment: (B, classes, h, w) logits; classify: (B, classes) logits.
        """
        return self.read(images, self.taps(images), tasks)

    def taps(self, images: torch.Tensor) -> list[Tap]:
        """The backbone's tokens after each of `config.taps`."""
        return vit_taps(self.backbone, images, self.config.taps)

    def read(self, images: torch.Tensor, taps: Sequence[Tap], tasks: Sequence[str] | None = None) -> Outputs:
        """What the heads say, given the tokens; these may come from a cache."""
        asked = list(self.heads) if tasks is None else list(tasks)
        levels = None
        if self.pyramid is not None and any(self.config.heads[task]["kind"] in ON_PYRAMID for task in asked):
            levels = self.pyramid(images, [tap.patches for tap in taps])
        patch = self.config.patch_size
        rows, cols = images.shape[-2] // patch, images.shape[-1] // patch
        last = taps[-1].patches.transpose(1, 2).reshape(len(images), -1, rows, cols)
        found: Outputs = {}
        for task in asked:
            if self.config.heads[task]["kind"] == "dpt":
                found[task] = self.heads[task](taps, rows, cols)
                continue
            seen = levels if self.config.heads[task]["kind"] in ON_PYRAMID else last
            found[task] = self.heads[task](taps[-1].cls if task == "classify" else seen)
        return found


def begin_head(network: HeadedNetwork, task: str) -> None:
    """Set a fresh head's last layer to what is known before any training."""
    match network.heads[task]:
        case TreeHead() | HeightHead() | DPTHead() as head:
            head.begin()


def as_maps(outputs: Outputs, shape: tuple[int, int]) -> dict[str, torch.Tensor]:
    """What the heads said as plain maps: heights, classes at every pixel of `shape`, trees on their cells."""
    found: dict[str, torch.Tensor] = {}
    for task, said in outputs.items():
        match said:
            case HeightMaps():
                found[task] = _enlarged(torch.stack(said, dim=1), shape)
            case TreeMaps():
                found[task] = torch.cat([said.heat.sigmoid()[:, None], said.density[:, None], said.offset], dim=1)
            case _ if said.ndim == 4:
                found[task] = _enlarged(said, shape).softmax(dim=1)
            case _:
                found[task] = said.softmax(dim=1)
    return found


def _enlarged(values: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
    return functional.interpolate(values.float(), size=shape, mode="bilinear", align_corners=False)


def _head(config: HeadedConfig, task: str, wanted: dict[str, Any]) -> nn.Module:
    kind = wanted.get("kind")
    if task not in KINDS or kind not in KINDS[task]:
        known = "; ".join(f"{name}: {', '.join(kinds)}" for name, kinds in KINDS.items())
        raise ModelError(f"head {kind} for {task} is unknown: {known}")
    pyramid = config.pyramid_config()
    if kind in ON_PYRAMID and pyramid is None:
        raise ModelError(f"head {kind} for {task} needs a pyramid in config.json")
    source = pyramid if kind in ON_PYRAMID and pyramid else int(config.backbone_config.hidden_size)
    if task == "trees":
        assert pyramid is not None
        return TreeHead(pyramid)
    if kind == "dpt":
        return DPTHead(config.backbone_config, config.taps, bins=int(wanted["bins"]))
    if task == "canopy":
        return HeightHead(source, bins=int(wanted["bins"]), highest_m=float(wanted["highest_m"]))
    return ClassHead(source, len(wanted["classes"]), dense=task == "segment")


AutoConfig.register(MODEL_TYPE, HeadedConfig)

__all__ = ["MODEL_TYPE", "HeadedConfig", "HeadedNetwork", "HeightMaps", "TreeMaps", "as_maps", "begin_head"]
