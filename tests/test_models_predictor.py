"""A model predicts any number of chips on whatever device, and survives a lack of memory."""

import logging
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_models import canopy_network

from geodino.errors import ConfigError, ModelError
from geodino.models import Model
from geodino.models.catalog import row
from geodino.models.precision import choose_device, choose_precision
from geodino.models.predictor import default_batch_size

CPU = torch.device("cpu")


def loaded(network: torch.nn.Module | None = None, **how: object) -> Model:
    kwargs = {"precision": "fp32", "device": CPU} | how
    unknown = replace(row("nano"), parameters=0)
    return Model(network or canopy_network(), unknown, weights_sha256="0" * 64, **kwargs)


def chips(count: int, side: int = 64) -> np.ndarray:
    return np.random.default_rng(count).random((count, 3, side, side), dtype=np.float32)


class Starved(torch.nn.Module):
    """The embedding of a ViT on a machine that has no memory for more than `most` chips."""

    def __init__(self, inner: torch.nn.Module, most: int, message: str) -> None:
        super().__init__()
        self.inner, self.most, self.message = inner, most, message

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        if len(pixels) > self.most:
            raise RuntimeError(self.message)
        return self.inner(pixels)


def starved(most: int, message: str) -> torch.nn.Module:
    network = canopy_network()
    network.backbone.embeddings = Starved(network.backbone.embeddings, most, message)
    return network


NO_MEMORY = "[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"


def test_any_number_of_chips_gives_the_same_numbers_in_any_batch() -> None:
    images = chips(5)
    alone = loaded(batch_size=1).predict(images)
    assert alone.shape == (5, 2, 64, 64) and alone.dtype == np.float32
    np.testing.assert_allclose(loaded(batch_size=3).predict(images), alone, atol=1e-3)
    assert loaded().predict(images[:0]).shape == (0, 2, 64, 64)


def test_bf16_stays_within_its_rounding_of_float32() -> None:
    images = chips(2, 128)
    exact, rounded = loaded().predict(images), loaded(precision="bf16").predict(images)
    difference = np.abs(exact - rounded)[:, 0]
    assert difference.max() > 0 and difference.mean() < 0.2 * exact[:, 0].std()


def test_in_bf16_only_the_products_of_the_backbone_are_bf16() -> None:
    network = canopy_network()
    loaded(network, precision="bf16")
    in_bf16 = {name for name, weight in network.named_parameters() if weight.dtype == torch.bfloat16}
    assert in_bf16 and all("_proj." in name and name.startswith("backbone.model.layer.") for name in in_bf16)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_network_read_in_bf16_still_has_norms_and_residuals_in_float32(precision: str) -> None:
    network = canopy_network()
    network.backbone.to(torch.bfloat16)
    assert np.isfinite(loaded(network, precision=precision).predict(chips(1))).all()
    for name, weight in network.named_parameters():
        product = "_proj.weight" in name or "_proj.bias" in name
        assert weight.dtype == (torch.bfloat16 if product and precision == "bf16" else torch.float32), name


def test_parameters_are_counted_where_the_catalog_does_not_know_them() -> None:
    network = canopy_network()
    assert loaded(network).row.parameters == sum(weight.numel() for weight in network.parameters())


@pytest.mark.parametrize("most", [1, 2, 3])
def test_a_lack_of_memory_halves_the_batch_and_says_so(most: int, caplog: pytest.LogCaptureFixture) -> None:
    images = chips(7)
    model = loaded(starved(most, NO_MEMORY), batch_size=7)
    with caplog.at_level(logging.WARNING):
        found = model.predict(images)
    np.testing.assert_allclose(found, loaded().predict(images), atol=1e-3)
    assert "cpu ran out of memory with 7 windows of 64 px: going on with 3 at a time" in caplog.text
    said = len(caplog.records)
    model.predict(images)
    assert len(caplog.records) == said, "what was learnt about the memory was forgotten"


def test_a_single_chip_too_many_is_an_error_with_a_way_out() -> None:
    with pytest.raises(ModelError, match="one window of 64 px does not fit in the memory of cpu"):
        loaded(starved(0, NO_MEMORY)).predict(chips(2))


def test_an_error_that_is_not_about_memory_is_not_hidden() -> None:
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        loaded(starved(0, "mat1 and mat2 shapes cannot be multiplied")).predict(chips(2))


def test_infinite_heights_are_refused() -> None:
    network = canopy_network()
    with torch.no_grad():
        network.head.conv_depth.head[-1].bias[3] = torch.inf
    with pytest.raises(ModelError, match="nano gave NaN or infinite canopy values on cpu in fp32"):
        loaded(network).predict(chips(1))


@pytest.mark.parametrize("shape", [(3, 64, 64), (1, 4, 64, 64), (1, 3, 48, 64), (1, 3, 64, 80)])
def test_chips_that_the_head_would_enlarge_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ModelError, match=r"must be \(B, 3, S, S\) with S a multiple of 32"):
        loaded().predict(np.zeros(shape, np.float32))


def test_a_batch_on_the_cpu_has_a_thousand_tokens() -> None:
    assert [default_batch_size(side, CPU) for side in (256, 320, 512, 1024)] == [4, 3, 1, 1]


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "cpu:0", "cuda:-1", ""])
def test_an_unknown_device_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="is unknown: use auto, cpu, cuda, cuda:N or mps"):
        choose_device(name)


def test_a_device_that_is_not_there_is_refused() -> None:
    number = torch.cuda.device_count()
    with pytest.raises(ConfigError, match=f"cuda:{number} is not there: torch .* sees {number} GPUs"):
        choose_device(f"cuda:{number}")


def test_auto_takes_a_gpu_where_there_is_one() -> None:
    expected = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    assert choose_device("auto").type == expected


def test_precision_asked_for_is_kept_and_an_unknown_one_refused() -> None:
    assert (choose_precision("fp32", CPU), choose_precision("bf16", CPU)) == ("fp32", "bf16")
    with pytest.raises(ConfigError, match="precision fp16 is unknown: use auto, fp32 or bf16"):
        choose_precision("fp16", CPU)


def test_a_batch_of_no_chips_is_refused() -> None:
    with pytest.raises(ModelError, match="batch size 0 must be at least 1"):
        loaded(batch_size=0)
