"""The preview: the image beside its canopy height, its trees on top, to be looked at without a GIS.

Sizes are in inches at 100 dots, so that a long thin AOI, a wide one and one of a few pixels all get a readable
legend: panels take the shape of the AOI, everything else is laid out around them.
"""

from __future__ import annotations

import math
import textwrap
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.transforms import Transform

from geodino.grid import Window

DOTS_PER_INCH = 100
LARGEST_WIDTH = 16.0
MARGIN, GAP, HEADER_LINE, FOOTER = 0.4, 0.35, 0.24, 1.0
LETTERS_PER_INCH = 12.5  # of 9.5 pt DejaVu Sans, wide ones counted in
NARROWEST_WIDTH = 7.6  # the legend needs as much
NARROWEST_LABEL = 3.0  # "image, 123,456 trees, one in 7 drawn"
WHERE_WIDTH, WHERE_HEIGHT = 4.2, 3.4  # of the map of areas and what is around it
MOST_NAMES = 60  # on that map, readable

# Sand to forest to night. Perceptually uniform: CIELAB lightness falls from 94 to 17, and 256 steps differ by 0.49 to
# 0.74 (CIE76). Never grey, which is nodata.
HEIGHT_COLOURS = LinearSegmentedColormap.from_list(
    "forest", ["#f3eedd", "#dbd795", "#a9c35c", "#6aa84a", "#2f8a4b", "#0c6a4c", "#064a49", "#0a2a3a"]
)
# A colour that no ground and no forest has.
TREE_COLOUR = "#ff2fd0"
NODATA_FACE, NODATA_HATCH = "#dedede", "#b4b4b4"
INK, FAINT, ALARM = "#1c1c1c", "#5c5c5c", "#a8320a"


@dataclass(frozen=True)
class Area:
    """One of several areas that are drawn side by side.

    Attributes
    ----------
    part
        Its pixels of the picture.
    name
        Drawn in its corner and on the map of where they lie; may be empty.
    middle
        Metres east and north of wherever.
    """

    part: Window
    name: str
    middle: tuple[float, float]


@dataclass(frozen=True)
class Preview:
    """What a preview shows.

    Attributes
    ----------
    rgb
        Shape (3, H, W), float32, 0..1: red, green, blue.
    valid
        Shape (H, W), bool: where the image has data.
    height
        Shape (H, W), float32, metres; NaN where there is none. None: no heights were made, and the second panel shows
        the image again, without what is drawn on the first.
    gsd_m
        Metres a pixel of these arrays, after any decimation.
    title
        One line.
    caption
        Small lines below it: model, dates, source.
    demonstration
        Whether the model is one for demonstration; the picture then says so.
    outlines
        Rings of the AOI, each (N, 2), as (col, row) of these arrays, drawn on both panels.
    trees
        Trees drawn on the image, (N, 2), as (col, row) of these arrays; None: none were looked for.
    trees_note
        What is said of them, such as their number.
    areas
        What the picture is put together from, drawn with a map of where it lies; empty where the picture is one.
    """

    rgb: npt.NDArray[np.float32]
    valid: npt.NDArray[np.bool_]
    height: npt.NDArray[np.float32] | None
    gsd_m: float
    title: str
    caption: tuple[str, ...] = ()
    demonstration: bool = False
    outlines: tuple[npt.NDArray[np.float64], ...] = ()
    trees: npt.NDArray[np.float64] | None = None
    trees_note: str = "trees"
    areas: tuple[Area, ...] = ()


@dataclass(frozen=True)
class _Layout:
    """Inches: the two panels' size, whether they lie side by side, and the figure around them."""

    panel_width: float
    panel_height: float
    side_by_side: bool
    header: float = 0.0

    @property
    def gap(self) -> float:
        """Between panels; what is written over a narrow one needs room."""
        return max(GAP, NARROWEST_LABEL - self.panel_width) if self.side_by_side else GAP

    @property
    def figure(self) -> tuple[float, float]:
        across = 2 * self.panel_width + self.gap if self.side_by_side else self.panel_width
        down = self.panel_height if self.side_by_side else 2 * self.panel_height + GAP
        return max(across, NARROWEST_WIDTH - 2 * MARGIN) + 2 * MARGIN, self.header + down + FOOTER

    def panel(self, index: int) -> tuple[float, float, float, float]:
        """Left, bottom, width, height of the first or second panel."""
        middle = self.figure[0] / 2
        left, bottom = middle - self.panel_width / 2, FOOTER
        if self.side_by_side:
            left = middle + self.gap / 2 if index else middle - self.gap / 2 - self.panel_width
        elif not index:
            bottom += self.panel_height + GAP
        return left, bottom, self.panel_width, self.panel_height


