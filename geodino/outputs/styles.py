"""How QGIS draws trees, crowns and tree density, without anybody having to set it up: styles in QGIS's own XML.

QGIS looks for the style of a GeoPackage's layer in its table `layer_styles` (src/core/providers/ogr/
qgsogrprovidermetadata.cpp, loadStyle: f_table_schema must be '' and not null), and for that of any other file in one of
the same name that ends in .qml. Symbols are written with `prop` elements, which every QGIS 3 reads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from xml.etree import ElementTree as ET

# Of the QGIS whose XML this is; a newer one converts what has changed since.
QGIS_VERSION = "3.16.0"

UNKNOWN = -9999.0
"""What stands for null where classes are made: no height and no score is that low."""


@dataclass(frozen=True)
class Class:
    """Values above `lower` and up to `upper` (QGIS takes the first class that holds a value), their colour and name."""

    lower: float
    upper: float
    colour: tuple[int, int, int]
    label: str


@dataclass(frozen=True)
class Classes:
    """The classes of one column; null has one of its own, because QGIS leaves out what is in no class."""

    column: str
    title: str
    classes: tuple[Class, ...]

    @property
    def expression(self) -> str:
        return f'coalesce("{self.column}", {UNKNOWN:g})'


def _classes(column: str, title: str, edges: Sequence[float], colours: Sequence[str], labels: Sequence[str]) -> Classes:
    unknown = Class(UNKNOWN, UNKNOWN, (150, 150, 150), "unknown")
    rgb = [(int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)) for colour in colours]
    known = map(Class, edges[:-1], edges[1:], rgb, labels)
    return Classes(column, title, (unknown, *known))


# Tall trees stand in dark crowns and are drawn bright, small ones on bright ground and are drawn dark; none is green.
# Matplotlib's plasma; viridis for the score, so that the two are not taken for each other. Both keep their order for
# all kinds of colour vision.
BY_HEIGHT = _classes(
    "height_m",
    "Height",
    (-100.0, 2.0, 5.0, 10.0, 20.0, 30.0, 200.0),
    ("#0d0887", "#6a00a8", "#b12a90", "#e16462", "#fca636", "#f0f921"),
    ("up to 2 m", "2 to 5 m", "5 to 10 m", "10 to 20 m", "20 to 30 m", "over 30 m"),
)
BY_SCORE = _classes(
    "score",
    "Score",
    (0.0, 0.3, 0.5, 0.7, 0.9, 1.0),
    ("#440154", "#3b528b", "#21918c", "#5ec962", "#fde725"),
    ("up to 0.3", "0.3 to 0.5", "0.5 to 0.7", "0.7 to 0.9", "over 0.9"),
)

DOT_M_PER_M = 0.25
"""A dot is as wide on the ground as a quarter of the tree's height, about what a slender crown is."""
DOT_UNKNOWN_M = 2.0
DOT_LIMITS_MM = (0.8, 4.0)
"""But never narrower or wider than this on the screen, so that trees are seen from afar and not in each other's way."""

# Trees a hectare, and their colours: a cell of 10 m with one tree has 100.
DENSITY_COLOURS: Mapping[float, str] = {
    0: "#f7f4ea",
    25: "#e3e6b5",
    100: "#a9c35c",
    200: "#5b9f49",
    400: "#1f7a4c",
    800: "#064a49",
}


def tree_style(classes: Classes) -> str:
    """QML for points of the tree table, sized by height."""
    low, high = DOT_LIMITS_MM
    size = f'coalesce("height_m" * {DOT_M_PER_M:g}, {DOT_UNKNOWN_M:g})'

    def symbol(parent: ET.Element, name: str, colour: tuple[int, int, int]) -> None:
        layer = _symbol_layer(parent, name, "marker", "SimpleMarker")
        _props(
            layer,
            {
                "name": "circle",
                "color": _rgba(colour, 220),
                "outline_color": "30,30,30,160",
                "outline_style": "solid",
                "outline_width": "0.1",
                "outline_width_unit": "MM",
                "scale_method": "diameter",
                "size": f"{DOT_UNKNOWN_M:g}",
                "size_unit": "MapUnit",
                "size_map_unit_scale": f"3x:0,0,1,{low:g},1,{high:g}",
            },
        )
        _data_defined(layer, "size", size)

    return _graduated(classes, symbol, geometry_type=0)


def crown_style(classes: Classes = BY_HEIGHT) -> str:
    """QML for polygons of the tree table: outlines in the classes' colours over a thin fill."""

    def symbol(parent: ET.Element, name: str, colour: tuple[int, int, int]) -> None:
        _props(
            _symbol_layer(parent, name, "fill", "SimpleFill"),
            {
                "color": _rgba(colour, 50),
                "style": "solid",
                "outline_color": _rgba(colour, 255),
                "outline_style": "solid",
                "outline_width": "0.3",
                "outline_width_unit": "MM",
                "joinstyle": "bevel",
            },
        )

    return _graduated(classes, symbol, geometry_type=2)


