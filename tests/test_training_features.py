"""The cache of a frozen backbone's features: whole, taken up where it was cut, or refused by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from evaluation_chips import SIZE, made_chips
from tiny_models import save_backbone

from geodino.errors import ModelError
from geodino.models.network import HeadedNetwork
from geodino.training.augment import Variety
from geodino.training.features import Features, Key, cached_features
from geodino.training.start import begin

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_backbone(tmp_path_factory.mktemp("backbone") / "vit")


class Cache:
    """Features of two chips in a folder, asked for again and again; `computed` counts the looks."""

    def __init__(self, backbone: Path, folder: Path) -> None:
        self.folder, self.computed = folder, 0
        self.chips = made_chips("canopy", 2, heights=np.zeros((2, SIZE, SIZE), np.float32))
        self.network: HeadedNetwork = begin(backbone, self.chips, head="linear", size=SIZE, seed=0).network.eval()
        self.key = Key("b", self.chips.sha256, tuple(self.network.config.taps), SIZE, 2, Variety(), 0)

    def ask(self) -> Features:
        return cached_features(self.folder, self.key, self.chips, self.network, self._seen)

    def _seen(self, images: torch.Tensor) -> torch.Tensor:
        self.computed += len(images)
        return images


@pytest.fixture
def cache(backbone: Path, tmp_path: Path) -> Cache:
    found = Cache(backbone, tmp_path / "features")
    found.ask()
    assert found.computed == 4
    return found


@pytest.mark.parametrize(
    ("name", "kept", "said"),
    [
        (
            "tokens.npy",
            0.75,
            "tokens.npy is damaged or cut short .*: remove .*features, its features are computed anew",
        ),
        ("tokens.npy", 0.0, "tokens.npy is damaged or cut short"),
        ("done.txt", 0.0, "done.txt says '' and not how many of 4 looks are computed: remove"),
        ("key.json", 0.5, "key.json is damaged or missing"),
        ("key.json", 0.0, "key.json is damaged or missing"),
    ],
)
def test_a_damaged_cache_is_refused_and_never_filled_up_with_zeros(
    cache: Cache, name: str, kept: float, said: str
) -> None:
    path = cache.folder / name
    content = path.read_bytes()[: int(kept * path.stat().st_size)]
    path.write_bytes(content)
    with pytest.raises(ModelError, match=said):
        cache.ask()
    assert path.read_bytes() == content


def test_a_cache_that_does_not_say_of_what_it_is_counts_for_nothing(cache: Cache) -> None:
    before = np.array(cache.ask().tokens)
    (cache.folder / "key.json").unlink()
    (cache.folder / "done.txt").write_text("4")
    (cache.folder / "tokens.npy").write_bytes(b"")
    np.testing.assert_array_equal(cache.ask().tokens, before)
    assert cache.computed == 8 and np.abs(before.astype(np.float32)).sum(axis=-1).all()
