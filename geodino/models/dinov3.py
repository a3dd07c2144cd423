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
from transformers import DINOv3ViTBackbone, DINOv3ViTModel


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
