"""Heads: what is read off the tokens of a backbone, or off the pyramid beside it.

| task | kind | reads | gives |
|---|---|---|---|
| canopy | linear | last tokens, 16 px | a distribution over heights |
| canopy | dpt | four levels of tokens, 16 px | CHMv2's distribution over 256 heights at every pixel |
| canopy | pyramid | pyramid, 2 px | a distribution over heights |
| trees | density | pyramid, 2 px | heat, offsets and density of trees |
| segment | linear, pyramid | last tokens, or pyramid, 2 px | a logit a class |
| classify | linear | [CLS] | a logit a class |

Trees follow CenterNet (Zhou et al. 2019, arXiv:1904.07850): a heat map whose peaks are the trees, and where in its cell
each stands. A density beside it, trees a cell, integrates to the count. Heights are CHMv2's mean over mixed bins
(arXiv:2603.06382), so a spread comes with each.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional
from transformers import CHMv2Config, CHMv2ForDepthEstimation, DINOv3ViTConfig

from geodino.models.canopy import canopy_from_taps
from geodino.models.canopy import height_bins as chmv2_bins
from geodino.models.dinov3 import Tap
from geodino.models.pyramid import ConvNorm, Decoder, Levels, PyramidConfig

# The focal loss begins with little heat everywhere (arXiv:1708.02002, section 4.1).
_FIRST_HEAT = 0.05
_FIRST_DENSITY = 0.005
# See models/canopy.py: added to each logit, so that a pixel without any still has a mean.
FLOOR = 1e-6
LOWEST_M = 0.008
# Heights of a fresh head: falling off from the ground over about a tree.
_FIRST_HEIGHT_M = 8.0

# Which kinds of head each task has.
KINDS: Mapping[str, tuple[str, ...]] = {
    "canopy": ("linear", "dpt", "pyramid"),
    "trees": ("density",),
    "segment": ("linear", "pyramid"),
    "classify": ("linear",),
}
# Kinds that read the pyramid.
ON_PYRAMID = ("pyramid", "density")


class TreeMaps(NamedTuple):
    """What a model says of trees on cells of 2 px, float32.

    Attributes
    ----------
    heat
        (B, h, w), logits: how sure a tree's centre lies in the cell.
    density
        (B, h, w), trees a cell.
    offset
        (B, 2, h, w), right and down from the cell's centre, in cells.
    """

    heat: torch.Tensor
    density: torch.Tensor
    offset: torch.Tensor


class HeightMaps(NamedTuple):
    """Mean and standard deviation of the height distribution, both (B, h, w) float32, metres."""

    height: torch.Tensor
    spread: torch.Tensor


class TreeHead(nn.Module):
    """The pyramid's levels to trees."""

    def __init__(self, config: PyramidConfig) -> None:
        super().__init__()
        self.decoder = Decoder(config)
        self.hidden = ConvNorm(config.width, config.width)
        self.out = nn.Conv2d(config.width, 4, 1)

    def begin(self) -> None:
        """Set the last layer to what is known before any training: few cells hold a tree."""
        with torch.no_grad():
            self.out.weight.mul_(0.1)
            first = [math.log(_FIRST_HEAT / (1 - _FIRST_HEAT)), math.log(math.expm1(_FIRST_DENSITY)), 0.0, 0.0]
            _bias(self.out).copy_(torch.tensor(first))

    def forward(self, levels: Levels) -> TreeMaps:
        hidden = self.hidden(self.decoder(levels)).float()
        with torch.autocast(hidden.device.type, enabled=False):
            found = self.out(hidden)
            return TreeMaps(found[:, 0], functional.softplus(found[:, 1]), found[:, 2:])


class HeightHead(nn.Module):
    """Tokens (B, D, h, w), or the pyramid's levels, to a distribution over heights."""

    def __init__(self, source: int | PyramidConfig, *, bins: int, highest_m: float) -> None:
        super().__init__()
        self.hidden, width = _reader(source)
        self.out = nn.Conv2d(width, bins, 1)
        self.bins, self.highest_m = bins, highest_m

    def begin(self) -> None:
        """Start with every bin alive, the low ones heavier: after the ReLU a dead bin never comes back."""
        with torch.no_grad():
            self.out.weight.mul_(0.1)
            _bias(self.out).copy_(0.05 + torch.exp(-height_bins(self.bins, self.highest_m) / _FIRST_HEIGHT_M))

    def forward(self, seen: torch.Tensor | Levels) -> HeightMaps:
        hidden = self.hidden(seen).float()
        with torch.autocast(hidden.device.type, enabled=False):
            mass = functional.relu(self.out(hidden)) + FLOOR
            bins = height_bins(self.bins, self.highest_m).to(mass.device)
            powers = torch.stack([torch.ones_like(bins), bins, bins.square()])
            total, first, second = functional.conv2d(mass, powers[:, :, None, None]).unbind(dim=1)
            mean = first / total
            return HeightMaps(mean, (second / total - mean.square()).clamp_min(1e-8).sqrt())


