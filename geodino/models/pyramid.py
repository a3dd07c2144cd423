"""A light image branch beside the backbone: detail that 16 px patches cannot show, joined with what the tokens know.

A patch of 16 px is 9.6 m at 0.6 m a pixel, and trees stand closer than that: in the towns of urban-trees a fifth have
their nearest neighbour within 5 m. So a small convolutional pyramid looks at the image itself, at 1/2, 1/4, 1/8 and
1/16 of its resolution; the tokens join it at 1/16, and each head brings the levels back up to 1/2. The idea is the
spatial prior of ViT-Adapter (Chen et al. 2023, arXiv:2205.08534), without its attention.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional

# Cells of what a decoder gives, pixels of the image.
CELL = 2


@dataclass(frozen=True)
class PyramidConfig:
    """The size of a pyramid.

    Attributes
    ----------
    token_width
        Width of a backbone's tokens.
    taps
        How many levels of the backbone are joined.
    widths
        Channels at 1/2, 1/4, 1/8 and 1/16.
    middle, width
        Channels on the way up at 1/4, and of what comes out at 1/2.
    blocks
        Residual blocks at each of 1/4, 1/8 and 1/16.
    """

    token_width: int
    taps: int
    widths: tuple[int, int, int, int] = (24, 48, 96, 192)
    middle: int = 64
    width: int = 32
    blocks: tuple[int, int, int] = (1, 1, 1)


class Levels(NamedTuple):
    """An image at 1/2, 1/4, 1/8 and 1/16, the last joined with the tokens; each (B, C, h, w)."""

    half: torch.Tensor
    quarter: torch.Tensor
    eighth: torch.Tensor
    sixteenth: torch.Tensor


class Pyramid(nn.Module):
    """Image and tokens to levels; what all heads that read it share."""

    def __init__(self, config: PyramidConfig) -> None:
        super().__init__()
        half, quarter, eighth, sixteenth = config.widths
        self.to_half = ConvNorm(3, half, stride=2)
        self.to_quarter = nn.Sequential(ConvNorm(half, quarter, stride=2), *_blocks(quarter, config.blocks[0]))
        self.to_eighth = nn.Sequential(ConvNorm(quarter, eighth, stride=2), *_blocks(eighth, config.blocks[1]))
        self.to_sixteenth = nn.Sequential(ConvNorm(eighth, sixteenth, stride=2), *_blocks(sixteenth, config.blocks[2]))
        # Each tap has a norm of its own: the levels of a frozen backbone differ in scale.
        self.norms = nn.ModuleList(nn.LayerNorm(config.token_width) for _ in range(config.taps))
        self.join = nn.Linear(config.taps * config.token_width, sixteenth)

    def forward(self, images: torch.Tensor, taps: Sequence[torch.Tensor]) -> Levels:
        """Join them.

        Parameters
        ----------
        images
            (B, 3, H, W), normalised; H and W multiples of 16.
        taps
            Patches of the backbone's levels, each (B, H / 16 * W / 16, D).
        """
        half = self.to_half(images.contiguous(memory_format=torch.channels_last))
        quarter = self.to_quarter(half)
        eighth = self.to_eighth(quarter)
        sixteenth = self.to_sixteenth(eighth)
        tokens = self.join(torch.cat([norm(tap) for norm, tap in zip(self.norms, taps, strict=True)], dim=-1))
        rows, cols = sixteenth.shape[-2:]
        tokens = tokens.transpose(1, 2).reshape(len(images), -1, rows, cols)
        return Levels(half, quarter, eighth, functional.relu(sixteenth + tokens))


class Decoder(nn.Module):
    """Levels back up to (B, width, H / 2, W / 2); each head that reads the pyramid has its own."""

    def __init__(self, config: PyramidConfig) -> None:
        super().__init__()
        half, quarter, eighth, sixteenth = config.widths
        self.mix = ConvNorm(sixteenth, eighth)
        self.up_eighth = ConvNorm(eighth, eighth)
        self.narrow = nn.Conv2d(eighth, config.middle, 1)
        self.lateral = nn.Conv2d(quarter, config.middle, 1)
        self.up_quarter = nn.Sequential(ConvNorm(config.middle, config.middle), ConvNorm(config.middle, config.middle))
        self.unfold = nn.Sequential(nn.Conv2d(config.middle, 4 * config.width, 1), nn.PixelShuffle(2))
        self.lateral_half = nn.Conv2d(half, config.width, 1)
        self.up_half = ConvNorm(config.width, config.width)

    def forward(self, levels: Levels) -> torch.Tensor:
        """From the coarsest level up."""
        eighth = self.up_eighth(_doubled(self.mix(levels.sixteenth)) + levels.eighth)
        quarter = self.up_quarter(_doubled(self.narrow(eighth)) + self.lateral(levels.quarter))
        found: torch.Tensor = self.up_half(self.unfold(quarter) + self.lateral_half(levels.half))
        return found


class ConvNorm(nn.Sequential):
    """A 3 x 3 convolution, batch norm and ReLU."""

    def __init__(self, inside: int, outside: int, *, stride: int = 1) -> None:
        super().__init__(
            nn.Conv2d(inside, outside, 3, stride, 1, bias=False), nn.BatchNorm2d(outside), nn.ReLU(inplace=True)
        )


class _Block(nn.Module):
    """Two convolutions and the way around them (He et al. 2016, arXiv:1512.03385)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = ConvNorm(width, width)
        self.second = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.norm = nn.BatchNorm2d(width)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return functional.relu(values + self.norm(self.second(self.first(values))))


def _blocks(width: int, count: int) -> nn.Sequential:
    return nn.Sequential(*(_Block(width) for _ in range(count)))


def _doubled(values: torch.Tensor) -> torch.Tensor:
    return functional.interpolate(values, scale_factor=2, mode="bilinear", align_corners=False)
