"""Trees of real towns, from GeoTIFFs in to points out: they stand where the model sees them, to half a pixel."""

from __future__ import annotations

from pathlib import Path

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
import rasterio
import shapely

from geodino.evaluation.matching import match_points
from geodino.models import load_model
from geodino.models.pyramid import CELL
from geodino.options import RunOptions
from geodino.pipeline import run
from geodino.trees import find_peaks

GSD, WITHIN_M = 0.6, 6.0
Points = npt.NDArray[np.float64]


def f1(found: Points, true: Points) -> tuple[int, int]:
    """Twice the hits, and what they are divided by; sums over chips give F1."""
    return 2 * len(match_points(found, true, within=WITHIN_M)), len(found) + len(true)


def test_trees_of_a_run_are_those_that_evaluate_counts(shared_data: Path, tmp_path: Path) -> None:
    data = shared_data / "urban-trees"
    table = pd.read_csv(data / "chips.csv")
    chosen = table[(table["split"] == "val") & (table["n_trees"] > 30)].groupby("city").first().head(5)
    labels = gpd.read_parquet(data / "trees.parquet")
    model = load_model("nano", precision="fp32", device="cpu")
    head = model.heads["trees"]
    through_run, direct, apart = np.zeros(2), np.zeros(2), []
    for chip in chosen.itertuples():
        image = data / "images" / f"{chip.chip}.tif"
        options = RunOptions(sources=(str(image),), model="nano", precision="fp32", device="cpu")
        aoi = f"SRID={chip.epsg};{shapely.box(chip.left, chip.bottom, chip.right, chip.top).wkt}"
        run("trees", aoi=aoi, out=tmp_path / chip.chip, options=options)
        points = gpd.read_parquet(tmp_path / chip.chip / "trees.parquet").geometry
        found = np.column_stack([points.x, points.y])
        with rasterio.open(image) as raster:
            pixels = raster.read([1, 2, 3]).astype(np.float32)[None] / 255
        heat, _, right, down = model.maps(pixels, ("trees",))["trees"][0]
        settings = {"threshold": float(head["threshold"]), "spacing": int(head["spacing"])}
        seen = find_peaks(heat, np.stack([right, down]), cell=CELL, **settings).points
        seen = np.column_stack([chip.left + seen[:, 0] * GSD, chip.top - seen[:, 1] * GSD])
        here = labels[labels["chip"] == chip.chip]
        true = here[["x_utm", "y_utm"]].to_numpy(np.float64)
        through_run += f1(found, true)
        direct += f1(seen, true)
        both = match_points(found, seen, within=1.5)
        apart.append(found[both.predicted] - seen[both.true])
    assert through_run[0] / through_run[1] == pytest.approx(direct[0] / direct[1], abs=0.03)
    moved = np.concatenate(apart)
    assert len(moved) > 0.75 * through_run[1] / 2
    assert np.abs(np.median(moved, axis=0)).max() < GSD / 4 and np.abs(moved.mean(axis=0)).max() < GSD / 2
