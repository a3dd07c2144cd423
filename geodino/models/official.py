"""Reads the .pth files that Meta publishes into transformers' classes: new names, the same numbers.

The layouts are those of facebookresearch/dinov3 at 6876159: models/vision_transformer.py 42-183, layers/attention.py
30-66, layers/ffn_layers.py 52-77, models/convnext.py 122-216, eval/depth/models/dpt_head.py 192-570. Files are read
with weights_only=True, so that nothing in them can run.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from transformers import CHMv2Config, DINOv3ConvNextConfig, DINOv3ViTConfig, PreTrainedConfig, PreTrainedModel

from geodino.errors import ModelError
from geodino.models.catalog import ConvNeXtShape, ModelRow, ViTShape, rows
from geodino.models.checkpoint import NETWORKS, build
from geodino.models.files import check_not_a_stand_in, sha256_of

Weights = Mapping[str, torch.Tensor]

# Official name -> transformers' name; the first pattern that matches the whole name counts.
VIT_NAMES = (
    (r"(cls_token|mask_token)", r"embeddings.\1"),
    (r"storage_tokens", r"embeddings.register_tokens"),
    (r"patch_embed\.proj\.(weight|bias)", r"embeddings.patch_embeddings.\1"),
    (r"blocks\.(\d+)\.(norm[12]\.\w+)", r"model.layer.\1.\2"),
    (r"blocks\.(\d+)\.attn\.([qkv])\.(weight|bias)", r"model.layer.\1.attention.\2_proj.\3"),
    (r"blocks\.(\d+)\.attn\.proj\.(weight|bias)", r"model.layer.\1.attention.o_proj.\2"),
    (r"blocks\.(\d+)\.ls([12])\.gamma", r"model.layer.\1.layer_scale\2.lambda1"),
    (r"blocks\.(\d+)\.mlp\.w1\.(weight|bias)", r"model.layer.\1.mlp.gate_proj.\2"),
    (r"blocks\.(\d+)\.mlp\.(?:fc1|w2)\.(weight|bias)", r"model.layer.\1.mlp.up_proj.\2"),
    (r"blocks\.(\d+)\.mlp\.(?:fc2|w3)\.(weight|bias)", r"model.layer.\1.mlp.down_proj.\2"),
    (r"norm\.(weight|bias)", r"norm.\1"),
)
CONVNEXT_NAMES = (
    (r"downsample_layers\.(\d)\.(\d)\.(weight|bias)", r"model.stages.\1.downsample_layers.\2.\3"),
    (r"stages\.(\d)\.(\d+)\.gamma", r"model.stages.\1.layers.\2.gamma"),
    (r"stages\.(\d)\.(\d+)\.dwconv\.(weight|bias)", r"model.stages.\1.layers.\2.depthwise_conv.\3"),
    (r"stages\.(\d)\.(\d+)\.norm\.(weight|bias)", r"model.stages.\1.layers.\2.layer_norm.\3"),
    (r"stages\.(\d)\.(\d+)\.pwconv([12])\.(weight|bias)", r"model.stages.\1.layers.\2.pointwise_conv\3.\4"),
    (r"norm\.(weight|bias)", r"layer_norm.\1"),
)
HEAD_NAMES = (
    (r"reassemble_blocks\.projects\.(\d)\.conv\.(\w+)", r"head.reassemble_stage.layers.\1.projection.\2"),
    (r"reassemble_blocks\.resize_layers\.(\d)\.(\w+)", r"head.reassemble_stage.layers.\1.resize.\2"),
    (r"reassemble_blocks\.readout_projects\.(\d)\.0\.(\w+)", r"head.reassemble_stage.readout_projects.\1.0.\2"),
    (r"convs\.(\d)\.conv\.weight", r"head.convs.\1.weight"),
    (r"fusion_blocks\.(\d)\.project\.conv\.(\w+)", r"head.fusion_layers.\1.projection.\2"),
    (
        r"fusion_blocks\.(\d)\.res_conv_unit([12])\.conv([12])\.conv\.(\w+)",
        r"head.fusion_layers.\1.residual_layer\2.convolution\3.\4",
    ),
    (r"conv_depth\.head\.([024])\.(weight|bias)", r"head.conv_depth.head.\1.\2"),
)

# Weights that inference never reads. `rope_embed.periods` follows from the config; keys have no bias, since the
# official code multiplies theirs by a mask of 0; `local_cls_norm` is for training crops; the last of ConvNeXt's
# `norms` is its `norm` under a second name.
VIT_UNUSED = r"rope_embed\.periods|blocks\.\d+\.attn\.(k\.bias|qkv\.bias_mask)|local_cls_norm\.(weight|bias)"
CONVNEXT_UNUSED = r"norms\.3\.(weight|bias)"


def official_row(names: Sequence[str]) -> ModelRow:
    """The model that is published as the .pth files of these names; ModelError lists what is known."""
    for row in rows():
        if row.official and set(row.official) == set(names):
            return row
    known = ", ".join(" + ".join(row.official) for row in rows() if row.official)
    raise ModelError(
        f"no model is published as {' + '.join(names)}: a .pth file must keep its official name; known: {known}"
    )


def load_official(files: Sequence[Path], row: ModelRow, *, bf16: bool = False) -> PreTrainedModel:
    """The network of a catalog row from its .pth files, backbone first, strictly.

    Raises
    ------
    ModelError
        If a file is not the published one (its SHA-256 must start as its name says), or its weights are not those of
        the architecture.
    """
    for path in files:
        check_not_a_stand_in(path)
        digest, pinned = sha256_of([path]), path.stem.rpartition("-")[2]
        if not digest.startswith(pinned):
            raise ModelError(
                f"{path} is not the published file: its SHA-256 starts {digest[:8]}, not {pinned}; download it again"
            )
    weights = convert([_read(path) for path in files], row)
    what = " + ".join(str(path) for path in files)
    return build(NETWORKS[row.family], what, config=config_of(row), weights=weights, bf16=bf16)


def config_of(row: ModelRow) -> PreTrainedConfig:
    """transformers' configuration of a published model.

    The norms' epsilon is the official code's 1e-5 ("layernormbf16"), also under CHMv2, whose hub copy says 1e-6.
    """
    match row.shape:
        case ConvNeXtShape(depths, widths):
            return DINOv3ConvNextConfig(depths=list(depths), hidden_sizes=list(widths))
        case ViTShape() as shape if row.family == "chmv2":
            # Four levels, evenly spread: blocks 5, 11, 17, 23 of ViT-L's 24, counted from 0.
            taps = [shape.depth * quarter // 4 for quarter in (1, 2, 3, 4)]
            return CHMv2Config(backbone_config=_vit_config(shape, out_indices=taps, return_class_token=True))
        case ViTShape() as shape:
            return _vit_config(shape)
    raise ModelError(f"{row.name} is not published as .pth files: use its name, or a folder with config.json")


def convert(states: Sequence[Weights], row: ModelRow) -> dict[str, torch.Tensor]:
    """transformers' names and layout for the official weights of a row, one state a file, backbone first.

    Raises
    ------
    ModelError
        If a weight has a name that is not in the published layout.
    """
    if row.family == "convnext":
        return _rename(states[0], CONVNEXT_NAMES, CONVNEXT_UNUSED)
    vit = _rename(_split_qkv(states[0]), VIT_NAMES, VIT_UNUSED)
    if "embeddings.mask_token" in vit:
        vit["embeddings.mask_token"] = vit["embeddings.mask_token"].unsqueeze(0)
    if row.family == "vit":
        return vit
    backbone = {f"backbone.{name}": weight for name, weight in vit.items()}
    return backbone | _rename(states[1], HEAD_NAMES, "")


def _vit_config(shape: ViTShape, **backbone: object) -> DINOv3ViTConfig:
    return DINOv3ViTConfig(
        hidden_size=shape.width,
        num_hidden_layers=shape.depth,
        num_attention_heads=shape.heads,
        intermediate_size=shape.hidden,
        use_gated_mlp=shape.gated,
        hidden_act="silu" if shape.gated else "gelu",
        query_bias=shape.qkv_bias,
        value_bias=shape.qkv_bias,
        key_bias=False,
        num_register_tokens=4,
        layer_norm_eps=1e-5,
        **backbone,
    )


def _split_qkv(state: Weights) -> dict[str, torch.Tensor]:
    """The stacked projection as three, in the order query, key, value (layers/attention.py 105-113)."""
    split: dict[str, torch.Tensor] = {}
    for name, weight in state.items():
        stacked = re.fullmatch(r"(blocks\.\d+\.attn\.)qkv\.(weight|bias)", name)
        if stacked is None:
            split[name] = weight
        else:
            before, after = stacked.groups()
            split |= {f"{before}{which}.{after}": part for which, part in zip("qkv", weight.chunk(3), strict=True)}
    return split


def _rename(state: Weights, names: Sequence[tuple[str, str]], unused: str) -> dict[str, torch.Tensor]:
    renamed, surplus = {}, []
    for name, weight in state.items():
        if re.fullmatch(unused, name):
            continue
        pattern = next((pair for pair in names if re.fullmatch(pair[0], name)), None)
        if pattern is None:
            surplus.append(name)
        else:
            renamed[re.sub(*pattern, name)] = weight
    if surplus:
        raise ModelError(f"weights that are not in the published layout: {', '.join(sorted(surplus)[:5])}")
    return renamed


def _read(path: Path) -> Weights:
    try:
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise ModelError(
            f"{path} holds more than weights and is not opened: download the official file again"
        ) from error
    except RuntimeError as error:
        raise ModelError(f"{path} is damaged or cut off ({error}): download it again") from error
    if not isinstance(found, dict) or not all(isinstance(weight, torch.Tensor) for weight in found.values()):
        raise ModelError(f"{path} is not a table of weights: download the official file again")
    return found
