"""What a batch's imagery is called: as it calls itself, and never by where it lies on somebody's disk."""

from __future__ import annotations

from geodino.errors import ReadError, SourceError
from geodino.options import RunOptions
from geodino.redaction import without_secrets
from geodino.sources.config import resolve
from geodino.sources.raster import is_remote, local_path
from geodino.sources.stac_http import http, read_json, shown


def imagery_of(catalog: str | None, options: RunOptions) -> str:
    """The names of a batch's catalog, or where it has none of its sources: `Orthophotos of our county`.

    Raises
    ------
    ConfigError, SourceError
        There is no such source.
    """
    named = ", ".join(map(_named, options.sources if catalog is None else (catalog,)))
    return f"{named} ({', '.join(options.collections)})" if options.collections else named


def _named(source: str) -> str:
    """A config's or a catalog's title, else its id, else the name of the file or folder, or the address."""
    place = without_secrets(source) if is_remote(source) else local_path(source).stem
    if source.lower().endswith(".csv"):
        return place
    config = resolve(source)
    if config.title != without_secrets(source):
        return config.title
    if config.stac is None:
        return place
    try:
        with http() as session:
            root = read_json(config.stac, session)
    except (ReadError, SourceError):
        return place  # whoever needs it will say so
    return shown(str(root.get("title") or root.get("id") or place))
