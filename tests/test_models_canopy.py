"""Canopy height is transformers' CHMv2 and its spread is that of the same distribution."""

import numpy as np
import pytest
import torch
from tiny_models import canopy_network
from transformers import CHMv2ForDepthEstimation

from geodino.errors import ModelError
from geodino.models.canopy import canopy_forward, height_bins


def reference(network: CHMv2ForDepthEstimation, pixels: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation in float64 of the logits that transformers' own head gives, bin by bin."""
    backbone = network.backbone(pixels)
    taps = list(zip(backbone.feature_maps, backbone.cls_tokens, strict=True))
    logits = network.head(taps, pixels.shape[2] // 16, pixels.shape[3] // 16).double().numpy()
    share = np.linspace(1, 0, logits.shape[1])
    log = np.exp(np.linspace(np.log(0.001), np.log(12), logits.shape[1]))
    bins = 8 * (share * log + (1 - share) * np.linspace(0.001, 12, logits.shape[1])).reshape(1, -1, 1, 1)
    weights = np.maximum(logits, 0) + 1e-8
    weights /= weights.sum(axis=1, keepdims=True)
    mean = (weights * bins).sum(axis=1)
    return mean, np.sqrt((weights * (bins - mean[:, None]) ** 2).sum(axis=1))


@pytest.mark.parametrize("readout", ["project", "add", "ignore"])
@pytest.mark.parametrize("shape", [(2, 64, 96), (1, 80, 48), (1, 160, 160)])
@torch.no_grad()
def test_height_is_that_of_transformers_and_spread_that_of_its_distribution(
    readout: str, shape: tuple[int, int, int]
) -> None:
    network = canopy_network(readout_type=readout)
    batch, rows, cols = shape
    pixels = torch.randn(batch, 3, rows, cols)

    height, spread = canopy_forward(network, pixels)

    expected = network(pixels).predicted_depth
    assert expected.std() > 0.1, "a flat map would prove nothing"
    assert height.shape == spread.shape == expected.shape
    # Both sum float32 in another order; a height is off by a few units in the last place of 30 m.
    torch.testing.assert_close(height, expected, atol=1e-3, rtol=0)
    mean, deviation = reference(network, pixels)
    np.testing.assert_allclose(height, mean, atol=1e-3)
    np.testing.assert_allclose(spread, deviation, atol=1e-3)


@torch.no_grad()
def test_bins_are_those_of_transformers_in_metres() -> None:
    network = canopy_network()
    ours = height_bins(network.config, torch.device("cpu"))
    theirs = network.features_to_depth._create_mixlog_bins(256, torch.device("cpu"))
    torch.testing.assert_close(ours, 8 * theirs)
    np.testing.assert_allclose(ours[[0, 64, 128, 192, 255]], [0.008, 6.1, 24.6, 56.8, 96.0], atol=0.05)


@torch.no_grad()
def test_dead_logits_read_as_the_mean_bin_as_in_the_reference() -> None:
    network = canopy_network()
    last = network.head.conv_depth.head[-1]
    last.weight.zero_()
    last.bias.fill_(-1.0)
    height, spread = canopy_forward(network, torch.randn(1, 3, 64, 64))
    bins = height_bins(network.config, torch.device("cpu")).double()
    assert bins.mean().item() == pytest.approx(33.15, abs=0.01)
    torch.testing.assert_close(height, torch.full_like(height, bins.mean()), atol=1e-3, rtol=0)
    torch.testing.assert_close(spread, torch.full_like(spread, bins.std(correction=0)), atol=1e-3, rtol=0)


@pytest.mark.parametrize("alive", [0, 100, 255])
@torch.no_grad()
def test_a_single_live_bin_has_its_height_and_no_spread(alive: int) -> None:
    network = canopy_network()
    last = network.head.conv_depth.head[-1]
    last.weight.zero_()
    last.bias.fill_(-1.0)
    last.bias[alive] = 5.0
    height, spread = canopy_forward(network, torch.randn(1, 3, 64, 64))
    expected = height_bins(network.config, torch.device("cpu"))[alive]
    torch.testing.assert_close(height, torch.full_like(height, expected), atol=1e-3, rtol=0)
    # At 96 m the squares differ in their eighth digit: float32 leaves a few centimetres.
    assert spread.min() >= 0 and spread.max() < 0.05


@torch.no_grad()
def test_every_pixel_is_read_whatever_the_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    network, pixels = canopy_network(), torch.randn(1, 3, 64, 96)
    whole = canopy_forward(network, pixels)
    monkeypatch.setattr("geodino.models.canopy._CPU_CHUNK", 1000)
    for chunked, expected in zip(canopy_forward(network, pixels), whole, strict=True):
        torch.testing.assert_close(chunked, expected, atol=1e-4, rtol=0)


def test_gradients_reach_every_weight_that_height_depends_on() -> None:
    network = canopy_network()
    height, spread = canopy_forward(network, torch.randn(1, 3, 64, 64))
    (height.mean() + spread.mean()).backward()
    without = {name for name, weight in network.named_parameters() if weight.grad is None or not weight.grad.any()}
    # The mask token is only for pretraining; softmax does not feel a bias that all keys share.
    assert {name for name in without if "mask_token" not in name and "k_proj.bias" not in name} == set()
    assert all(torch.isfinite(weight.grad).all() for weight in network.parameters() if weight.grad is not None)


def test_the_head_stays_in_float32_under_autocast() -> None:
    network, pixels = canopy_network(), torch.randn(1, 3, 64, 64)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        height, spread = canopy_forward(network, pixels)
    assert height.dtype == spread.dtype == torch.float32
    # bf16 has 8 bits: heights near 30 m that went through it would lie on steps of 0.125 m.
    assert len(height.unique()) > height.numel() // 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"norm_strategy": "softmax"}, "norm softmax are not supported"),
        ({"bins_strategy": "log"}, "bins log with norm"),
        ({"number_output_channels": 1}, "number_output_channels 1 gives no distribution"),
    ],
)
def test_a_config_without_a_mixlog_distribution_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        canopy_forward(canopy_network(**changes), torch.randn(1, 3, 64, 64))
