"""Dense features lie where their patches do, without [CLS] and registers, as transformers computes them."""

from dataclasses import replace

import pytest
import torch
from tiny_models import convnext_config, randomise, vit_config
from transformers import DINOv3ConvNextBackbone, DINOv3ConvNextModel, DINOv3ViTBackbone, DINOv3ViTModel

from geodino.errors import ModelError
from geodino.models import Backbone
from geodino.models.catalog import row
from geodino.models.dinov3 import vit_taps

CPU = torch.device("cpu")
SHAPES = [(64, 64), (48, 96), (80, 32)]


def backbone(name: str, network: torch.nn.Module, **how: str) -> Backbone:
    return Backbone(network, row(name), weights_sha256="0" * 64, **({"precision": "fp32", "device": CPU} | how))


def normalised(name: str, images: torch.Tensor) -> torch.Tensor:
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (row(name).mean, row(name).std))
    return (images - mean) / std


@pytest.mark.parametrize("shape", SHAPES)
@torch.no_grad()
def test_levels_of_a_vit_are_those_of_the_transformers_backbone(shape: tuple[int, int]) -> None:
    network = randomise(DINOv3ViTModel(vit_config()))
    plain = DINOv3ViTBackbone(vit_config(out_indices=[1, 3, 4], return_class_token=True)).eval()
    plain.load_state_dict(network.state_dict())
    images = torch.rand(2, 3, *shape)
    expected = plain(normalised("sat-vitl16", images))

    found = backbone("sat-vitl16", network).features(images, [1, 3, 4])

    for level, dense, cls in zip(found, expected.feature_maps, expected.cls_tokens, strict=True):
        assert level.dense.shape == (2, 32, shape[0] // 16, shape[1] // 16)
        torch.testing.assert_close(level.dense, dense, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(level.cls, cls, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_by_default_the_last_level_is_given() -> None:
    network = randomise(DINOv3ViTModel(vit_config()))
    images = torch.rand(1, 3, 32, 48)
    expected = network(normalised("lvd-vits16", images)).last_hidden_state
    (found,) = backbone("lvd-vits16", network).features(images)
    # One [CLS], four registers, then the patches row by row.
    torch.testing.assert_close(found.cls, expected[:, 0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.dense, expected[:, 5:].transpose(1, 2).unflatten(2, (2, 3)), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_inner_levels_are_left_without_the_norm_where_the_config_says_so() -> None:
    network = randomise(DINOv3ViTModel(vit_config()))
    plain = DINOv3ViTBackbone(vit_config(out_indices=[2, 4], return_class_token=True, apply_layernorm=False)).eval()
    plain.load_state_dict(network.state_dict())
    pixels = torch.randn(1, 3, 64, 64)
    for tap, cls in zip(vit_taps(network, pixels, [2, 4], norm_all=False), plain(pixels).cls_tokens, strict=True):
        torch.testing.assert_close(tap.cls, cls, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("shape", [(64, 64), (64, 96)])
@torch.no_grad()
def test_levels_of_a_convnext_are_those_of_transformers(shape: tuple[int, int]) -> None:
    network = randomise(DINOv3ConvNextModel(convnext_config()))
    config = convnext_config()
    config.out_indices = [1, 2, 3]
    plain = DINOv3ConvNextBackbone(config).eval()
    plain.load_state_dict({k: v for k, v in network.state_dict().items() if not k.startswith("layer_norm")})
    images = torch.rand(2, 3, *shape)
    pixels = normalised("lvd-convnext-tiny", images)
    inner, last = plain(pixels).feature_maps, network(pixels).last_hidden_state

    *levels, final = backbone("lvd-convnext-tiny", network).features(images, [1, 2, 3, 4])

    for level, dense, cell in zip(levels, inner, (4, 8, 16), strict=True):
        assert level.dense.shape[2:] == (shape[0] // cell, shape[1] // cell)
        torch.testing.assert_close(level.dense, dense, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(level.cls, dense.mean(dim=(2, 3)), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(final.cls, last[:, 0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(final.dense.flatten(2).transpose(1, 2), last[:, 1:], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "network_class", "config"),
    [
        ("sat-vitl16", DINOv3ViTModel, vit_config()),
        ("lvd-convnext-tiny", DINOv3ConvNextModel, convnext_config()),
    ],
)
def test_features_in_bf16_are_float32_and_close(name: str, network_class: type, config: object) -> None:
    network = randomise(network_class(config))
    images = torch.rand(1, 3, 64, 64)
    (exact,) = backbone(name, network).features(images)
    (rounded,) = backbone(name, network, precision="bf16").features(images)
    assert rounded.dense.dtype == rounded.cls.dtype == torch.float32
    error = (rounded.dense - exact.dense).norm() / exact.dense.norm()
    assert 0 < error < 0.03


def test_a_bright_patch_shows_in_its_own_place() -> None:
    network = randomise(DINOv3ViTModel(vit_config()))
    images = torch.full((1, 3, 64, 96), 0.3)
    images[..., 16:32, 64:80] = 1.0
    (plain,) = backbone("sat-vitl16", network).features(torch.full((1, 3, 64, 96), 0.3), [1])
    (bright,) = backbone("sat-vitl16", network).features(images, [1])
    change = (bright.dense - plain.dense)[0].norm(dim=0)
    assert divmod(int(change.argmax()), change.shape[1]) == (1, 4)


@pytest.mark.parametrize("levels", [[0], [5], [], [1, -1]])
def test_a_level_that_is_not_there_is_refused(levels: list[int]) -> None:
    loaded = backbone("sat-vitl16", randomise(DINOv3ViTModel(vit_config())))
    assert loaded.levels == 4
    with pytest.raises(ModelError, match="of sat-vitl16 must be between 1 and 4"):
        loaded.features(torch.rand(1, 3, 64, 64), levels)


def test_the_statistics_are_those_of_the_row() -> None:
    network = randomise(DINOv3ViTModel(vit_config()))
    images = torch.rand(1, 3, 64, 64)
    (first,) = backbone("sat-vitl16", network).features(images)
    other = replace(row("sat-vitl16"), mean=(0.42, 0.411, 0.296))
    (second,) = Backbone(network, other, weights_sha256="", precision="fp32", device=CPU).features(images)
    assert not torch.allclose(first.dense, second.dense)
