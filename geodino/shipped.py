"""Finds what geodino ships: pipelines, configs, the sample scenes and the weights of `nano`.

In a wheel the two top-level folders lie in geodino/_shipped/, in an editable checkout beside the package.
"""

from __future__ import annotations

import difflib
from pathlib import Path

from geodino.errors import ConfigError

_PACKAGE = Path(__file__).parent


def sample_folder() -> Path:
    """The embedded scenes: a static STAC catalog, its COGs, AOIs and their licence."""
    return _PACKAGE / "sample"


def sample_catalog() -> Path:
    """The embedded sample's static STAC catalog."""
    return sample_folder() / "catalog.json"


def sample_aoi(name: str) -> Path:
    """An embedded AOI by name, such as `autzen`."""
    return _named(sample_folder() / "aois", name, ".geojson", "sample AOI")


def nano_folder() -> Path:
    """The weights, configuration and model card of the embedded model `nano`."""
    return _PACKAGE / "weights" / "nano"


def pipeline_path(name: str) -> Path:
    """The shipped pipeline file of that name; ConfigError names the known ones."""
    return _named(_folder("pipelines"), name, ".yaml", "pipeline")


def config_path(name: str) -> Path:
    """The shipped config file of that name; ConfigError names the known ones."""
    return _named(_folder("configs"), name, ".yaml", "config")


def pipeline_names() -> list[str]:
    """The names of all shipped pipelines."""
    return sorted(path.stem for path in _folder("pipelines").glob("*.yaml"))


def config_names() -> list[str]:
    """The names of all shipped configs."""
    return sorted(path.stem for path in _folder("configs").glob("*.yaml"))


def nearest(name: str, known: list[str]) -> str:
    """'; did you mean X?' where a known name is close, else the list of known names."""
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]}?" if close else f"; known: {', '.join(known) or 'none'}"


def _folder(name: str) -> Path:
    in_wheel = _PACKAGE / "_shipped" / name
    return in_wheel if in_wheel.is_dir() else _PACKAGE.parent / name


def _named(folder: Path, name: str, suffix: str, what: str) -> Path:
    path = folder / f"{name}{suffix}"
    if Path(name).name == name and path.is_file():
        return path
    raise ConfigError(f"no {what} named {name}" + nearest(name, sorted(p.stem for p in folder.glob(f"*{suffix}"))))