def render_preview(preview: Preview, path: Path) -> None:
    """Draw the preview as a PNG of at most 1600 pixels across."""
    layout = _lay_out(*preview.valid.shape)
    room = layout.figure[0] - (WHERE_WIDTH if preview.areas else 0)
    lines = _wrapped(preview, room)
    layout = replace(layout, header=max(1.0 + HEADER_LINE * len(lines), WHERE_HEIGHT if preview.areas else 0))
    width, height = layout.figure
    figure = Figure(figsize=(width, height), dpi=DOTS_PER_INCH, facecolor="white")
    photo = np.dstack([np.moveaxis(np.nan_to_num(preview.rgb), 0, -1).clip(0, 1), preview.valid])
    panels, colours, extend = [("image", photo)], None, "neither"
    if preview.height is not None:
        top = top_of_scale(preview.height)
        colours = ScalarMappable(Normalize(0, top), HEIGHT_COLOURS)
        canopy = colours.to_rgba(np.nan_to_num(preview.height))
        canopy[..., 3] = np.isfinite(preview.height)
        panels.append(("canopy height", canopy))
        extend = "max" if bool((np.nan_to_num(preview.height) > top).any()) else "neither"
    else:
        panels.append(("image", photo))
    if preview.trees is not None:
        panels[0] = (f"image, {preview.trees_note}", photo)
    for index, (label, picture) in enumerate(panels):
        axes = _axes(figure, layout.panel(index))
        _draw_panel(axes, label, picture, preview.areas)
        _draw_outlines(axes, preview)
        if not index and preview.trees is not None:
            _draw_trees(axes, preview.trees, layout.panel_width * DOTS_PER_INCH / preview.valid.shape[1])
    _write_header(figure, preview.title, lines)
    if preview.areas:
        _draw_where(figure, preview.areas)
    _draw_legend(figure, colours, preview.gsd_m * preview.valid.shape[1] / layout.panel_width, extend=extend)
    # No software entry: the same run gives the same bytes.
    figure.savefig(path, format="png", dpi=DOTS_PER_INCH, metadata={"Software": None})


def top_of_scale(height: npt.NDArray[np.float32]) -> float:
    """The height at the end of the colour scale: the 99.5th percentile rounded up to 5 m, at least 5 m."""
    known = height[np.isfinite(height)]
    if not known.size:
        return 5.0
    return max(5.0, 5.0 * math.ceil(float(np.percentile(known, 99.5)) / 5.0))


def round_length(longest: float) -> float:
    """The longest of 1, 2, 5, 10, 20 ... that is not over `longest`, with its power of ten."""
    power = 10.0 ** math.floor(math.log10(longest))
    # The half is for 999.9999..., whose logarithm rounds up to 3.
    return next(step * power for step in (5, 2, 1, 0.5) if step * power <= longest)


def _lay_out(rows: int, cols: int) -> _Layout:
    beside = min((LARGEST_WIDTH - 2 * MARGIN - GAP) / 2 / cols, 8.0 / rows)
    stacked = min(12.0 / cols, 4.6 / rows)
    inches = max(beside, stacked)
    return _Layout(cols * inches, rows * inches, beside >= stacked)


def _axes(figure: Figure, inches: tuple[float, float, float, float]) -> Axes:
    width, height = figure.get_size_inches()
    left, bottom, across, up = inches
    return figure.add_axes((left / width, bottom / height, across / width, up / height))


def _draw_panel(axes: Axes, label: str, picture: npt.NDArray[np.float64], areas: tuple[Area, ...]) -> None:
    if not areas:
        axes.add_patch(_nodata_sign(0, 0, 1, 1, axes.transAxes))
    for area in areas:
        corner, shape = (area.part.col - 0.5, area.part.row - 0.5), area.part.shape
        axes.add_patch(_nodata_sign(*corner, shape[1], shape[0], axes.transData))
        axes.add_patch(
            Rectangle(corner, shape[1], shape[0], fill=False, edgecolor=FAINT, linewidth=0.6, zorder=3, clip_on=False)
        )
        _write_name(axes, area.name, corner)
    enlarged = axes.get_window_extent().width > picture.shape[1]
    axes.imshow(picture, interpolation="nearest" if enlarged else "antialiased", aspect="auto", zorder=2)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_title(label, loc="left", fontsize=10, color=INK, pad=4)
    for spine in axes.spines.values():
        spine.set(color=FAINT, linewidth=0.6, visible=not areas)


def _write_name(axes: Axes, name: str, corner: tuple[float, float]) -> None:
    paper = {"facecolor": "white", "edgecolor": "none", "pad": 1.0}
    text = axes.text(*corner, name, fontsize=7, color=INK, ha="left", va="top", zorder=5)
    if name:
        text.set_bbox(paper)


