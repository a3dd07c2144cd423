"""Canopy height and its spread, in metres, from one pass of CHMv2.

CHMv2 (arXiv 2603.06382) gives each pixel a distribution over 256 heights; its published height is the mean. Here
the standard deviation comes out of the same pass. The weights and layers are those of transformers'
CHMv2ForDepthEstimation (src/transformers/models/chmv2/modeling_chmv2.py, 5.23); the head is evaluated in another
order, which is exact and about twice as fast, with less than half of the memory (2.2x at 512 px on a CPU with bf16,
November 2026):

- the [CLS] half of the readout's linear layer is computed once an image, not once a patch;
- the 1x1 projection of a fusion level comes before its bilinear upsampling, not after: they commute, since the
  weights of an interpolation sum to 1, and there are four times fewer pixels;
- the last 1x1 convolution and the sums over the bins run over a few thousand pixels at a time, so no tensor with 256
  channels at full size is ever written.

Beware: where every logit of a pixel is negative the distribution is flat, and its mean reads as 33 m of forest.
Validity must come from the imagery, never from the prediction.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch.nn import functional
from transformers import CHMv2Config, CHMv2ForDepthEstimation

from geodino.errors import ModelError
from geodino.models.dinov3 import Tap, vit_taps

# Added to each relu'd logit before they are divided by their sum; the reference's shift is always this, because the
# minimum it looks at comes after the relu (dinov3 eval/depth/utils.py 98-143, modeling_chmv2.py 287-306).
FLOOR = 1e-8

# The network predicts an eighth of the height (modeling_chmv2.py 266-285, 306).
METRES = 8.0

# Pixels whose 256 logits are held at once: on a CPU 4 MiB, so that they stay in the cache, else 256 MiB.
_CPU_CHUNK = 4096
_CHUNK = 262_144


class DPT(Protocol):
    """What holds CHMv2's head: the model itself, or a head of ours."""

    @property
    def head(self) -> Any: ...
    @property
    def config(self) -> Any: ...


def canopy_forward(model: CHMv2ForDepthEstimation, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Height and spread of each pixel, both (B, H, W) float32, metres; pure and differentiable.

    The backbone runs in the precision of its weights and of the caller's autocast; the head and the bins always run
    in float32, because bf16 bins would quantise a 30 m tree to steps of 0.125 m.

    Parameters
    ----------
    pixels
        (B, 3, H, W) float32, normalised with the model's mean and std. H and W should be multiples of 32: with an odd
        number of 16 px patches the head's lowest level rounds up, and the map comes back one patch larger.
    """
    config = model.config
    taps = vit_taps(
        model.backbone,
        pixels,
        config.backbone_config.out_indices,
        norm_all=config.backbone_config.apply_layernorm,
    )
    rows, cols = pixels.shape[-2] // config.patch_size, pixels.shape[-1] // config.patch_size
    return canopy_from_taps(model, taps, rows, cols)


def canopy_from_taps(model: DPT, taps: Sequence[Tap], rows: int, cols: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Height and spread from the tokens of `rows` x `cols` patches, as `canopy_forward`."""
    with torch.autocast(taps[0].patches.device.type, enabled=False):
        levels = [
            _reassemble(model, index, Tap(tap.patches.float(), tap.cls.float()), rows, cols)
            for index, tap in enumerate(taps)
        ]
        return _height_and_spread(model, _decode(model, levels))


def height_bins(config: CHMv2Config, device: torch.device) -> torch.Tensor:
    """The heights that the logits stand for, (K,) float32, metres, rising from 0.008 to 96 for CHMv2.

    A blend of logarithmic bins (at the ground) into linear ones (at the top), as in dinov3 eval/depth/utils.py 74-95.

    Raises
    ------
    ModelError
        If the config asks for another kind of bins, or for a single one, which has no spread.
    """
    count = config.number_output_channels
    if config.bins_strategy != "chmv2_mixlog" or config.norm_strategy != "chmv2_mixlog":
        raise ModelError(
            f"bins {config.bins_strategy} with norm {config.norm_strategy} are not supported: "
            "a canopy model needs chmv2_mixlog for both in its config.json"
        )
    if count < 2:
        raise ModelError(f"number_output_channels {count} gives no distribution: a canopy model needs at least 2 bins")
    lowest, highest = torch.tensor([config.min_depth, config.max_depth / METRES], device=device)
    linear = torch.linspace(config.min_depth, config.max_depth / METRES, count, device=device)
    log = torch.exp(torch.linspace(torch.log(lowest), torch.log(highest), count, device=device))
    log_share = torch.linspace(1.0, 0.0, count, device=device)
    return METRES * (log_share * log + (1.0 - log_share) * linear)


def _reassemble(model: DPT, index: int, tap: Tap, rows: int, cols: int) -> torch.Tensor:
    """One level as an image, (B, fusion channels, its rows, its cols), channels last in memory."""
    stage = model.head.reassemble_stage
    patches, cls = tap
    width = patches.shape[-1]
    if stage.readout_type == "project":
        linear, activation = stage.readout_projects[index]
        of_patches, of_cls = linear.weight[:, :width], linear.weight[:, width:]
        constant = functional.linear(cls, of_cls, linear.bias)
        patches = activation(functional.linear(patches, of_patches) + constant[:, None])
    elif stage.readout_type == "add":
        patches = patches + cls[:, None]
    image = patches.reshape(len(patches), rows, cols, width).permute(0, 3, 1, 2)
    level: torch.Tensor = model.head.convs[index](stage.layers[index](image))
    return level


def _decode(model: DPT, levels: list[torch.Tensor]) -> torch.Tensor:
    """The levels fused from the coarsest up, then the full-size features that the bins are read from."""
    fused = None
    for fusion, level in zip(model.head.fusion_layers, reversed(levels), strict=True):
        if fused is None:
            fused = level
        else:
            if level.shape != fused.shape:
                level = functional.interpolate(level, size=fused.shape[-2:], mode="bilinear", align_corners=False)
            fused = fused + fusion.residual_layer1(level)
        fused = fusion.projection(fusion.residual_layer2(fused))
        fused = functional.interpolate(fused, scale_factor=2, mode="bilinear", align_corners=True)
    reduce, upsample, widen, activation, _ = model.head.conv_depth.head
    features: torch.Tensor = activation(widen(upsample(reduce(fused))))
    return features


def _height_and_spread(model: DPT, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation over the bins, from the last convolution's input (B, C, H, W)."""
    batch, channels, height, width = features.shape
    to_logits = model.head.conv_depth.head[-1]
    bins = height_bins(model.config, features.device)
    weight = to_logits.weight.view(len(bins), channels)
    powers = torch.stack([torch.ones_like(bins), bins, bins.square()], dim=1)
    floor = FLOOR * powers.sum(dim=0)
    pixels = features.permute(0, 2, 3, 1).reshape(-1, channels)
    moments = torch.cat(
        [
            functional.linear(chunk, weight, to_logits.bias).relu() @ powers + floor
            for chunk in torch.split(pixels, _CPU_CHUNK if features.device.type == "cpu" else _CHUNK)
        ]
    )
    mass, first, second = moments.unbind(dim=1)
    mean = first / mass
    # The difference of two close numbers: float32 leaves an error of about 1 cm at 30 m in a spread near 0. The floor
    # also keeps the square root's gradient finite there.
    variance = (second / mass - mean.square()).clamp_min(1e-8)
    shape = (batch, height, width)
    return mean.view(shape), variance.sqrt().view(shape)
