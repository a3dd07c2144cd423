"""Styles: well-formed, of columns that are there, and with a class for every value."""

from __future__ import annotations

import re
from itertools import pairwise
from xml.etree import ElementTree as ET

import numpy as np
import pytest

from geodino.outputs.styles import BY_HEIGHT, BY_SCORE, UNKNOWN, Classes, crown_style, density_style, tree_style
from geodino.outputs.tree_table import SCHEMA

STYLES = [tree_style(BY_HEIGHT), tree_style(BY_SCORE), crown_style(), density_style()]


@pytest.mark.parametrize("qml", STYLES)
def test_it_is_xml_whose_root_qgis_knows(qml: str) -> None:
    assert qml.startswith("<!DOCTYPE qgis PUBLIC 'http://mrcc.com/qgis.dtd' 'SYSTEM'>")
    root = ET.fromstring(qml)
    assert root.tag == "qgis" and root.get("styleCategories") == "Symbology"
    assert re.fullmatch(r"3\.\d+\.\d+", root.get("version") or "")


@pytest.mark.parametrize("qml", STYLES[:3])
def test_expressions_name_columns_of_the_table(qml: str) -> None:
    expressions = [node.get("attr") for node in ET.fromstring(qml).iter("renderer-v2")]
    expressions += [node.get("value") for node in ET.fromstring(qml).iter("Option") if node.get("name") == "expression"]
    named = {name for text in expressions for name in re.findall(r'"([^"]+)"', text or "")}
    assert named and named <= set(SCHEMA.names)


@pytest.mark.parametrize(
    ("qml", "kind", "geometry_type"), [*zip(STYLES[:3], ["marker", "marker", "fill"], "002", strict=True)]
)
def test_every_class_has_a_symbol_of_the_layers_kind(qml: str, kind: str, geometry_type: str) -> None:
    root = ET.fromstring(qml)
    ranges, symbols = list(root.iter("range")), list(root.iter("symbol"))
    # Each symbol is taken by one range (qgsgraduatedsymbolrenderer.cpp, create).
    assert [part.get("symbol") for part in ranges] == [symbol.get("name") for symbol in symbols]
    assert {symbol.get("type") for symbol in symbols} == {kind}
    assert root.findtext("layerGeometryType") == geometry_type
    colours = [prop.get("v") for prop in root.iter("prop") if prop.get("k") == "color"]
    assert len(set(colours)) == len(symbols)
    assert all(re.fullmatch(r"\d{1,3}(,\d{1,3}){3}", colour or "") for colour in colours)


@pytest.mark.parametrize(
    ("classes", "values"),
    [(BY_HEIGHT, [-0.4, 0.0, 2.0, 7.5, 30.0, 115.9]), (BY_SCORE, [0.0, 0.3, 0.42, 1.0]), (BY_HEIGHT, [UNKNOWN])],
)
def test_every_value_falls_into_a_class(classes: Classes, values: list[float]) -> None:
    for value in np.array(values, np.float32).tolist():
        assert [part for part in classes.classes if part.lower <= value <= part.upper]
    known = classes.classes[1:]
    assert all(below.upper == above.lower for below, above in pairwise(known))


def test_points_are_sized_by_height_on_the_ground_within_limits_on_the_screen() -> None:
    layer = next(ET.fromstring(STYLES[0]).iter("layer"))
    given = {prop.get("k"): prop.get("v") for prop in layer.iter("prop")}
    assert given["size_unit"] == "MapUnit"  # QGIS keeps limits in mm with this unit alone
    assert given["size_map_unit_scale"] == "3x:0,0,1,0.8,1,4"
    properties = layer.find("data_defined_properties/Option/Option[@name='properties']/Option[@name='size']")
    assert properties is not None
    assert {node.get("name"): node.get("value") for node in properties} == {
        "active": "true",
        "expression": 'coalesce("height_m" * 0.25, 2)',
        "type": "3",
    }


def test_density_colours_rise() -> None:
    items = list(ET.fromstring(density_style()).iter("item"))
    values = [float(item.get("value") or "nan") for item in items]
    assert values == sorted(values) and values[0] == 0
    lightness = [sum(bytes.fromhex((item.get("color") or "")[1:])) for item in items]
    assert lightness == sorted(lightness, reverse=True)