def _draw_where(figure: Figure, areas: tuple[Area, ...]) -> None:
    """A small map of where the areas lie, at the top right."""
    width, height = figure.get_size_inches()
    places = np.array([area.middle for area in areas])
    east, north = np.maximum(np.ptp(places, axis=0), 1.0)
    inches = min((WHERE_WIDTH - 2 * MARGIN) / east, (WHERE_HEIGHT - 0.9) / north)
    across, up = max(east * inches, 0.2), max(north * inches, 0.2)
    axes = _axes(figure, (width - MARGIN - 0.15 - across, height - 0.5 - up, across, up))
    axes.scatter(places[:, 0], places[:, 1], 9, marker="s", color=INK, linewidths=0, clip_on=False)
    for area in areas if len(areas) <= MOST_NAMES else ():
        axes.annotate(area.name, area.middle, (2.5, 1), textcoords="offset points", fontsize=6, color=FAINT)
    axes.set(
        xlim=(places[:, 0].min(), places[:, 0].min() + east), ylim=(places[:, 1].min(), places[:, 1].min() + north)
    )
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)
    far = max(east, north)
    said = (
        f"where they lie: {far / 1000:.3g} km from end to end"
        if far >= 1000
        else f"where they lie: {far:.3g} m from end to end"
    )
    figure.text(1 - MARGIN / width, 1 - 0.28 / height, said, fontsize=9.5, color=FAINT, ha="right", va="top")


def _wrapped(preview: Preview, width: float) -> list[tuple[str, str, str]]:
    """The lines under the title, none wider than the figure: text, colour, weight."""
    letters = int((width - 2 * MARGIN) * LETTERS_PER_INCH)
    lines = [(part, FAINT, "normal") for line in preview.caption for part in textwrap.wrap(line, letters)]
    if preview.demonstration:
        lines.append(("demonstration model: shows how geodino works, not for decisions", ALARM, "bold"))
    return lines


def _draw_outlines(axes: Axes, preview: Preview) -> None:
    """The AOI's edge: white under black, to be seen on forest and on sand."""
    for ring in preview.outlines:
        # Pixel centres lie on whole numbers here, and the rings count from pixel edges.
        axes.plot(*(ring.T - 0.5), color="white", linewidth=1.8, zorder=3, scalex=False, scaley=False)
        axes.plot(*(ring.T - 0.5), color=INK, linewidth=0.7, zorder=3, scalex=False, scaley=False)


def _draw_trees(axes: Axes, trees: npt.NDArray[np.float64], dots_a_pixel: float) -> None:
    """Rings of three pixels where there is room, dots where there is none."""
    across = float(np.clip(6 * dots_a_pixel, 2.0, 9.0)) * 72 / DOTS_PER_INCH
    hollow = across > 3
    face = "none" if hollow else TREE_COLOUR
    x, y = (trees - 0.5).T
    axes.scatter(x, y, across**2, facecolors=face, edgecolors=TREE_COLOUR, linewidths=0.9 if hollow else 0, zorder=4)


def _write_header(figure: Figure, title: str, lines: list[tuple[str, str, str]]) -> None:
    width, height = figure.get_size_inches()
    figure.text(MARGIN / width, 1 - 0.28 / height, title, fontsize=15, weight="bold", color=INK, va="top")
    for index, (line, colour, weight) in enumerate(lines):
        y = 1 - (0.64 + HEADER_LINE * index) / height
        figure.text(MARGIN / width, y, line, fontsize=9.5, color=colour, weight=weight, va="top")


def _draw_legend(figure: Figure, colours: ScalarMappable | None, metres_per_inch: float, *, extend: str) -> None:
    """From the left: the height scale if there is one, the sign for nodata, the scale bar, north."""
    width, _ = figure.get_size_inches()
    if colours is not None:
        scale = _axes(figure, (MARGIN, 0.5, 2.9, 0.16))
        bar = figure.colorbar(colours, cax=scale, orientation="horizontal", extend=extend)
        bar.set_label("canopy height (m)", fontsize=9, color=INK, labelpad=2)
        bar.ax.tick_params(labelsize=8.5, colors=INK, length=3)
        bar.outline.set_linewidth(0.5)
    canvas = _axes(figure, (0, 0, width, FOOTER))
    canvas.set(xlim=(0, width), ylim=(0, FOOTER))
    canvas.set_axis_off()
    canvas.add_patch(_nodata_sign(3.62, 0.5, 0.28, 0.16, canvas.transData))
    canvas.text(3.98, 0.58, "no data", fontsize=9, color=INK, va="center")
    length_m = round_length(1.7 * metres_per_inch)
    inches = length_m / metres_per_inch
    right = width - MARGIN - 0.5
    canvas.plot([right - inches] * 2 + [right] * 2, [0.64, 0.54, 0.54, 0.64], color=INK, lw=1.4)
    label = f"{length_m / 1000:g} km" if length_m >= 1000 else f"{length_m:g} m"
    canvas.text(right - inches / 2, 0.47, label, fontsize=9, color=INK, ha="center", va="top")
    north = {"arrowstyle": "-|>", "color": INK, "lw": 1.4, "shrinkA": 0, "shrinkB": 0}
    canvas.annotate("", xy=(width - MARGIN - 0.1, 0.78), xytext=(width - MARGIN - 0.1, 0.46), arrowprops=north)
    canvas.text(width - MARGIN - 0.1, 0.42, "N", fontsize=9, color=INK, ha="center", va="top")


def _nodata_sign(left: float, bottom: float, width: float, height: float, frame: Transform) -> Rectangle:
    sign = Rectangle((left, bottom), width, height, transform=frame, facecolor=NODATA_FACE, edgecolor=NODATA_HATCH)
    sign.set(hatch="////", linewidth=0)
    return sign
