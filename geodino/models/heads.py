"""Heads: what is read off the tokens of a backbone, or off the pyramid beside it.

| task | kind | reads | gives |
|---|---|---|---|
| canopy | linear | last tokens, 16 px | a distribution over heights |
| canopy | pyramid | pyramid, 2 px | a distribution over heights |
| trees | density | pyramid, 2 px | heat, offsets and density of trees |
| segment | linear, pyramid | last tokens, or pyramid | a logit a class |
| classify | linear | [CLS] | a logit a class |

Trees follow CenterNet (Zhou et al. 2019, arXiv:1904.07850): a heat map whose peaks are the trees, and where in its cell
each stands. A density beside it, trees a cell, integrates to the count. Heights are CHMv2's mean over mixed bins
(arXiv:2603.06382), so a spread comes with each.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional

from geodino.models.pyramid import ConvNorm

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
    "canopy": ("linear", "pyramid"),
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
    """The pyramid's features to trees."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.hidden = ConvNorm(width, width)
        self.out = nn.Conv2d(width, 4, 1)

    def begin(self) -> None:
        """Set the last layer to what is known before any training: few cells hold a tree."""
        with torch.no_grad():
            self.out.weight.mul_(0.1)
            first = [math.log(_FIRST_HEAT / (1 - _FIRST_HEAT)), math.log(math.expm1(_FIRST_DENSITY)), 0.0, 0.0]
            _bias(self.out).copy_(torch.tensor(first))

    def forward(self, features: torch.Tensor) -> TreeMaps:
        hidden = self.hidden(features).float()
        with torch.autocast(hidden.device.type, enabled=False):
            found = self.out(hidden)
            return TreeMaps(found[:, 0], functional.softplus(found[:, 1]), found[:, 2:])


class HeightHead(nn.Module):
    """Features to a distribution over heights."""

    def __init__(self, width: int, *, bins: int, highest_m: float, convolve: bool) -> None:
        super().__init__()
        self.hidden = ConvNorm(width, width) if convolve else nn.BatchNorm2d(width)
        self.out = nn.Conv2d(width, bins, 1)
        self.bins, self.highest_m = bins, highest_m

    def begin(self) -> None:
        """Start with every bin alive, the low ones heavier: after the ReLU a dead bin never comes back."""
        with torch.no_grad():
            self.out.weight.mul_(0.1)
            _bias(self.out).copy_(0.05 + torch.exp(-height_bins(self.bins, self.highest_m) / _FIRST_HEIGHT_M))

    def forward(self, features: torch.Tensor) -> HeightMaps:
        hidden = self.hidden(features).float()
        with torch.autocast(hidden.device.type, enabled=False):
            mass = functional.relu(self.out(hidden)) + FLOOR
            bins = height_bins(self.bins, self.highest_m).to(mass.device)
            powers = torch.stack([torch.ones_like(bins), bins, bins.square()])
            total, first, second = functional.conv2d(mass, powers[:, :, None, None]).unbind(dim=1)
            mean = first / total
            return HeightMaps(mean, (second / total - mean.square()).clamp_min(1e-8).sqrt())


class ClassHead(nn.Module):
    """Features (B, C, h, w) or (B, C) to a logit a class."""

    def __init__(self, width: int, classes: int, *, dense: bool) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(width) if dense else nn.BatchNorm1d(width)
        self.out: nn.Module = nn.Conv2d(width, classes, 1) if dense else nn.Linear(width, classes)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.out(self.norm(features)).float()
        return logits


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
