"""Loads a folder in the Hub's layout (config.json and safetensors), strictly: every weight, and none besides.

Files are looked at before transformers sees them, because what people have instead of weights is mostly the same:
a Git LFS pointer, a login page, half of a download, or a pickle, which is never opened.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from transformers import (
    CHMv2ForDepthEstimation,
    DINOv3ConvNextConfig,
    DINOv3ConvNextModel,
    DINOv3ViTModel,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.utils import logging as transformers_logging

from geodino.errors import ModelError
from geodino.models.catalog import ConvNeXtShape, Family, Licence, ModelRow, ViTShape, rows
from geodino.windows import SIDE_MULTIPLE, Tiling

# `model_type` in config.json -> our family and the class that holds the weights.
ARCHITECTURES: dict[str, tuple[Family, type[PreTrainedModel]]] = {
    "chmv2": ("chmv2", CHMv2ForDepthEstimation),
    "dinov3_vit": ("vit", DINOv3ViTModel),
    "dinov3_convnext": ("convnext", DINOv3ConvNextModel),
}

# From so many parameters on, weights are read straight into bf16: 7B needs 13 GB so, and 27 GB in float32.
BF16_FROM_PARAMETERS = 2_000_000_000

_NAMED_KEYS = 5


def load_network(folder: Path, *, bf16: bool = False) -> PreTrainedModel:
    """The folder's network in float32, or straight in bf16 without a float32 copy.

    Raises
    ------
    ModelError
        If a file is missing or not what it should be, or a weight is missing, surplus or of another shape.
    """
    _, network_class = architecture(folder)
    config = _config(folder, network_class)
    for path in weight_files(folder):
        check_safetensors(path)
    with _silent_transformers():
        network, found = network_class.from_pretrained(
            folder,
            config=config,
            dtype=torch.bfloat16 if bf16 else torch.float32,
            local_files_only=True,
            use_safetensors=True,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    mismatched = [key if isinstance(key, str) else key[0] for key in found["mismatched_keys"]]
    refuse_differences(str(folder), found["missing_keys"], found["unexpected_keys"], mismatched)
    return network


def refuse_differences(
    what: str, missing: Iterable[str], surplus: Iterable[str], mismatched: Iterable[str] = ()
) -> None:
    """ModelError that names the weights by which a checkpoint differs from its network; nothing where none does."""
    differences = [
        _name_keys(keys, verdict)
        for keys, verdict in ((missing, "missing"), (surplus, "surplus"), (mismatched, "of another shape"))
        if keys
    ]
    if differences:
        raise ModelError(f"the weights in {what} are not those of its architecture: {'; '.join(differences)}")


def read_json(path: Path) -> dict[str, object]:
    """A JSON object from a file; ModelError says what is wrong with it."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(
            f"{path.parent} has no {path.name}: a model folder needs config.json and *.safetensors"
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ModelError(f"{path} is not JSON ({error}): download the model again") from error
    if not isinstance(found, dict):
        raise ModelError(f"{path} holds a {type(found).__name__}, not a JSON object: download the model again")
    return found


def architecture(folder: Path) -> tuple[Family, type[PreTrainedModel]]:
    """What config.json says the folder holds; ModelError if it is none of ours."""
    kind = read_json(folder / "config.json").get("model_type")
    if not isinstance(kind, str) or kind not in ARCHITECTURES:
        raise ModelError(f"config.json of {folder} says model_type {kind}: geodino loads {', '.join(ARCHITECTURES)}")
    return ARCHITECTURES[kind]


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of the folder, in the order of their names; ModelError if one is missing."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        named = read_json(index).get("weight_map")
        if not isinstance(named, dict):
            raise ModelError(f"{index} has no weight_map: download the model again")
        files = [folder / str(name) for name in sorted(set(named.values()))]
    else:
        files = [folder / "model.safetensors"]
    absent = [path.name for path in files if not path.is_file()]
    if not absent:
        return files
    pickles = sorted(path.name for path in folder.glob("*.bin"))
    if pickles:
        raise ModelError(
            f"{folder} has its weights in {pickles[0]}, a pickle, which can run code when opened: "
            "ask its makers for safetensors, or save it again with save_pretrained"
        )
    raise ModelError(f"{folder} lacks {', '.join(absent)}: download the model again")


