"""The catalog holds every model of the DINOv3 family, with the facts its makers publish."""

import re
import subprocess
import sys

import pytest

from geodino.errors import ModelError
from geodino.models.catalog import ModelRow, ViTShape, row, rows


def test_every_published_dinov3_model_has_a_row() -> None:
    assert {known.name for known in rows()} == {
        "chmv2",
        "nano",
        *(f"sat-{size}16" for size in ("vitl", "vit7b")),
        *(f"lvd-{size}" for size in ("vits16", "vits16plus", "vitb16", "vitl16", "vith16plus", "vit7b16")),
        *(f"lvd-convnext-{size}" for size in ("tiny", "small", "base", "large")),
    }


@pytest.mark.parametrize("known", rows(), ids=lambda known: known.name)
def test_a_row_is_sound(known: ModelRow) -> None:
    assert all(0.2 < mean < 0.5 for mean in known.mean) and all(0.1 < std < 0.3 for std in known.std)
    assert known.licence.url.startswith("https://") and known.pretraining
    assert (known.heads != ()) == (known.family in ("chmv2", "headed"))
    assert known.demonstration == (known.name == "nano")
    assert known.gated == bool(known.official) == (known.hub_id is not None)
    # The name under which the official code looks for a file (dinov3/hub/backbones.py 46-62, 128-147).
    assert all(re.fullmatch(r"dinov3_\w+-[0-9a-f]{8}\.pth", name) for name in known.official)
    if isinstance(known.shape, ViTShape):
        assert known.shape.width % known.shape.heads == 0
        assert known.shape.width // known.shape.heads in (64, 128), "DINOv3 heads have 64 or, in 7B, 128 features"


def test_the_two_red_means_are_kept_apart() -> None:
    assert (row("chmv2").mean[0], row("sat-vitl16").mean[0], row("sat-vit7b16").mean[0]) == (0.420, 0.430, 0.430)
    assert row("chmv2").std == row("sat-vitl16").std == (0.213, 0.156, 0.143)


def test_an_unknown_name_offers_the_nearest() -> None:
    with pytest.raises(ModelError, match="no model named lvd-vitl14; did you mean lvd-vitl16"):
        row("lvd-vitl14")


def test_the_catalog_costs_no_torch() -> None:
    code = "import sys, geodino.models.catalog; print('torch' in sys.modules, 'transformers' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "False False\n"
