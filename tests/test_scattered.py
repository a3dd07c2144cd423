"""A run over areas that lie far apart: its cost, its files and its picture are those of the areas, not of their box."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from unittest.mock import ANY

import numpy as np
import pytest
import rasterio
import shapely
from matplotlib.image import imread
from rasterio.windows import Window as RasterioWindow

from geodino.aoi import AOIMask, aoi_mask
from geodino.grid import Grid, Window
from geodino.options import RunOptions
from geodino.outputs.levels import stored_blocks
from geodino.outputs.preview import Area, Preview, render_preview
from geodino.pipeline import run, settle
from geodino.plan import Plan
from geodino.products import products_of
from geodino.settings import read_pipeline
from geodino.sheet import LARGEST_PX, lay_out
from geodino.watch import Silent

WEST, NORTH, GSD, SIDE_PX = 494_000.4, 4_878_800.4, 0.6, 26_000
# (col, row) of squares of 100 px: two that nearly touch, and two on their own.
CORNERS = [(200, 300), (310, 300), (25_000, 600), (400, 24_600)]


@pytest.fixture(scope="module")
def imagery(photo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The photo at four corners of a picture of 16 km that is empty elsewhere."""
    path = tmp_path_factory.mktemp("wide") / "wide.tif"
    with rasterio.open(photo) as source:
        pixels, crs = source.read(), source.crs
    with rasterio.open(
        path, "w", driver="GTiff", dtype="uint8", count=3, height=SIDE_PX, width=SIDE_PX, crs=crs, tiled=True,
        transform=rasterio.Affine(GSD, 0, WEST, 0, -GSD, NORTH), blockxsize=256, blockysize=256, compress="deflate",
        sparse_ok=True, photometric="rgb",
    ) as target:  # fmt: skip
        for col, row in CORNERS[::2] + CORNERS[3:]:
            place = RasterioWindow(max(col - 120, 0), max(row - 100, 0), pixels.shape[2], pixels.shape[1])
            target.write(pixels, window=place)
    return path


