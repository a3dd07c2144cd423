"""Dense features of the DINOv3 backbones: [CLS] and register tokens set aside, patches in their rows and columns.

Nothing here computes a block: the blocks are those of transformers' DINOv3ViTModel / DINOv3ViTBackbone
(https://github.com/huggingface/transformers, src/transformers/models/dinov3_vit/modeling_dinov3_vit.py, 5.23) and
their ConvNeXt counterparts. We only walk through them, so that the final norm runs on the levels asked for and not
on all of them, and no other hidden state is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from transformers import DINOv3ConvNextModel, DINOv3ViTBackbone, DINOv3ViTModel, PreTrainedModel

from geodino.errors import ModelError
from geodino.models.catalog import ModelRow
from geodino.models.precision import Precision, autocast, normalise, prepare


class Tap(NamedTuple):
    """What a ViT knows after one of its blocks.

    Attributes
    ----------
    patches
        (B, h * w, D), row by row from the north-west patch.
    cls
        (B, D), the image's own token.
    """

    patches: torch.Tensor
    cls: torch.Tensor


def vit_taps(
    vit: DINOv3ViTBackbone | DINOv3ViTModel,
    pixels: torch.Tensor,
    depths: Sequence[int],
    *,
    norm_all: bool = True,
) -> list[Tap]:
    """Tokens after the given numbers of blocks, in the order of `depths`.

    Parameters
    ----------
    pixels
        (B, 3, H, W), already normalised with the model's mean and std; pixels beyond the last whole patch are not
        seen.
    depths
        How many blocks each tap has behind it: 0 is the embedding, `num_hidden_layers` the output. (The official
        code counts blocks from 0: its layer 5 is depth 6 here and in transformers' `out_indices`.)
    norm_all
        Whether the final norm is applied to the inner taps too (transformers' `apply_layernorm`); the last block's
        output always has it.
    """
    hidden = vit.embeddings(pixels)
    rope = vit.rope_embeddings(pixels)
    prefix = 1 + vit.config.num_register_tokens
    blocks = vit.model.layer
    found: dict[int, Tap] = {}
    for depth in range(max(depths) + 1):
        if depth:
            hidden = blocks[depth - 1](hidden, position_embeddings=rope)
        if depth in depths:
            tokens = vit.norm(hidden) if norm_all or depth == len(blocks) else hidden
            found[depth] = Tap(tokens[:, prefix:], tokens[:, 0])
    return [found[depth] for depth in depths]


class Features(NamedTuple):
    """Features of one level.

    Attributes
    ----------
    dense
        (B, D, h, w) float32, north up, west left.
    cls
        (B, D) float32, of the whole image.
    """

    dense: torch.Tensor
    cls: torch.Tensor


class Backbone:
    """A frozen DINOv3 backbone, for heads trained on its features.

    Attributes
    ----------
    row
        Its facts: mean, std, licence.
    levels
        How many levels it has: blocks of a ViT, stages of a ConvNeXt.
    weights_sha256
        Of the weights file; of the list of hashes where there are several.
    """

    def __init__(
        self,
        network: PreTrainedModel,
        row: ModelRow,
        *,
        weights_sha256: str,
        precision: Precision,
        device: torch.device,
    ) -> None:
        self.row = row
        self.weights_sha256 = weights_sha256
        self.device = device
        self.precision = precision
        self._network = prepare(network, self.precision, self.device)
        self.levels: int = network.config.num_hidden_layers if row.family == "vit" else len(network.config.hidden_sizes)

    def features(self, images: torch.Tensor, levels: Sequence[int] | None = None) -> list[Features]:
        """Features after the given levels, in their order; of the last one if none is given.

        Parameters
        ----------
        images
            (B, 3, H, W) in 0..1, before mean and std; any H and W of at least one patch. Pixels beyond the last
            whole patch are not seen.
        levels
            1 to `self.levels`. A ViT has its 16 px patches at every level, and each has the final norm; a ConvNeXt
            has cells of 4, 8, 16 and 32 px, of which only the last has a norm, and the mean of its cells for [CLS],
            as in the official get_intermediate_layers.
        """
        asked = [self.levels] if levels is None else list(levels)
        if not asked or min(asked) < 1 or max(asked) > self.levels:
            raise ModelError(f"levels {asked} of {self.row.name} must be between 1 and {self.levels}")
        with torch.inference_mode(), autocast(self.device, self.precision):
            pixels = normalise(images.to(self.device), self.row)
            found = (_vit_features if self.row.family == "vit" else _convnext_features)(self._network, pixels, asked)
        return [Features(level.dense.float(), level.cls.float()) for level in found]


def _vit_features(vit: DINOv3ViTModel, pixels: torch.Tensor, levels: Sequence[int]) -> list[Features]:
    patch = vit.config.patch_size
    rows, cols = pixels.shape[-2] // patch, pixels.shape[-1] // patch
    return [
        Features(tap.patches.transpose(1, 2).reshape(len(pixels), -1, rows, cols), tap.cls)
        for tap in vit_taps(vit, pixels, levels)
    ]


def _convnext_features(convnext: DINOv3ConvNextModel, pixels: torch.Tensor, levels: Sequence[int]) -> list[Features]:
    found: dict[int, Features] = {}
    dense = pixels
    stages = convnext.model.stages
    for level, stage in enumerate(stages, start=1):
        dense = stage(dense)
        cls = dense.mean(dim=(2, 3))
        found[level] = Features(dense, cls)
    # [CLS] is the norm of the mean, not the mean of the norms.
    normed = convnext.layer_norm(dense.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    found[len(stages)] = Features(normed, convnext.layer_norm(cls))
    return [found[level] for level in levels]
