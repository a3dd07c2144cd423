"""From a name to a model: a catalog name, a hub id, a local folder, or the official .pth files.

What a model is (`facts_of`) and whether it is here (`is_at_hand`) can be asked before any weights are downloaded.
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

from transformers import PreTrainedModel

from geodino.errors import ModelError
from geodino.models.catalog import ModelRow, row, rows
from geodino.models.checkpoint import load_network, row_of_folder, statistics_of
from geodino.models.dinov3 import Backbone
from geodino.models.files import sha256_of, weight_files
from geodino.models.hub import DESCRIPTIONS, access, cached, fetch, is_whole, refusal, weights_at_hand
from geodino.models.official import load_official, official_row
from geodino.models.precision import Precision, choose_device, choose_precision
from geodino.models.predictor import Model
from geodino.shipped import nano_folder

logger = logging.getLogger(__name__)

# What a name means: a catalog row, a folder in the Hub's layout, official .pth files, or the id of a Hub repository.
Reference: TypeAlias = ModelRow | Path | tuple[Path, ...] | str

# From so many parameters on: 7B needs 13 GB in bf16 and 27 GB in float32.
BF16_FROM_PARAMETERS = 2_000_000_000


@dataclass(frozen=True)
class Weights:
    """Where a model's weights lie: a folder in the Hub's layout, or official .pth files (backbone first)."""

    row: ModelRow
    folder: Path | None = None
    official: tuple[Path, ...] = ()

    def sha256(self) -> str:
        """Of the one file; of the list of hashes where there are several."""
        return sha256_of(self.official if self.folder is None else weight_files(self.folder))

    def load(self, precision: Precision) -> PreTrainedModel:
        """The network, strictly; ModelError names what is wrong.

        A large network that will run in bf16 is read straight into it, so that no float32 copy is ever in memory.
        """
        bf16 = precision == "bf16" and self.row.parameters >= BF16_FROM_PARAMETERS
        if self.folder is None:
            return load_official(self.official, self.row, bf16=bf16)
        return load_network(self.folder, bf16=bf16)


def load_model(
    name_or_path: str | Path,
    *,
    precision: str = "auto",
    device: str = "auto",
    batch_size: int | None = None,
    head: str = "height",
    tta: int = 1,
) -> Model:
    """A model, ready to predict.

    Parameters
    ----------
    name_or_path
        A name of the catalog (`chmv2`, `nano`); the id of a Hugging Face Hub repository; a local folder with
        config.json, safetensors and preprocessor_config.json; or the official .pth files, as a folder that holds them
        or as `backbone.pth+head.pth`.
    precision
        "auto" (bf16 where the device computes in it natively), "fp32" or "bf16": of the backbone only.
    device
        "auto", "cpu", "cuda", "cuda:N" or "mps".
    batch_size
        Windows predicted at once; None for what suits the device. Halved when memory runs out.
    head
        What it must be able to say: "height", "trees", "segment" or "classify".
    tta
        How many views of each window are averaged, see `models.tta`: 1, 2, 4 or 8.

    Raises
    ------
    ModelError
        If there is no such model, its weights are out of reach or refused, or it has no such head.
    """
    facts_of(name_or_path, head)  # refuses a backbone before its gigabytes are downloaded
    weights = find_weights(name_or_path)
    where = choose_device(device)
    how = choose_precision(precision, where)
    return Model(
        weights.load(how),
        weights.row,
        weights_sha256=weights.sha256(),
        precision=how,
        device=where,
        batch_size=batch_size,
        tta=tta,
    )


def load_backbone(name_or_path: str | Path, *, precision: str = "auto", device: str = "auto") -> Backbone:
    """A frozen backbone for heads of your own; arguments and errors as for `load_model`."""
    described = _describe(_resolve(name_or_path))
    if described.heads:
        raise ModelError(
            f"{described.name} is a model with heads: for its features load sat-vitl16, the backbone it stands on"
        )
    weights = find_weights(name_or_path)
    where = choose_device(device)
    how = choose_precision(precision, where)
    return Backbone(weights.load(how), weights.row, weights_sha256=weights.sha256(), precision=how, device=where)


def facts_of(name_or_path: str | Path, head: str = "height") -> ModelRow:
    """The facts of a model that has a head, before anything large is downloaded or read.

    Asks the catalog or the folder; for a model of the Hub that is not here, also the Hub, for a few small files.

    Raises
    ------
    ModelError
        If there is no such model, it has no such head, or its weights are neither here nor to be downloaded; with
        the next command to type.
    """
    reference = _resolve(name_or_path)
    facts = _describe(reference)
    if head not in facts.heads:
        has = f"has only {', '.join(facts.heads)}" if facts.heads else "is a backbone without a head"
        what = "canopy" if head == "height" else head
        raise ModelError(
            f"{facts.name} {has}, and {what} is asked of it: use {_with_head(head)}, or `geodino train {what}`"
        )
    match reference:
        case ModelRow() as known:
            found = access(known)
            if not found.usable:
                raise refusal(found)
        case Path() as folder:
            weight_files(folder)
    return facts


def _with_head(head: str) -> str:
    """The models of the catalog that have a head."""
    return " or ".join(known.name for known in rows() if head in known.heads) or "a folder that geodino trained"


def is_at_hand(name_or_path: str | Path) -> bool:
    """Whether the model's weights lie on this machine, so that loading it downloads nothing; asks no network.

    Raises
    ------
    ModelError
        If there is no such model.
    """
    match _resolve(name_or_path):
        case ModelRow() as known:
            return weights_at_hand(known)
        case Path() as folder:
            return is_whole(folder)
        case str() as hub_id:
            here = cached(hub_id)
            return here is not None and is_whole(here)
        case paths:
            return all(path.is_file() for path in paths)


def find_weights(name_or_path: str | Path) -> Weights:
    """Where the weights of a name, folder or file are; downloads them where that is what the name asks for.

    Raises
    ------
    ModelError
        If there is no such model or its weights are out of reach, with the next command to type.
    """
    match _resolve(name_or_path):
        case ModelRow() as known:
            return _of_catalog(known)
        case Path() as folder:
            return Weights(row_of_folder(folder), folder)
        case str() as hub_id:
            folder = fetch(hub_id)
            return Weights(_row_of_repository(hub_id, folder), folder)
        case paths:
            return _of_official(paths)


def _resolve(name_or_path: str | Path) -> Reference:
    """What a name means; ModelError offers the nearest known one for what means nothing."""
    name = str(name_or_path)
    paths = tuple(Path(part).expanduser() for part in name.split("+"))
    if name in {known.name for known in rows()}:
        return row(name)
    if all(path.suffix == ".pth" for path in paths):
        return paths
    if paths[0].is_dir():
        official = tuple(sorted(paths[0].glob("*.pth")))
        return official if official and not (paths[0] / "config.json").is_file() else paths[0]
    if re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        return next((known for known in rows() if known.hub_id == name), name)
    return row(name)


def _describe(reference: Reference) -> ModelRow:
    """The facts of what a name means, from everything but the weights."""
    match reference:
        case ModelRow() as known:
            return known
        case Path() as folder:
            return row_of_folder(folder)
        case str() as hub_id:
            return _row_of_repository(hub_id, fetch(hub_id, DESCRIPTIONS))
        case paths:
            return _of_official(paths).row


def _of_catalog(known: ModelRow) -> Weights:
    if known.hub_id is None and not weights_at_hand(known):
        raise refusal(access(known))
    folder = nano_folder() if known.hub_id is None else fetch(known.hub_id)
    stated = statistics_of(folder)
    if stated != (known.mean, known.std):
        # Two red means are in circulation (see the catalog), and the processor's class falls back on ImageNet's.
        logger.warning(
            "preprocessor_config.json of %s says mean and std %s; %s is run with %s, as its makers publish",
            folder,
            stated,
            known.name,
            (known.mean, known.std),
        )
    return Weights(known, folder)


def _row_of_repository(hub_id: str, folder: Path) -> ModelRow:
    return replace(row_of_folder(folder), name=hub_id, hub_id=hub_id)


def _of_official(paths: tuple[Path, ...]) -> Weights:
    absent = [str(path) for path in paths if not path.is_file()]
    if absent:
        raise ModelError(f"no file {', '.join(absent)}")
    known = official_row([path.name for path in paths])
    by_name = {path.name: path for path in paths}
    return Weights(known, official=tuple(by_name[name] for name in known.official))
