"""The published .pth layouts become transformers' networks: each key, each shape, the same numbers."""

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from geodino.errors import ModelError
from geodino.models.catalog import ConvNeXtShape, ModelRow, ViTShape, row, rows
from geodino.models.checkpoint import NETWORKS, build
from geodino.models.loading import load_backbone, load_model
from geodino.models.official import config_of, convert, official_row

Shapes = dict[str, tuple[int, ...]]

PUBLISHED = [known.name for known in rows() if known.official]
SMALL_VIT = ViTShape(width=32, depth=4, heads=2, hidden=64)
SMALL_CONVNEXT = ConvNeXtShape((1, 1, 2, 1), (8, 16, 24, 32))


def vit_layout(shape: ViTShape, *, untied: bool) -> Shapes:
    """Names and shapes of a published ViT file (dinov3/models/vision_transformer.py 42-183, layers/)."""
    width, hidden = shape.width, shape.hidden
    found: Shapes = {
        "cls_token": (1, 1, width),
        "storage_tokens": (1, 4, width),
        "mask_token": (1, width),
        "patch_embed.proj.weight": (width, 3, 16, 16),
        "patch_embed.proj.bias": (width,),
        "rope_embed.periods": (width // shape.heads // 4,),
        "norm.weight": (width,),
        "norm.bias": (width,),
    }
    if untied:
        found |= {"local_cls_norm.weight": (width,), "local_cls_norm.bias": (width,)}
    block: Shapes = {
        **{f"norm{i}.{part}": (width,) for i in (1, 2) for part in ("weight", "bias")},
        "attn.qkv.weight": (3 * width, width),
        "attn.proj.weight": (width, width),
        "attn.proj.bias": (width,),
        "ls1.gamma": (width,),
        "ls2.gamma": (width,),
    }
    if shape.qkv_bias:
        block |= {"attn.qkv.bias": (3 * width,), "attn.qkv.bias_mask": (3 * width,)}
    layers = {"w1": (hidden, width), "w2": (hidden, width), "w3": (width, hidden)}
    if not shape.gated:
        layers = {"fc1": (hidden, width), "fc2": (width, hidden)}
    for name, size in layers.items():
        block |= {f"mlp.{name}.weight": size, f"mlp.{name}.bias": size[:1]}
    return found | {f"blocks.{i}.{name}": size for i in range(shape.depth) for name, size in block.items()}


def convnext_layout(shape: ConvNeXtShape) -> Shapes:
    """Names and shapes of a published ConvNeXt file (dinov3/models/convnext.py 29-216)."""
    widths = shape.widths
    found: Shapes = {"downsample_layers.0.0.weight": (widths[0], 3, 4, 4), "downsample_layers.0.0.bias": (widths[0],)}
    found |= {f"downsample_layers.0.1.{part}": (widths[0],) for part in ("weight", "bias")}
    for stage in (1, 2, 3):
        before, after = widths[stage - 1], widths[stage]
        found |= {f"downsample_layers.{stage}.0.{part}": (before,) for part in ("weight", "bias")}
        found[f"downsample_layers.{stage}.1.weight"] = (after, before, 2, 2)
        found[f"downsample_layers.{stage}.1.bias"] = (after,)
    for stage, (depth, width) in enumerate(zip(shape.depths, widths, strict=True)):
        block: Shapes = {
            "gamma": (width,),
            "dwconv.weight": (width, 1, 7, 7),
            "dwconv.bias": (width,),
            "norm.weight": (width,),
            "norm.bias": (width,),
            "pwconv1.weight": (4 * width, width),
            "pwconv1.bias": (4 * width,),
            "pwconv2.weight": (width, 4 * width),
            "pwconv2.bias": (width,),
        }
        found |= {f"stages.{stage}.{i}.{name}": size for i in range(depth) for name, size in block.items()}
    last = {f"{norm}.{part}": (widths[-1],) for norm in ("norm", "norms.3") for part in ("weight", "bias")}
    return found | last


def head_layout(width: int) -> Shapes:
    """Names and shapes of the published CHMv2 head (dinov3/eval/depth/models/dpt_head.py, hub/depthers.py 149-169)."""
    levels = (128, 256, 512, 1024)
    found: Shapes = {}
    for i, channels in enumerate(levels):
        found[f"reassemble_blocks.projects.{i}.conv.weight"] = (channels, width, 1, 1)
        found[f"reassemble_blocks.projects.{i}.conv.bias"] = (channels,)
        found[f"reassemble_blocks.readout_projects.{i}.0.weight"] = (width, 2 * width)
        found[f"reassemble_blocks.readout_projects.{i}.0.bias"] = (width,)
        found[f"convs.{i}.conv.weight"] = (256, channels, 3, 3)
        found[f"fusion_blocks.{i}.project.conv.weight"] = (256, 256, 1, 1)
        found[f"fusion_blocks.{i}.project.conv.bias"] = (256,)
        for unit in (1, 2) if i else (2,):
            for conv in (1, 2):
                found[f"fusion_blocks.{i}.res_conv_unit{unit}.conv{conv}.conv.weight"] = (256, 256, 3, 3)
                found[f"fusion_blocks.{i}.res_conv_unit{unit}.conv{conv}.conv.bias"] = (256,)
    for i, channels, kernel in ((0, 128, 4), (1, 256, 2), (3, 1024, 3)):
        found[f"reassemble_blocks.resize_layers.{i}.weight"] = (channels, channels, kernel, kernel)
        found[f"reassemble_blocks.resize_layers.{i}.bias"] = (channels,)
    for i, size in ((0, (128, 256, 3, 3)), (2, (128, 128, 3, 3)), (4, (256, 128, 1, 1))):
        found[f"conv_depth.head.{i}.weight"] = size
        found[f"conv_depth.head.{i}.bias"] = size[:1]
    return found


def layouts(known: ModelRow) -> list[Shapes]:
    if isinstance(known.shape, ConvNeXtShape):
        return [convnext_layout(known.shape)]
    # hub/backbones.py: SAT ViT-L and both 7B keep a second norm for the local crops of training.
    vit = vit_layout(known.shape, untied="sat493m" in known.official[0] or "vit7b" in known.official[0])
    return [vit, head_layout(known.shape.width)] if known.family == "chmv2" else [vit]


def made(known: ModelRow, device: str) -> list[dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    states = [{name: torch.randn(size, device=device) for name, size in layout.items()} for layout in layouts(known)]
    for state in states:
        for name in [name for name in state if name.endswith("bias_mask")]:
            width = len(state[name]) // 3
            state[name] = torch.cat([torch.ones(width), torch.zeros(width), torch.ones(width)]).to(device)
    return states


@pytest.mark.parametrize("name", PUBLISHED)
def test_at_full_size_each_official_key_becomes_one_of_transformers_and_none_is_left(name: str) -> None:
    known = row(name)
    converted = convert(made(known, "meta"), known)
    with torch.device("meta"):
        expected = NETWORKS[known.family](config_of(known)).state_dict()
    assert {key: weight.shape for key, weight in converted.items()} == {
        key: weight.shape for key, weight in expected.items()
    }
    # Published sizes are rounded, and those of the ConvNeXts count the classifier that was cut off.
    total = sum(weight.numel() for weight in expected.values())
    assert total == pytest.approx(known.parameters, rel=0.05)


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("qkv_bias", [False, True])
@torch.no_grad()
def test_a_converted_vit_computes_what_the_official_definition_says(gated: bool, qkv_bias: bool) -> None:
    shape = replace(SMALL_VIT, gated=gated, qkv_bias=qkv_bias)
    known = replace(row("lvd-vitl16"), shape=shape)
    (state,) = made(known, "cpu")
    state = {name: weight * 0.2 if "weight" in name else weight for name, weight in state.items()}
    network = build(NETWORKS["vit"], "made", config=config_of(known), weights=convert([state], known)).eval()
    pixels = torch.randn(2, 3, 48, 64)
    torch.testing.assert_close(network(pixels).last_hidden_state, plain_vit(state, shape, pixels), atol=2e-4, rtol=1e-4)


def plain_vit(state: dict[str, torch.Tensor], shape: ViTShape, pixels: torch.Tensor) -> torch.Tensor:
    """The official ViT from its own weights, written out: all tokens after the last norm."""
    width, heads = shape.width, shape.heads
    size = width // heads
    patches = functional.conv2d(pixels, state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], stride=16)
    rows, cols = patches.shape[2:]
    batch = len(pixels)
    tokens = torch.cat(
        [
            state["cls_token"].expand(batch, -1, -1),
            state["storage_tokens"].expand(batch, -1, -1),
            patches.flatten(2).transpose(1, 2),
        ],
        dim=1,
    )
    y = (torch.arange(rows) + 0.5) / rows * 2 - 1
    x = (torch.arange(cols) + 0.5) / cols * 2 - 1
    periods = 100 ** (torch.arange(size // 4) * 2 / (size // 2))
    places = torch.stack([y[:, None].expand(rows, cols), x[None].expand(rows, cols)], dim=-1).reshape(-1, 2)
    angles = (2 * torch.pi * places[:, :, None] / periods).flatten(1).repeat(1, 2)

    def turn(vectors: torch.Tensor) -> torch.Tensor:
        first, second = vectors[..., 5:, : size // 2], vectors[..., 5:, size // 2 :]
        turned = vectors[..., 5:, :] * angles.cos() + torch.cat([-second, first], dim=-1) * angles.sin()
        return torch.cat([vectors[..., :5, :], turned], dim=-2)

    def norm(vectors: torch.Tensor, name: str) -> torch.Tensor:
        return functional.layer_norm(vectors, (width,), state[f"{name}.weight"], state[f"{name}.bias"], eps=1e-5)

    def linear(vectors: torch.Tensor, name: str) -> torch.Tensor:
        return functional.linear(vectors, state[f"{name}.weight"], state[f"{name}.bias"])

    for i in range(shape.depth):
        block = f"blocks.{i}"
        bias = state[f"{block}.attn.qkv.bias"] * state[f"{block}.attn.qkv.bias_mask"] if shape.qkv_bias else None
        stacked = functional.linear(norm(tokens, f"{block}.norm1"), state[f"{block}.attn.qkv.weight"], bias)
        q, k, v = stacked.reshape(batch, -1, 3, heads, size).permute(2, 0, 3, 1, 4)
        weights = (turn(q) @ turn(k).transpose(-1, -2) / size**0.5).softmax(dim=-1)
        attended = linear((weights @ v).transpose(1, 2).flatten(2), f"{block}.attn.proj")
        tokens = tokens + state[f"{block}.ls1.gamma"] * attended
        seen = norm(tokens, f"{block}.norm2")
        if shape.gated:
            inner = functional.silu(linear(seen, f"{block}.mlp.w1")) * linear(seen, f"{block}.mlp.w2")
            thought = linear(inner, f"{block}.mlp.w3")
        else:
            thought = linear(functional.gelu(linear(seen, f"{block}.mlp.fc1")), f"{block}.mlp.fc2")
        tokens = tokens + state[f"{block}.ls2.gamma"] * thought
    return norm(tokens, "norm")


@torch.no_grad()
def test_a_converted_convnext_computes_what_the_official_definition_says() -> None:
    known = replace(row("lvd-convnext-tiny"), shape=SMALL_CONVNEXT)
    (state,) = made(known, "cpu")
    state = {name: weight * 0.2 for name, weight in state.items()}
    network = build(NETWORKS["convnext"], "made", config=config_of(known), weights=convert([state], known)).eval()
    pixels = torch.randn(2, 3, 64, 96)

    def norm(image: torch.Tensor, name: str) -> torch.Tensor:
        last = image.permute(0, 2, 3, 1)
        normed = functional.layer_norm(last, last.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], eps=1e-6)
        return normed.permute(0, 3, 1, 2)

    def conv(image: torch.Tensor, name: str, **how: int) -> torch.Tensor:
        weight = state[f"{name}.weight"]
        weight = weight if weight.dim() == 4 else weight[:, :, None, None]
        return functional.conv2d(image, weight, state[f"{name}.bias"], **how)

    image = pixels
    for stage, depth in enumerate(SMALL_CONVNEXT.depths):
        down = f"downsample_layers.{stage}"
        image = (
            norm(conv(image, f"{down}.0", stride=4), f"{down}.1")
            if stage == 0
            else conv(norm(image, f"{down}.0"), f"{down}.1", stride=2)
        )
        for i in range(depth):
            block = f"stages.{stage}.{i}"
            inner = norm(conv(image, f"{block}.dwconv", padding=3, groups=image.shape[1]), f"{block}.norm")
            inner = conv(functional.gelu(conv(inner, f"{block}.pwconv1")), f"{block}.pwconv2")
            image = image + state[f"{block}.gamma"][:, None, None] * inner
    torch.testing.assert_close(
        network(pixels).last_hidden_state[:, 1:], norm(image, "norm").flatten(2).transpose(1, 2), atol=1e-4, rtol=1e-4
    )


# Weights of the head whose shapes are alike, so that a swapped pair would pass the test of shapes.
HEAD_PAIRS = (
    ("reassemble_blocks.readout_projects.2.0.weight", "head.reassemble_stage.readout_projects.2.0.weight"),
    ("reassemble_blocks.projects.1.conv.bias", "head.reassemble_stage.layers.1.projection.bias"),
    ("reassemble_blocks.resize_layers.1.bias", "head.reassemble_stage.layers.1.resize.bias"),
    ("fusion_blocks.0.res_conv_unit2.conv1.conv.weight", "head.fusion_layers.0.residual_layer2.convolution1.weight"),
    ("fusion_blocks.3.res_conv_unit1.conv1.conv.weight", "head.fusion_layers.3.residual_layer1.convolution1.weight"),
    ("fusion_blocks.3.res_conv_unit1.conv2.conv.bias", "head.fusion_layers.3.residual_layer1.convolution2.bias"),
    ("fusion_blocks.2.res_conv_unit2.conv2.conv.weight", "head.fusion_layers.2.residual_layer2.convolution2.weight"),
    ("fusion_blocks.1.project.conv.bias", "head.fusion_layers.1.projection.bias"),
    ("conv_depth.head.0.bias", "head.conv_depth.head.0.bias"),
    ("conv_depth.head.2.bias", "head.conv_depth.head.2.bias"),
)


@pytest.mark.parametrize(("official", "ours"), HEAD_PAIRS)
def test_weights_of_the_head_that_look_alike_are_not_swapped(official: str, ours: str) -> None:
    known = replace(row("chmv2"), shape=SMALL_VIT)
    states = made(known, "cpu")
    assert torch.equal(convert(states, known)[ours], states[1][official])


def test_a_surplus_official_weight_is_named() -> None:
    known = replace(row("chmv2"), shape=SMALL_VIT)
    states = made(known, "meta")
    states[1]["project.conv.weight"] = torch.zeros(1)
    with pytest.raises(ModelError, match=r"not in the published layout: project\.conv\.weight"):
        convert(states, known)


def test_a_missing_official_weight_is_named_by_its_new_name() -> None:
    known = replace(row("sat-vitl16"), shape=SMALL_VIT)
    (state,) = made(known, "cpu")
    del state["blocks.1.ls2.gamma"]
    with pytest.raises(ModelError, match=r"model\.layer\.1\.layer_scale2\.lambda1 missing"):
        build(NETWORKS["vit"], "made", config=config_of(known), weights=convert([state], known))


def test_files_are_known_by_their_official_names() -> None:
    assert official_row(["dinov3_vits16_pretrain_lvd1689m-08c60483.pth"]) == row("lvd-vits16")
    assert official_row(sorted(row("chmv2").official)) == row("chmv2")
    with pytest.raises(
        ModelError, match=r"no model is published as mine\.pth.*known: .*eadcf0ff\.pth \+ .*3703d643\.pth"
    ):
        official_row(["mine.pth"])


def test_a_file_with_another_hash_than_its_name_says_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "dinov3_vits16_pretrain_lvd1689m-08c60483.pth"
    torch.save({"cls_token": torch.zeros(1)}, path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
    with pytest.raises(ModelError, match=f"its SHA-256 starts {digest}, not 08c60483"):
        load_backbone(path)


class Payload:
    """Writes a file where it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.target,)


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "evil.pth"
    torch.save({"weight": Payload(tmp_path / "run")}, path)
    path = path.rename(tmp_path / f"evil-{hashlib.sha256(path.read_bytes()).hexdigest()[:8]}.pth")
    published = replace(row("lvd-vits16"), official=(path.name,))
    monkeypatch.setattr("geodino.models.catalog._ROWS", (published,))
    with pytest.raises(ModelError, match="holds more than weights and is not opened"):
        load_backbone(path)
    assert not (tmp_path / "run").exists()


@torch.no_grad()
def test_the_two_files_of_chmv2_make_one_canopy_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = replace(row("chmv2"), shape=SMALL_VIT)
    names = []
    for state, part in zip(made(known, "cpu"), ("backbone", "head"), strict=True):
        torch.save(state, tmp_path / "saved.pth")
        digest = hashlib.sha256((tmp_path / "saved.pth").read_bytes()).hexdigest()
        names.append((tmp_path / "saved.pth").rename(tmp_path / f"{part}-{digest[:8]}.pth").name)
    monkeypatch.setattr("geodino.models.catalog._ROWS", (replace(known, official=tuple(names)),))
    of_folder = load_model(tmp_path, device="cpu")
    of_files = load_model(f"{tmp_path / names[1]}+{tmp_path / names[0]}", device="cpu")
    assert of_folder.name == of_files.name == "chmv2"
    assert of_folder.weights_sha256 == of_files.weights_sha256
    with pytest.raises(ModelError, match="no model is published as"):
        load_model(tmp_path / names[0])
