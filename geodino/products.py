"""What a run makes: which heads it asks, how it finds trees, and the files that come of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from geodino.crowns import CrownSettings
from geodino.errors import ModelError
from geodino.models.as_run import ModelAsRun
from geodino.models.loading import facts_of
from geodino.models.pyramid import CELL
from geodino.settings import MOST_SPACING, PipelineSpec, TreesSpec
from geodino.trees import HeatSettings
from geodino.treetops import HeightSettings
from geodino.zonal import ground

# Map -> file. Both maps come of one head.
MAPS = {"height": ground.HEIGHT, "spread": ground.SPREAD}
TREES, DENSITY = ground.TREES, ground.DENSITY
TREES_PACKAGE, TILES, CROWNS = "trees.gpkg", "trees.pmtiles", "crowns.parquet"
# How QGIS draws them: it looks for the style of a file in one of the same name.
CROWNS_STYLE, DENSITY_STYLE, SCENE_STYLE = "crowns.qml", "tree_density.qml", "scene.qml"
STATISTICS, STATISTICS_CSV, PREVIEW = "statistics.parquet", "statistics.csv", "preview.png"


@dataclass(frozen=True)
class Products:
    """What a pipeline makes of a model.

    Attributes
    ----------
    tasks
        The heads that are asked, in one pass.
    find_on
        What trees are found on; None: they are not found.
    """

    tasks: tuple[str, ...]
    find_on: Literal["heat", "height"] | None

    @property
    def maps(self) -> dict[str, str]:
        """The maps that become files."""
        return dict(MAPS) if "canopy" in self.tasks else {}


def products_of(spec: PipelineSpec, model: str) -> Products:
    """What a pipeline makes of a model, from the model's facts alone.

    Raises
    ------
    ModelError
        There is no such model, its weights are out of reach, or it has no head for what the pipeline makes.
    """
    wants_trees = spec.trees is not None and spec.trees.find_on != "height"
    only_trees = spec.task == "trees" and wants_trees
    # Refuses by name: the head that the pipeline cannot do without.
    try:
        heads = facts_of(model, "trees" if only_trees else "height").heads
    except ModelError:
        if not (only_trees and spec.trees is not None and spec.trees.find_on == "auto"):
            raise
        heads = facts_of(model, "height").heads
    canopy = ("canopy",) if "height" in heads else ()
    if spec.trees is None:
        return Products(canopy, None)
    if "trees" in heads and wants_trees:
        return Products((*canopy, "trees"), "heat")
    if spec.trees.find_on == "heat":
        raise ModelError(
            f"{model} has no head for trees, and the pipeline finds them on its heat: train one with `geodino train "
            "trees`, or say `find_on: height` in the pipeline's section trees"
        )
    return Products(canopy, "height")


def context_m(products: Products, spec: PipelineSpec, gsd_m: float) -> float:
    """Metres around the AOI that must be known for its trees to be what they would be in a larger AOI."""
    if products.find_on is None or spec.trees is None:
        return 0.0
    if products.find_on == "heat":
        return (MOST_SPACING + 1) * CELL * gsd_m
    return height_settings(spec.trees).context_m + 2 * gsd_m


def heat_settings(spec: TreesSpec, model: ModelAsRun) -> HeatSettings:
    """How trees are found on a model's heat: as the pipeline says, else as the model's training chose."""
    learned = model.heads.get("trees", {})
    fallback = HeatSettings()
    threshold, spacing = spec.threshold, spec.spacing
    return HeatSettings(
        threshold=float(learned.get("threshold", fallback.threshold)) if threshold == "model" else threshold,
        spacing=int(learned.get("spacing", fallback.spacing)) if spacing == "model" else spacing,
    )


def height_settings(spec: TreesSpec) -> HeightSettings:
    """How trees are found on height, as the pipeline says."""
    return HeightSettings(
        min_height_m=spec.min_height_m,
        allometry=spec.allometry,
        max_diameter_m=spec.max_diameter_m,
        smoothing_m=spec.smoothing_m,
        crowns=CrownSettings(spec.crown_min_share, spec.crown_reach) if spec.crowns else None,
    )
