"""Source configs: the YAML files in configs/ that say where imagery is and which of it to take."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, model_validator

from geodino.settings import read_yaml, validate
from geodino.shipped import config_path

# YAML reads `bands: [1, 2, 3]` as numbers.
_Name = Annotated[str, BeforeValidator(lambda value: str(value) if isinstance(value, int) else value)]


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
        Which collections of the catalog; an API needs at least one.
    asset
        Which asset of an Item holds the picture, where the Item leaves a choice.
    bands
        Red, green and blue by name or 1-based number.
    sign
        Name of the hook that signs hrefs when they are opened.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["source"]
    title: str
    stac: str | None = None
    paths: tuple[str, ...] = ()
    collections: tuple[str, ...] = ()
    asset: str | None = None
    bands: tuple[_Name, _Name, _Name] | None = None
    sign: Literal["planetary-computer"] | None = None

    @model_validator(mode="after")
    def _one_place(self) -> SourceConfig:
        if (self.stac is None) == (not self.paths):
            raise ValueError("give either stac or paths")
        return self


def source_config(name: str) -> SourceConfig:
    """The source config of that name in configs/.

    Raises
    ------
    ConfigError
        No such config, or not a source's, or a fault in it.
    """
    path = config_path(name)
    return validate(SourceConfig, read_yaml(path), str(path))
