"""Source configs: the YAML files in configs/ that say where imagery is and which of it to take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, model_validator

from geodino.errors import SourceError
from geodino.redaction import without_secrets
from geodino.settings import read_yaml, validate
from geodino.shipped import config_path, nearest, sample_catalog
from geodino.sources.mask import MaskSpec
from geodino.sources.raster import RASTER_SUFFIXES, is_remote, local_path, suffix_of
from geodino.sources.signing import SIGNERS

# What a folder that is a static catalog holds.
_ROOTS = ("catalog.json", "collection.json")
# YAML reads `bands: [1, 2, 3]` as numbers.
_Name = Annotated[str, BeforeValidator(lambda value: str(value) if isinstance(value, int) else value)]


def _known_hook(name: str) -> str:
    if name not in SIGNERS:
        raise ValueError(f"must be one of {', '.join(SIGNERS)}{nearest(name, sorted(SIGNERS))}")
    return name


class SourceConfig(BaseModel):
    """One source of imagery.

    Attributes
    ----------
    title
        What it is, for people.
    stac
        URL or path of a STAC API, or of a static catalog, collection or Item.
    paths
        GeoTIFFs or folders, instead of `stac`.
    collections
        Which collections of the catalog; an API needs at least one, here or in the search.
    asset
        Which asset of an Item holds the picture, where the Item leaves a choice.
    bands
        Red, green and blue by name or 1-based number.
    sign
        Name of the hook that signs hrefs when they are opened.
    mask
        What hides the ground in its scenes, such as clouds.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["source"]
    title: str
    stac: str | None = None
    paths: tuple[str, ...] = ()
    collections: tuple[str, ...] = ()
    asset: str | None = None
    bands: tuple[_Name, _Name, _Name] | None = None
    sign: Annotated[str, AfterValidator(_known_hook)] | None = None
    mask: MaskSpec | None = None

    @model_validator(mode="after")
    def _one_place(self) -> SourceConfig:
        if (self.stac is None) == (not self.paths):
            raise ValueError("give either stac or paths")
        if self.paths and self.mask is not None and self.mask.asset is not None:
            raise ValueError("mask: only STAC Items have an asset; name a band of the files instead")
        return self


def source_config(what: str) -> SourceConfig:
    """The source config of that name in configs/, or in that YAML file, whose relative paths start at its folder.

    Raises
    ------
    ConfigError
        No such config, or not a source's, or a fault in it.
    """
    own = is_config_file(what)
    path = local_path(what) if own else config_path(what)
    config = validate(SourceConfig, read_yaml(path), str(path))
    if not own:
        return config
    stac = None if config.stac is None else _beside(path, config.stac)
    return config.model_copy(update={"stac": stac, "paths": tuple(_beside(path, href) for href in config.paths)})


def resolve(source: str) -> SourceConfig:
    """What a user calls a source, as the config that says the same: a file, folder, catalog, API, or a config's name.

    Raises
    ------
    SourceError
        No such file or folder.
    ConfigError
        No such config, or one with a fault.
    """
    if source == "sample":
        return _unnamed(source, stac=str(sample_catalog()))
    if is_remote(source):
        return _unnamed(source, paths=(source,)) if _is_raster(source) else _unnamed(source, stac=source)
    if is_config_file(source):
        return source_config(source)
    path = local_path(source)
    if path.is_dir():
        roots = [path / root for root in _ROOTS if (path / root).is_file()]
        return _unnamed(source, stac=str(roots[0])) if roots else _unnamed(source, paths=(source,))
    if path.is_file():
        is_json = path.suffix in (".json", ".geojson")
        return _unnamed(source, stac=source) if is_json else _unnamed(source, paths=(source,))
    if path.suffix or path.name != source:
        raise SourceError(f"source {source}: no such file or folder")
    return source_config(source)


def _unnamed(source: str, stac: str | None = None, paths: tuple[str, ...] = ()) -> SourceConfig:
    # Links of a catalog are resolved against its href, which pystac takes for the root of a disk where it is relative.
    if stac is not None and not is_remote(stac):
        stac = str(local_path(stac).absolute())
    return SourceConfig(kind="source", title=without_secrets(source), stac=stac, paths=paths)


def _is_raster(href: str) -> bool:
    return suffix_of(href) in RASTER_SUFFIXES


def is_config_file(source: str) -> bool:
    """Whether a source is a YAML file of the user's own, by its name."""
    return source.lower().endswith((".yaml", ".yml"))


def _beside(path: Path, href: str) -> str:
    return href if is_remote(href) else str(path.absolute().parent / local_path(href))