@pytest.fixture(scope="module")
def aoi(tmp_path_factory: pytest.TempPathFactory) -> Path:
    features = []
    for col, row in CORNERS:
        left, top = WEST + col * GSD, NORTH - row * GSD
        square = shapely.box(left, top - 100 * GSD, left + 100 * GSD, top)
        features.append({"type": "Feature", "properties": {}, "geometry": json.loads(shapely.to_geojson(square))})
    crs = {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::26910"}}
    path = tmp_path_factory.mktemp("aoi") / "plots.geojson"
    path.write_text(json.dumps({"type": "FeatureCollection", "crs": crs, "features": features}))
    return path


@pytest.fixture(scope="module")
def options(imagery: Path, tiny_model: Path) -> RunOptions:
    return RunOptions(sources=(str(imagery),), model=str(tiny_model), precision="fp32", device="cpu")


def planned(aoi: Path | str, options: RunOptions) -> Plan:
    spec = read_pipeline("canopy")
    return settle(spec, aoi, options, str(options.model), products_of(spec, str(options.model)), Silent())


class Stages(Silent):
    """Keeps what stages began, and how far each came of how much."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, int, int]] = []

    def begin(self, title: str, total: int) -> None:
        self.seen.append((title, 0, total))

    def advance(self, done: int, *, hectares: float = 0.0) -> None:
        title, _, total = self.seen[-1]
        self.seen[-1] = (title, done, total)


def test_a_run_over_scattered_plots_writes_little_and_says_what_it_does(
    aoi: Path, options: RunOptions, tmp_path: Path
) -> None:
    watch = Stages()
    record = run("canopy", aoi=aoi, out=tmp_path / "out", options=options, watch=watch)
    assert record.mapped_percent_of_aoi == pytest.approx(100)
    assert watch.seen == [
        ("windows", ANY, ANY), ("maps", 6, 6), ("scenes", 1, 1), ("zones", 4, 4), ("preview", 1, 1),
    ]  # fmt: skip
    for name in ("canopy_height.tif", "canopy_height_spread.tif", "scene.tif"):
        with rasterio.open(tmp_path / "out" / name) as raster:
            assert min(raster.shape) > 24_000 and len(stored_blocks(raster)) <= 12
    # The AOI's file may lie elsewhere: the statistics are the same to the byte.
    elsewhere = tmp_path / "a folder" / aoi.name
    elsewhere.parent.mkdir()
    elsewhere.write_bytes(aoi.read_bytes())
    run("canopy", aoi=elsewhere, out=tmp_path / "again", options=options)
    for name in ("statistics.parquet", "preview.png", "canopy_height.tif"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_plots_far_apart_are_laid_side_by_side_under_their_numbers(aoi: Path, options: RunOptions) -> None:
    plan = planned(aoi, options)
    sheet = lay_out(plan)
    assert [site.name for site in sheet.sites] == ["1, 2", "3", "4"]
    assert sheet.grid.gsd == plan.grid.gsd and max(sheet.shape) < 600 < LARGEST_PX and not sheet.left_out
    whole = Window(0, 0, *sheet.shape)
    for number, site in enumerate(sheet.sites):
        assert site.part.intersection(whole) == site.part
        assert all(site.part.intersection(other.part).empty for other in sheet.sites[:number])
    for feature, at in zip(plan.aoi.features(plan.grid.crs).geometry, (0, 0, 1, 2), strict=True):
        assert shapely.box(*sheet.grid.bounds(sheet.sites[at].window)).contains(feature)


def test_an_aoi_in_one_piece_or_in_near_ones_is_drawn_as_it_lies(options: RunOptions) -> None:
    def sites(*boxes: tuple[int, int, int, int]) -> int:
        shapes = [shapely.box(WEST + a * GSD, NORTH - d * GSD, WEST + c * GSD, NORTH - b * GSD) for a, b, c, d in boxes]
        text = "SRID=26910;" + shapely.to_wkt(shapely.MultiPolygon(shapes), rounding_precision=4)
        return len(lay_out(planned(text, options)).sites)

    assert sites((200, 300, 7_000, 7_000)) == 1
    assert sites((200, 300, 300, 400), (350, 300, 500, 400)) == 1
    assert sites((200, 300, 3_800, 7_000), (3_900, 300, 7_000, 7_000)) == 1
    assert sites((200, 300, 300, 400), (25_000, 600, 25_100, 700)) == 2


def test_no_more_areas_are_drawn_than_can_be_seen(options: RunOptions) -> None:
    squares = [
        shapely.box(x, y, x + 40 + row, y + 40)
        for row, y in enumerate(np.linspace(NORTH - 14_000, NORTH - 200, 14))
        for x in np.linspace(WEST + 100, WEST + 14_000, 14)
    ]
    text = "SRID=26910;" + shapely.to_wkt(shapely.MultiPolygon(squares), rounding_precision=4)
    sheet = lay_out(planned(text, options))
    assert (len(sheet.sites), sheet.left_out) == (150, 46) and max(sheet.shape) <= LARGEST_PX
    assert {site.name for site in sheet.sites} == {""}


def test_areas_side_by_side_have_white_between_them_and_a_map_of_where_they_lie(tmp_path: Path) -> None:
    green = np.zeros((3, 60, 130), np.float32)
    green[1] = 0.5
    shown = Preview(green, np.ones((60, 130), np.bool_), None, 0.6, "Canopy height")
    shown.valid[:, 60:70] = False
    areas = (Area(Window(0, 0, 60, 60), "7", (0.0, 0.0)), Area(Window(0, 70, 60, 60), "8, 9", (20_000.0, 9_000.0)))
    pictures = []
    for number, preview in enumerate((shown, replace(shown, areas=areas))):
        render_preview(preview, tmp_path / f"{number}.png")
        pictures.append(np.round(255 * imread(tmp_path / f"{number}.png")[..., :3]).astype(int))
    face = [np.all(picture == 0xDE, axis=-1).sum() for picture in pictures]
    assert face[1] < face[0] / 2, "what lies between areas is no ground without data"
    assert pictures[1].shape[1] <= 1600 and pictures[1].shape[0] > pictures[0].shape[0]
    # Two squares at the ends of a diagonal, at the top right.
    width = pictures[1].shape[1]
    dark = np.argwhere(pictures[1][50:330, width - 420 :].max(axis=-1) < 40)
    assert np.ptp(dark[:, 1]) > 250 and np.ptp(dark[:, 0]) > 100


def test_a_mask_far_from_all_parts_is_empty_and_near_them_is_what_it_was() -> None:
    from odc.geo.crs import CRS

    grid = Grid(CRS("EPSG:32610"), 1.0)
    parts = shapely.MultiPolygon([shapely.box(10.5, 10.5, 20.5, 20.5), shapely.box(5000, 5000, 5010, 5010)])
    mask = AOIMask(parts, grid)
    assert not mask(Window(-3000, 2000, 500, 500)).any()
    whole = aoi_mask(parts, grid, Window(-24, 0, 24, 40))
    assert whole.sum() == 100
    for row in range(-24, 0, 3):
        for col in range(0, 40, 5):
            window = Window(row, col, 3, 5)
            np.testing.assert_array_equal(mask(window), whole[window.slices_in(Window(-24, 0, 24, 40))])