def check_safetensors(path: Path) -> None:
    """ModelError that says what a file is, if it is not a whole safetensors file."""
    check_not_a_stand_in(path)
    try:
        with safe_open(path, framework="pt") as opened:
            opened.keys()
    except (SafetensorError, OSError) as error:
        raise ModelError(
            f"{path} ({path.stat().st_size:,} bytes) is damaged or cut off ({error}): download it again"
        ) from error


def check_not_a_stand_in(path: Path) -> None:
    """ModelError if the file is what is often saved in the place of weights."""
    with path.open("rb") as file:
        start = file.read(256).lstrip()
    if start.startswith(b"version https://git-lfs"):
        raise ModelError(f"{path} is a Git LFS pointer, not the weights: run `git lfs pull` in its repository")
    if start[:1] == b"<":
        raise ModelError(f"{path} is a web page, not the weights: accept the licence, log in, and download it again")


def sha256_of(files: Sequence[Path]) -> str:
    """SHA-256 of one file, in hex; of several, that of their hashes' lines in the order given."""
    digests = []
    for path in files:
        with path.open("rb") as file:
            digests.append(hashlib.file_digest(file, "sha256").hexdigest())
    return digests[0] if len(digests) == 1 else hashlib.sha256("\n".join(digests).encode()).hexdigest()


def row_of_folder(folder: Path) -> ModelRow:
    """The facts of a folder that the catalog does not know, from its own files.

    Where its architecture and statistics are those of a catalog row, as in a copy or a fine-tuned model, that row's
    GSD, window, licence and citation hold.

    Raises
    ------
    ModelError
        If preprocessor_config.json does not say the mean and std: guessing them would shift every height.
    """
    family, network_class = architecture(folder)
    config = _config(folder, network_class)
    mean, std = _statistics(folder)
    shape = _shape(config)
    for row in rows():
        if (row.family, row.shape, row.mean, row.std) == (family, shape, mean, std):
            return replace(row, name=folder.name, title=f"{row.title}, from {folder}")
    return ModelRow(
        folder.name,
        f"{family} from {folder}",
        family,
        shape,
        mean,
        std,
        _tiling(config),
        Licence("as stated by its makers", ""),
        heads=("height", "spread") if family == "chmv2" else (),
    )


@contextmanager
def _silent_transformers() -> Iterator[None]:
    """Keeps transformers from drawing a progress bar and a table of the differences that we raise ourselves."""
    verbosity, had_bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if had_bars:
            transformers_logging.enable_progress_bar()


def _config(folder: Path, network_class: type[PreTrainedModel]) -> PreTrainedConfig:
    try:
        return network_class.config_class.from_pretrained(folder, local_files_only=True)
    except StrictDataclassError as error:
        raise ModelError(f"config.json of {folder} does not describe a model: {error}") from error


def _statistics(folder: Path) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    path = folder / "preprocessor_config.json"
    found = read_json(path)
    return _triple(path, found, "image_mean"), _triple(path, found, "image_std")


def _triple(path: Path, found: dict[str, object], key: str) -> tuple[float, float, float]:
    match found.get(key):
        case [int() | float() as red, int() | float() as green, int() | float() as blue]:
            return float(red), float(green), float(blue)
        case other:
            raise ModelError(f"{path} says {key} {other}: it must be three numbers, of red, green and blue in 0..1")


def _shape(config: PreTrainedConfig) -> ViTShape | ConvNeXtShape:
    """The size as the catalog states it."""
    vit = getattr(config, "backbone_config", config)
    if isinstance(vit, DINOv3ConvNextConfig):
        return ConvNeXtShape(tuple(vit.depths), tuple(vit.hidden_sizes))
    return ViTShape(
        vit.hidden_size,
        vit.num_hidden_layers,
        vit.num_attention_heads,
        vit.intermediate_size,
        vit.use_gated_mlp,
        vit.query_bias,
    )


def _tiling(config: PreTrainedConfig) -> Tiling:
    """Windows of the size it was trained at, since the position encoding is relative to the window."""
    size = getattr(config, "backbone_config", config).image_size
    if isinstance(size, int) and size >= 4 * SIDE_MULTIPLE and size % SIDE_MULTIPLE == 0:
        return Tiling(size, overlap=64, margin=16)
    return Tiling(512, overlap=64, margin=16)


def _name_keys(keys: Iterable[str], verdict: str) -> str:
    ordered = sorted(keys)
    more = f" and {len(ordered) - _NAMED_KEYS} more" if len(ordered) > _NAMED_KEYS else ""
    return f"{', '.join(ordered[:_NAMED_KEYS])}{more} {verdict}"