class DPTHead(nn.Module):
    """CHMv2's head, trainable: transformers' own class refuses labels (modeling_chmv2.py 405-407)."""

    def __init__(self, backbone: DINOv3ViTConfig, taps: Sequence[int], *, bins: int) -> None:
        super().__init__()
        # CHMv2's widths for ViT-L, and in proportion for narrower backbones.
        fusion = min(backbone.hidden_size // 4, 256)
        made = CHMv2Config(
            backbone_config=DINOv3ViTConfig(**{**_plain(backbone), "out_indices": list(taps)}),
            post_process_channels=[fusion // 2, fusion, 2 * fusion, 4 * fusion],
            fusion_hidden_size=fusion,
            head_hidden_size=max(fusion // 2, 32),
            number_output_channels=bins,
        )
        self.config = made
        with torch.device("meta"):
            empty = CHMv2ForDepthEstimation(made).head
        self.head = empty.to_empty(device=torch.get_default_device())

    def begin(self) -> None:
        """Start with a signal that lives in narrow layers, and every bin alive, the low ones heavier."""
        for layer in self.head.modules():
            if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
        for fusion in self.head.fusion_layers:
            with torch.no_grad():
                fusion.residual_layer2.convolution2.weight.mul_(0.1)
        last = self.head.conv_depth.head[-1]
        with torch.no_grad():
            last.weight.mul_(0.05)
            last.bias.copy_(0.05 + torch.exp(-chmv2_bins(self.config, last.bias.device) / _FIRST_HEIGHT_M))

    def forward(self, taps: Sequence[Tap], rows: int, cols: int) -> HeightMaps:
        return HeightMaps(*canopy_from_taps(self, taps, rows, cols))


class ClassHead(nn.Module):
    """Tokens (B, D, h, w), the pyramid's levels, or [CLS] (B, D), to a logit a class."""

    def __init__(self, source: int | PyramidConfig, classes: int, *, dense: bool) -> None:
        super().__init__()
        if dense:
            self.hidden, width = _reader(source)
            self.out: nn.Module = nn.Conv2d(width, classes, 1)
        else:
            assert isinstance(source, int)
            self.hidden, self.out = nn.BatchNorm1d(source), nn.Linear(source, classes)

    def forward(self, seen: torch.Tensor | Levels) -> torch.Tensor:
        logits: torch.Tensor = self.out(self.hidden(seen)).float()
        return logits


def _reader(source: int | PyramidConfig) -> tuple[nn.Module, int]:
    """What comes before a head's last layer, and how many channels it gives: batch norm, or a decoder."""
    if isinstance(source, int):
        return nn.BatchNorm2d(source), source
    return nn.Sequential(Decoder(source), ConvNorm(source.width, source.width)), source.width


def _plain(config: DINOv3ViTConfig) -> dict[str, Any]:
    """A config's values, without what transformers adds to them."""
    derived = ("model_type", "architectures", "out_features", "out_indices", "stage_names")
    return {key: value for key, value in config.to_dict().items() if key not in derived}


def _bias(layer: nn.Conv2d) -> torch.Tensor:
    assert layer.bias is not None
    return layer.bias


def height_bins(count: int, highest_m: float) -> torch.Tensor:
    """Heights (count,) in metres: logarithmic at the ground, blending into linear at the top, as CHMv2's bins.

    dinov3 eval/depth/utils.py 74-95, with its eighths of metres multiplied out.
    """
    linear = torch.linspace(LOWEST_M, highest_m, count)
    log = torch.exp(torch.linspace(math.log(LOWEST_M), math.log(highest_m), count))
    share = torch.linspace(1.0, 0.0, count)
    return share * log + (1 - share) * linear
