"""What a batch is: what was asked for, and where its list of jobs lies; written once, and what all others must ask."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from pydantic import JsonValue, TypeAdapter, ValidationError

from geodino import __version__
from geodino.errors import ConfigError, OutputError
from geodino.options import RunOptions
from geodino.redaction import without_secrets
from geodino.settings import PipelineSpec
from geodino.stores import Store

KEY = ".batch/manifest.json"
# Raised by one when what stands below `.batch` changes its meaning.
VERSION = 2
# What a machine decides for itself. All else decides pixels, and is the same in all processes of a batch.
OF_MACHINE = ("device", "batch_size", "threads", "overwrite", "resume", "workers", "scheduler", "config")


@dataclass(frozen=True)
class Manifest:
    """One batch.

    Attributes
    ----------
    kind
        `scenes`, `areas` or `grid`: what its jobs are.
    settings
        The pipeline with every default filled in, the options, the catalog, the AOI and the grid: plain JSON values,
        without signatures and passwords.
    jobs, jobs_key, jobs_sha256
        The list that the batch was begun with, and of how many; `read_jobs` also has what joined it later.
    lease_s
        A process that gives no sign for so long is dead.
    began
        UTC.
    left_out
        Sentences about what the catalog holds besides.
    imagery
        What the catalog or the sources call themselves, which says nothing of where they lie on a disk.
    """

    kind: str
    settings: dict[str, JsonValue]
    jobs: int
    jobs_key: str
    jobs_sha256: str
    lease_s: float
    began: str
    left_out: tuple[str, ...] = ()
    imagery: str = ""
    geodino: str = __version__
    version: int = VERSION

    @property
    def pipeline(self) -> PipelineSpec:
        return PipelineSpec.model_validate(self.settings["pipeline"])

    @property
    def options(self) -> RunOptions:
        """The options of its runs, those of the machine at their defaults."""
        given = self.settings["options"]
        assert isinstance(given, dict)
        return TypeAdapter(RunOptions).validate_python(given)

    def title(self) -> str:
        """What a list of batches would call it: `Canopy height with nano, Orthophotos of our county`."""
        parts = [Path(part) for part in str(self.options.model).split("+")]
        model = "+".join(part.name if part.is_absolute() else str(part) for part in parts)
        return f"{self.pipeline.title} with {model}, {self.imagery}"


def settings_of(spec: PipelineSpec, options: RunOptions, more: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    """What two processes of one batch must agree on."""
    plain = {key: value for key, value in asdict(options).items() if key not in OF_MACHINE}
    plain["sources"] = [without_secrets(source) for source in options.sources]
    # As they come back from JSON, so that they can be compared.
    settings: dict[str, JsonValue] = json.loads(
        json.dumps({"pipeline": spec.model_dump(mode="json"), "options": plain, **more})
    )
    return settings


def read_manifest(store: Store) -> Manifest | None:
    """The batch in a folder or bucket; None where there is none.

    Raises
    ------
    OutputError
        It is damaged, or another version's.
    """
    content = store.get(KEY)
    if content is None:
        return None
    try:
        manifest = TypeAdapter(Manifest).validate_json(content)
    except ValidationError as error:
        raise OutputError(
            f"{store.url}/{KEY} is damaged: begin anew with --overwrite, or choose another --out"
        ) from error
    if manifest.version != VERSION:
        raise OutputError(
            f"{store.url} holds a batch of version {manifest.version} and this geodino runs {VERSION}: begin it anew "
            "with --overwrite, or choose another --out"
        )
    return manifest


def the_manifest(store: Store) -> Manifest:
    """The batch in a folder or bucket. OutputError where there is none."""
    manifest = read_manifest(store)
    if manifest is None:
        raise OutputError(f"{store.url} holds no batch: give the --out of `geodino batch PIPELINE --catalog ... --out`")
    return manifest


def begin(store: Store, manifest: Manifest) -> Manifest:
    """The manifest, written; or the one of another process that was faster, if it asks for the same."""
    content = json.dumps(asdict(manifest), indent=1).encode()
    if store.create(KEY, content):
        return manifest
    first = the_manifest(store)
    require_same(store, first, manifest.settings)
    if first.jobs_key != manifest.jobs_key:
        store.delete(manifest.jobs_key)
    return first


def require_same(store: Store, manifest: Manifest, settings: dict[str, JsonValue]) -> None:
    """ConfigError where a batch was begun with other settings; it says which."""
    ours, theirs = dict(_flat("", settings)), dict(_flat("", manifest.settings))
    differing = [key for key in sorted(ours.keys() | theirs.keys()) if ours.get(key) != theirs.get(key)]
    if differing:
        said = "; ".join(f"{key} was {theirs.get(key)} and is {ours.get(key)}" for key in differing[:5])
        more = f", and {len(differing) - 5} more" if len(differing) > 5 else ""
        raise ConfigError(
            f"{store.url} holds a batch with other settings: {said}{more}; go on with those, choose another --out, or "
            "begin anew with --overwrite"
        )


def now() -> str:
    """The time in UTC, for people to read: nothing is decided by it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _flat(name: str, value: JsonValue) -> Iterator[tuple[str, JsonValue]]:
    if isinstance(value, dict) and name.count(".") < 2:
        for key, below in value.items():
            yield from _flat(f"{name}.{key}" if name else key, below)
    else:
        yield name, value
