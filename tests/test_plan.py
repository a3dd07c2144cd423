"""What a plan says of imagery that it leaves out, and where none is left."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import rasterio

from geodino.errors import SourceError
from geodino.options import RunOptions
from geodino.pipeline import estimate, run
from geodino.watch import Silent

# Some 50 m within the photo.
AOI = "SRID=26910;POLYGON((494020 4878750, 494060 4878750, 494060 4878720, 494020 4878720, 494020 4878750))"


@pytest.fixture(scope="module")
def options(photo: Path, tiny_model: Path) -> RunOptions:
    return RunOptions(sources=(str(photo),), model=str(tiny_model), precision="fp32", device="cpu")


class Notes(Silent):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, sentence: str) -> None:
        self.said.append(sentence)


def test_a_run_tells_what_it_leaves_out(options: RunOptions, photo: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for year in (2019, 2020):
        with (
            rasterio.open(photo) as source,
            rasterio.open(tmp_path / f"in/{year}.tif", "w", **source.profile) as target,
        ):
            target.write(source.read())
            target.update_tags(TIFFTAG_DATETIME=f"{year}:06:01 12:00:00")
    watch, asked = Notes(), replace(options, sources=(str(tmp_path / "in"),), datetime="2020")
    run("canopy", aoi=AOI, out=tmp_path / "out", options=asked, watch=watch)
    assert "left out: 1 outside of 2020 (2019)" in watch.said


def test_imagery_that_is_all_sifted_out_is_told_with_what_did_it(options: RunOptions, photo: Path) -> None:
    dated = replace(options, datetime="1999")
    with pytest.raises(SourceError, match=r"1 of unknown date.*asked for: datetime 1999; ask for more") as caught:
        estimate("canopy", aoi=AOI, options=dated)
    assert "lon, lat" not in str(caught.value)
    far = replace(options, collections=("naip",), max_cloud=20)
    with pytest.raises(
        SourceError, match=r"covers the AOI .*off the AOI.*: collection naip, cloud up to 20 %; .*lon, lat"
    ):
        estimate("canopy", aoi="10,50,10.001,50.001", options=far)
