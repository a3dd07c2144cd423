"""The trees of a run as files: trees.parquet, trees.gpkg and, where crowns were made, crowns.parquet."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from geodino.outputs.folder import whole_file
from geodino.outputs.geopackage import Style, write_geopackage
from geodino.outputs.geoparquet import GeoParquetFile, GeoProfile
from geodino.outputs.styles import BY_HEIGHT, BY_SCORE, tree_style
from geodino.outputs.tree_table import SCHEMA, TreeTable
from geodino.trees import Trees

LAYER = "trees"

# Their outlines take some ten times as many bytes as a point.
CROWNS_PER_GROUP = 25_000


@dataclass(frozen=True)
class TreePaths:
    """Where the files go. Crowns are left out where `crowns` is None, even if trees have them."""

    points: Path
    geopackage: Path
    crowns: Path | None = None


class TreeWriter:
    """Takes trees batch by batch; `tree_writer` makes one.

    Attributes
    ----------
    trees, crowns
        How many it was given.
    """

    def __init__(self, table: TreeTable, points: GeoParquetFile, crowns: GeoParquetFile | None) -> None:
        self.table, self.heights_known = table, False
        self._points, self._crowns = points, crowns

    @property
    def trees(self) -> int:
        return self._points.rows

    @property
    def crowns(self) -> int:
        return self._crowns.rows if self._crowns else 0

    def write(self, trees: Trees) -> None:
        """Write a batch.

        Raises
        ------
        ValueError
            Two of its trees share a cell, one has no place, its scene is not in the table, or a crown is no polygon.
        OutputError
            The disk refuses.
        """
        cells = (trees.row << 32) + trees.col  # as one number: a lattice has less than 2**32 columns
        if len(np.unique(cells)) < len(trees):
            raise ValueError("two trees of a batch are in one cell, and would have one id")
        self._points.append(self.table.points(trees))
        if self._crowns:
            self._crowns.append(self.table.crowns(trees))
        self.heights_known |= bool(np.isfinite(trees.height_m).any())


@contextmanager
def tree_writer(
    paths: TreePaths, table: TreeTable, *, provenance: Mapping[str, str] | None = None
) -> Iterator[TreeWriter]:
    """Write the trees that the block gives; the files are there when it has ended, and none of them where it raises.

    Memory holds one row group, whatever the number of trees. The same trees in the same order give the same bytes in
    the Parquet files, however they are cut into batches. No trees give files without rows and with all columns.

    Parameters
    ----------
    paths
        Files there are replaced.
    table
        Turns trees into rows: it knows the grid, and the scenes that trees point to.
    provenance
        Goes into the Parquet files' key-value metadata and the GeoPackage's `gpkg_metadata`. Leave out the time, or the
        bytes differ from run to run.

    Raises
    ------
    OutputError
        The disk refuses.

    Examples
    --------
    >>> with tree_writer(paths, TreeTable(surface.grid, scenes)) as writer:
    ...     for batch in trees_on_height(surface, settings):
    ...         writer.write(batch)
    """
    profile = GeoProfile(table.grid.crs, "Point", provenance or {})
    outlines = GeoProfile(table.grid.crs, "Polygon", provenance or {})
    with ExitStack() as names:
        points = names.enter_context(whole_file(paths.points))
        package = names.enter_context(whole_file(paths.geopackage))
        with ExitStack() as files:
            crowns = None
            if paths.crowns is not None:
                part = names.enter_context(whole_file(paths.crowns))
                crowns = files.enter_context(GeoParquetFile(part, SCHEMA, outlines, rows_per_group=CROWNS_PER_GROUP))
            writer = TreeWriter(table, files.enter_context(GeoParquetFile(points, SCHEMA, profile)), crowns)
            yield writer
        ways = (BY_HEIGHT, BY_SCORE) if writer.heights_known else (BY_SCORE, BY_HEIGHT)
        styles = [Style(way.title, f"Trees by {way.title.lower()}, sized by height", tree_style(way)) for way in ways]
        # GDAL warns of GeoPackages whose name ends otherwise.
        made = package.with_name(f"{package.name}.gpkg")
        write_geopackage(points, made, LAYER, profile=profile, styles=styles)
        made.replace(package)