def density_style() -> str:
    """QML for tree_density.tif: trees per hectare from pale to dark green, what is over the last colour in that."""
    root = _root()
    first, *_, last = (f"{value:g}" for value in DENSITY_COLOURS)
    renderer = ET.SubElement(
        ET.SubElement(root, "pipe"),
        "rasterrenderer",
        type="singlebandpseudocolor",
        band="1",
        opacity="1",
        alphaBand="-1",
        classificationMin=first,
        classificationMax=last,
    )
    ET.SubElement(renderer, "rasterTransparency")
    shader = ET.SubElement(
        ET.SubElement(renderer, "rastershader"),
        "colorrampshader",
        colorRampType="INTERPOLATED",
        classificationMode="1",
        clip="0",
        minimumValue=first,
        maximumValue=last,
    )
    for value, colour in DENSITY_COLOURS.items():
        ET.SubElement(shader, "item", value=f"{value:g}", label=f"{value:g} trees/ha", color=colour, alpha="255")
    return _text(root)


# Okabe and Ito (2008), "Color universal design", without black: told apart by all kinds of colour vision.
SCENE_COLOURS = ("#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7")


def scene_style(labels: Sequence[str]) -> str:
    """QML for scene.tif: one colour and one label a scene, the first for value 1; neighbours in order differ."""
    root = _root()
    renderer = ET.SubElement(
        ET.SubElement(root, "pipe"), "rasterrenderer", type="paletted", band="1", opacity="1", alphaBand="-1"
    )
    ET.SubElement(renderer, "rasterTransparency")
    palette = ET.SubElement(renderer, "colorPalette")
    for value, label in enumerate(labels, start=1):
        colour = SCENE_COLOURS[(value - 1) % len(SCENE_COLOURS)]
        ET.SubElement(palette, "paletteEntry", value=str(value), color=colour, alpha="255", label=label)
    return _text(root)


Symbol = Callable[[ET.Element, str, tuple[int, int, int]], None]
"""Adds a symbol of that name and colour to an element."""


def _graduated(classes: Classes, symbol: Symbol, *, geometry_type: int) -> str:
    """QML of a renderer with one symbol a class; `geometry_type` as QGIS counts: 0 points, 2 polygons."""
    root = _root()
    renderer = ET.SubElement(
        root,
        "renderer-v2",
        type="graduatedSymbol",
        attr=classes.expression,
        graduatedMethod="GraduatedColor",
        symbollevels="0",
        enableorderby="0",
        forceraster="0",
    )
    ranges, symbols = ET.SubElement(renderer, "ranges"), ET.SubElement(renderer, "symbols")
    for number, part in enumerate(classes.classes):
        lower, upper = f"{part.lower:.6f}", f"{part.upper:.6f}"
        ET.SubElement(ranges, "range", lower=lower, upper=upper, symbol=str(number), label=part.label, render="true")
        symbol(symbols, str(number), part.colour)
    ET.SubElement(root, "layerGeometryType").text = str(geometry_type)
    return _text(root)


def _symbol_layer(parent: ET.Element, name: str, kind: str, layer: str) -> ET.Element:
    symbol = ET.SubElement(parent, "symbol", name=name, type=kind, alpha="1", clip_to_extent="1", force_rhr="0")
    return ET.SubElement(symbol, "layer", {"class": layer, "enabled": "1", "locked": "0", "pass": "0"})


def _props(parent: ET.Element, values: Mapping[str, str]) -> None:
    for key, value in values.items():
        ET.SubElement(parent, "prop", k=key, v=value)


def _data_defined(parent: ET.Element, name: str, expression: str) -> None:
    """A property that QGIS computes for each feature."""
    collection = _option(ET.SubElement(parent, "data_defined_properties"), None, "Map")
    _option(collection, "name", "QString", "")
    defined = _option(_option(collection, "properties", "Map"), name, "Map")
    _option(defined, "active", "bool", "true")
    _option(defined, "expression", "QString", expression)
    _option(defined, "type", "int", "3")
    _option(collection, "type", "QString", "collection")


def _option(parent: ET.Element, name: str | None, kind: str, value: str | None = None) -> ET.Element:
    given = {"name": name, "type": kind, "value": value}
    return ET.SubElement(parent, "Option", {key: text for key, text in given.items() if text is not None})


def _rgba(colour: tuple[int, int, int], alpha: int) -> str:
    return ",".join(str(part) for part in (*colour, alpha))


def _root() -> ET.Element:
    return ET.Element("qgis", version=QGIS_VERSION, styleCategories="Symbology")


def _text(root: ET.Element) -> str:
    ET.indent(root, " ")
    return "<!DOCTYPE qgis PUBLIC 'http://mrcc.com/qgis.dtd' 'SYSTEM'>\n" + ET.tostring(root, encoding="unicode") + "\n"
