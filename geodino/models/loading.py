"""From a name to a model that predicts: a catalog name, a hub id, a local folder, or the official .pth files."""

from __future__ import annotations

from pathlib import Path

from geodino.errors import ModelError
from geodino.models.catalog import ModelRow, row
from geodino.models.checkpoint import load_network, row_of_folder, sha256_of, weight_files
from geodino.models.predictor import Model
from geodino.shipped import nano_folder


def load_model(
    name_or_path: str | Path, *, precision: str = "auto", device: str = "auto", batch_size: int | None = None
) -> Model:
    """A canopy model, ready to predict.

    Parameters
    ----------
    name_or_path
        A name of the catalog (`chmv2`, `nano`), or a local folder with config.json, safetensors and
        preprocessor_config.json.
    precision
        "auto" (bf16 where the device computes in it natively), "fp32" or "bf16": of the backbone only.
    device
        "auto", "cpu", "cuda", "cuda:N" or "mps".
    batch_size
        Windows predicted at once; None for what suits the device. Halved when memory runs out.

    Raises
    ------
    ModelError
        If there is no such model, its weights are refused, or it has no canopy head.
    """
    folder, facts = _find(str(name_or_path))
    if facts.family != "chmv2":
        raise ModelError(
            f"{facts.name} is a backbone without a canopy head: train one on it with `geodino train`, "
            "or use chmv2 or nano"
        )
    network = load_network(folder)
    return Model(
        network,
        facts,
        weights_sha256=sha256_of(weight_files(folder)),
        precision=precision,
        device=device,
        batch_size=batch_size,
    )


def _find(name: str) -> tuple[Path, ModelRow]:
    if name == "nano":
        return nano_folder(), row("nano")
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder, row_of_folder(folder)
    raise ModelError(f"no model named {name}, and no folder of that name")
