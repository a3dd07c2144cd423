"""Imports go down only, and asking for help loads nothing heavy."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "geodino"

# From the ground up: a module may import its own layer and those below it.
LAYERS = [
    {"geodino", "geodino.redaction", "geodino.errors", "geodino.findings", "geodino.shipped"},
    {"geodino.watch", "geodino.logs"},
    {"geodino.buckets", "geodino.stores"},
    {
        "geodino.grid",
        "geodino.windows",
        "geodino.stitch",
        "geodino.bands",
        "geodino.polygons",
        "geodino.aoi_files",
        "geodino.aoi",
        "geodino.radiometry",
        "geodino.settings",
        "geodino.options",
        "geodino.stream",
        "geodino.trees",
    },
    {"geodino.sources", "geodino.outputs"},
    {"geodino.surface"},
    {"geodino.crowns", "geodino.treetops"},
    {"geodino.models"},
    {"geodino.training", "geodino.evaluation", "geodino.zonal"},
    {
        "geodino.plan",
        "geodino.products",
        "geodino.estimate",
        "geodino.sheet",
        "geodino.quicklook",
        "geodino.provenance",
    },
    {
        "geodino.unfinished",
        "geodino.progress",
        "geodino.fingerprint",
        "geodino.compute",
        "geodino.stages",
        "geodino.resuming",
    },
    {"geodino.results"},
    {"geodino.cluster", "geodino.executors"},
    {"geodino.pipeline", "geodino.xarrays", "geodino.report", "geodino.doctor"},
    {"geodino.batch"},
    {"geodino.cli_options"},
    {"geodino.cli_train", "geodino.cli_evaluate", "geodino.cli_stats", "geodino.cli_batch"},
    {"geodino.cli"},
    {"geodino.__main__"},
]
TORCH_ROOMS = ("geodino.models", "geodino.training", "geodino.provenance", "geodino.doctor")


def modules() -> dict[str, Path]:
    names = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return names


def layer(module: str) -> int:
    room = ".".join(module.split(".")[:2])
    found = [index for index, names in enumerate(LAYERS) if room in names]
    assert found, f"{module} has no layer: put it into LAYERS"
    return found[0]


def imported(path: Path) -> set[str]:
    tree = ast.parse(path.read_text())
    guarded = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for node in ast.walk(block)
    }
    late = {id(node) for block in ast.walk(tree) if isinstance(block, ast.FunctionDef) for node in ast.walk(block)}
    found: set[str] = set()
    for node in ast.walk(tree):
        if id(node) in guarded or id(node) in late:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


@pytest.mark.parametrize("module", modules())
def test_a_module_imports_only_its_own_layer_and_below(module: str) -> None:
    above = {name for name in imported(modules()[module]) if name.startswith("geodino") and layer(name) > layer(module)}
    assert not above


@pytest.mark.parametrize("module", modules())
def test_torch_is_imported_in_its_rooms_alone(module: str) -> None:
    if not module.startswith(TORCH_ROOMS):
        assert not {name.split(".")[0] for name in imported(modules()[module])} & {"torch", "transformers"}


@pytest.mark.parametrize("module", modules())
def test_a_module_stays_under_400_lines_and_says_what_it_is(module: str) -> None:
    text = modules()[module].read_text()
    assert text.count("\n") <= 400
    assert ast.get_docstring(ast.parse(text))


def test_asking_for_help_loads_no_torch_and_no_gdal() -> None:
    program = (
        "import sys\n"
        "from geodino.cli import cli\n"
        "cli(['run', '--help'], standalone_mode=False)\n"
        "heavy = {'torch', 'transformers', 'rasterio', 'numpy', 'geopandas', 'rich'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
