"""From a name to a model: a catalog name, a hub id, a local folder, or the official .pth files."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass, replace
from pathlib import Path

from transformers import PreTrainedModel

from geodino.errors import ModelError
from geodino.models.catalog import ModelRow, row, rows
from geodino.models.checkpoint import load_network, row_of_folder, statistics_of
from geodino.models.dinov3 import Backbone
from geodino.models.files import sha256_of, weight_files
from geodino.models.hub import access, fetch, refusal, weights_at_hand
from geodino.models.official import load_official, official_row
from geodino.models.precision import Precision, choose_device, choose_precision
from geodino.models.predictor import Model
from geodino.shipped import nano_folder

logger = logging.getLogger(__name__)

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
    name_or_path: str | Path, *, precision: str = "auto", device: str = "auto", batch_size: int | None = None
) -> Model:
    """A canopy model, ready to predict.

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

    Raises
    ------
    ModelError
        If there is no such model, its weights are out of reach or refused, or it has no canopy head.
    """
    weights = find_weights(name_or_path)
    if weights.row.family != "chmv2":
        raise ModelError(
            f"{weights.row.name} is a backbone without a canopy head, and this version cannot train one on it: "
            "use chmv2 or nano"
        )
    where = choose_device(device)
    how = choose_precision(precision, where)
    return Model(
        weights.load(how),
        weights.row,
        weights_sha256=weights.sha256(),
        precision=how,
        device=where,
        batch_size=batch_size,
    )


def load_backbone(name_or_path: str | Path, *, precision: str = "auto", device: str = "auto") -> Backbone:
    """A frozen backbone for heads of your own; arguments and errors as for `load_model`."""
    weights = find_weights(name_or_path)
    if weights.row.family == "chmv2":
        raise ModelError(
            f"{weights.row.name} is a canopy model: for its features load sat-vitl16, the backbone it stands on"
        )
    where = choose_device(device)
    how = choose_precision(precision, where)
    return Backbone(weights.load(how), weights.row, weights_sha256=weights.sha256(), precision=how, device=where)


def find_weights(name_or_path: str | Path) -> Weights:
    """Where the weights of a name, folder or file are; downloads them where that is what the name asks for.

    Raises
    ------
    ModelError
        If there is no such model or its weights are out of reach, with the next command to type.
    """
    name = str(name_or_path)
    if name in {known.name for known in rows()}:
        return _of_catalog(row(name))
    paths = [Path(part).expanduser() for part in name.split("+")]
    if all(path.suffix == ".pth" for path in paths):
        return _of_official(paths)
    if paths[0].is_dir():
        return _of_folder(paths[0])
    if re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        return _of_hub(name)
    return _of_catalog(row(name))


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


def _of_hub(hub_id: str) -> Weights:
    for known in rows():
        if known.hub_id == hub_id:
            return _of_catalog(known)
    folder = fetch(hub_id)
    return Weights(replace(row_of_folder(folder), name=hub_id, hub_id=hub_id), folder)


def _of_folder(folder: Path) -> Weights:
    files = sorted(folder.glob("*.pth"))
    if files and not (folder / "config.json").is_file():
        return _of_official(files)
    return Weights(row_of_folder(folder), folder)


def _of_official(paths: list[Path]) -> Weights:
    absent = [str(path) for path in paths if not path.is_file()]
    if absent:
        raise ModelError(f"no file {', '.join(absent)}")
    known = official_row([path.name for path in paths])
    by_name = {path.name: path for path in paths}
    return Weights(known, official=tuple(by_name[name] for name in known.official))
