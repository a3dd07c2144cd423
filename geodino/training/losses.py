"""What a training makes small, one function a task.

Canopy: the published schedule of CHMv2 (arXiv:2603.06382, Algorithm 1 and table 6): a scale-invariant log loss annealed
into a Charbonnier loss over the first 30 % of the steps, and a gradient loss whose weight rises from 0 to 0.075 between
5 % and 50 %. Trees: the penalty-reduced focal loss of CenterNet (arXiv:1904.07850, equation 1) on the heat, an L1 loss
on the offsets, and on the density a Poisson loss a cell with counts over blocks beside it.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch.nn import functional

from geodino.models.heads import HeightMaps, TreeMaps

# Shares of the steps, from the published 100,000.
SILOG_UNTIL = 0.30
GRADIENT_FROM, GRADIENT_UNTIL, GRADIENT_WEIGHT = 0.05, 0.50, 0.075
# Share of the squared mean that counts beside the variance; the rest, that all is too tall by one factor, is forgiven
# (Eigen et al. 2014, arXiv:1406.2283, equation 4, keep 0.5; AdaBins and DINOv3's depth head 0.15).
SILOG_KEPT = 0.15
# Metres: the log loss must not see differences below what a lidar sees.
SILOG_FLOOR_M = 0.5
CHARBONNIER_M = 1.0
TALL_SHARE = 0.98
# Metres: lidar itself is no surer.
LEAST_SPREAD_M = 0.1

FOCAL_POWER, FOCAL_REDUCTION = 2, 4
OFFSET_WEIGHT, DENSITY_WEIGHT = 0.5, 0.15
# Cells: 19 and 77 m at 0.6 m a pixel.
COUNT_BLOCKS = (16, 64)


class TreeTargets(NamedTuple):
    """What a tree head should say; cells of 2 px.

    Attributes
    ----------
    heat
        (B, h, w): 1 where a tree stands, falling off around it.
    density
        (B, h, w), trees a cell: each tree's mass is 1.
    offset, stands
        (B, 2, h, w) and bool (B, h, w): where in its cell a tree stands, and which cells hold one.
    known
        Bool (B, h, w): trees of this cell are known.
    """

    heat: torch.Tensor
    density: torch.Tensor
    offset: torch.Tensor
    stands: torch.Tensor
    known: torch.Tensor


def tree_loss(found: TreeMaps, wanted: TreeTargets) -> torch.Tensor:
    """The loss of a batch, a scalar, per tree."""
    known = wanted.known.float()
    stands = wanted.stands & wanted.known
    trees = stands.sum().clamp_min(1)
    sure = found.heat.sigmoid()
    hit = (1 - sure) ** FOCAL_POWER * functional.logsigmoid(found.heat) * stands
    miss = sure**FOCAL_POWER * (1 - wanted.heat) ** FOCAL_REDUCTION * functional.logsigmoid(-found.heat)
    focal = -(hit.sum() + (miss * known * ~stands).sum()) / trees
    offset = ((found.offset - wanted.offset).abs().sum(dim=1) * stands).sum() / trees
    return focal + OFFSET_WEIGHT * offset + DENSITY_WEIGHT * _density_loss(found.density, wanted.density, known, trees)


def _density_loss(found: torch.Tensor, wanted: torch.Tensor, known: torch.Tensor, trees: torch.Tensor) -> torch.Tensor:
    poisson = ((found - wanted * torch.log(found + 1e-6)) * known).sum() / trees
    counts = torch.zeros((), device=found.device)
    for block in COUNT_BLOCKS:
        side = min(block, found.shape[-1])
        here, there = (side**2 * functional.avg_pool2d((v * known)[:, None], side) for v in (found, wanted))
        counts = counts + ((here - there).abs() / (1 + there).sqrt()).mean()
    return poisson + counts


def canopy_loss(
    found: HeightMaps,
    wanted: torch.Tensor,
    known: torch.Tensor,
    progress: float,
    *,
    silog: bool = True,
    doubt: float = 0.0,
) -> torch.Tensor:
    """The loss of a batch, a scalar.

    Parameters
    ----------
    found
        At a resolution of which the labels' is a whole multiple.
    wanted
        (B, H, W) metres.
    known
        Bool (B, H, W): the height is known.
    progress
        Share of the steps done.
    silog
        Whether to begin with the log loss; without it Charbonnier from the start.
    doubt
        Weight of `doubt_loss`, which is not part of the published schedule.
    """
    height = enlarged(found.height, wanted.shape[-2:])
    late = min(progress / SILOG_UNTIL, 1.0) if silog else 1.0
    loss = late * _mean(charbonnier(height - wanted), known)
    if late < 1:
        loss = loss + (1 - late) * silog_loss(height, wanted, known)
    rising = min(max((progress - GRADIENT_FROM) / (GRADIENT_UNTIL - GRADIENT_FROM), 0.0), 1.0)
    if rising:
        loss = loss + rising * GRADIENT_WEIGHT * gradient_loss(height, wanted, known)
    if doubt:
        spread = enlarged(found.spread, wanted.shape[-2:])
        loss = loss + doubt * doubt_loss(spread, (height - wanted).abs().detach(), known)
    return loss


def doubt_loss(spread: torch.Tensor, error: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    """What a spread costs that is smaller or larger than the errors: (B, H, W) metres to a scalar.

    The negative log-likelihood of a Laplace distribution with that standard deviation, less a constant; the error is
    a fact here, so that heights do not learn to be wrong where doubt is cheap.
    """
    held = spread.clamp_min(LEAST_SPREAD_M)
    return _mean(torch.log(held) + math.sqrt(2) * error / held, known)


def footprint_loss(found: HeightMaps, disc: torch.Tensor, tallest: torch.Tensor) -> torch.Tensor:
    """The loss of footprints: the 98th percentile of the map within each against its height.

    What spaceborne lidar is compared with (arXiv:2603.06382, section 4): the tallest return, not the mean.

    Parameters
    ----------
    disc
        (B, H, W) int64: number of the footprint that holds a pixel, from 1; 0 outside.
    tallest
        (B, M) metres, NaN where there is no footprint of that number.
    """
    height = enlarged(found.height, disc.shape[-2:])
    apart = [
        height[b][disc[b] == k + 1].quantile(TALL_SHARE) - tallest[b, k]
        for b, k in torch.isfinite(tallest).nonzero().tolist()
    ]
    return charbonnier(torch.stack(apart)).mean() if apart else height.sum() * 0


def enlarged(values: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """(B, h, w) to (B, H, W), bilinear."""
    if values.shape[-2:] == shape:
        return values
    return functional.interpolate(values[:, None], size=tuple(shape), mode="bilinear", align_corners=False)[:, 0]


def charbonnier(apart: torch.Tensor) -> torch.Tensor:
    """A distance in metres, rounded off below `CHARBONNIER_M`."""
    return (apart.square() + CHARBONNIER_M**2).sqrt() - CHARBONNIER_M


def silog_loss(found: torch.Tensor, wanted: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    """Root of the variance of the log ratio, and a little of its mean: (B, H, W) metres to a scalar."""
    apart = torch.log(found.clamp_min(SILOG_FLOOR_M)) - torch.log(wanted.clamp_min(SILOG_FLOOR_M))
    mean = _mean(apart, known)
    square = _mean(apart.square(), known)
    return (square - (1 - SILOG_KEPT) * mean.square() + 1e-6).sqrt()


def gradient_loss(found: torch.Tensor, wanted: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    """Mean distance of differences over 1, 2, 4 and 8 pixels, down and across, metres."""
    apart, parts = found - wanted, []
    for step in (1, 2, 4, 8):
        parts.append(_mean((apart[:, step:] - apart[:, :-step]).abs(), known[:, step:] & known[:, :-step]))
        parts.append(_mean((apart[:, :, step:] - apart[:, :, :-step]).abs(), known[:, :, step:] & known[:, :, :-step]))
    return torch.stack(parts).sum()


def _mean(values: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    return (values * known).sum() / known.sum().clamp_min(1)
