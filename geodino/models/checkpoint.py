"""Loads a folder in the Hub's layout (config.json and safetensors), strictly: every weight, and none besides."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import (
    CHMv2Config,
    CHMv2ForDepthEstimation,
    DINOv3ConvNextConfig,
    DINOv3ConvNextModel,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.utils import logging as transformers_logging

from geodino.errors import ModelError
from geodino.models.catalog import (
    CHMV2_MEAN,
    CHMV2_STD,
    DINOV3_LICENCE,
    SAT_MEAN,
    SAT_STD,
    ConvNeXtShape,
    Family,
    Licence,
    ModelRow,
    ViTShape,
    rows,
)
from geodino.models.files import check_safetensors, read_json, weight_files
from geodino.models.network import MODEL_TYPE, HeadedConfig, HeadedNetwork
from geodino.windows import PATCH, SIDE_MULTIPLE, Tiling

# `model_type` in config.json -> family -> the class that holds its weights.
FAMILIES: dict[str, Family] = {
    "chmv2": "chmv2",
    "dinov3_vit": "vit",
    "dinov3_convnext": "convnext",
    MODEL_TYPE: "headed",
}
NETWORKS: dict[Family, type[PreTrainedModel]] = {
    "chmv2": CHMv2ForDepthEstimation,
    "vit": DINOv3ViTModel,
    "convnext": DINOv3ConvNextModel,
    "headed": HeadedNetwork,
}

# What transformers raises where a value in config.json is of the wrong type, or makes no network.
_NONSENSE = (
    StrictDataclassError,
    ArithmeticError,
    AttributeError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)

_NAMED_KEYS = 5

CANOPY = ("height", "spread")

Statistics: TypeAlias = tuple[tuple[float, float, float], tuple[float, float, float]]

# Every network here is of DINOv3's architecture, and only who made a folder knows whether its weights began at random.
UNTOLD_LICENCE = Licence(f"not stated ({DINOV3_LICENCE.name} if derived from DINOv3)", DINOV3_LICENCE.url)


def load_network(folder: Path, *, bf16: bool = False) -> PreTrainedModel:
    """The folder's network in float32, or straight in bf16 without a float32 copy.

    Raises
    ------
    ModelError
        If a file is missing or not what it should be, or a weight is missing, surplus or of another shape.
    """
    network_class = NETWORKS[family_of(folder)]
    config = _config(folder, network_class)
    for path in weight_files(folder):
        check_safetensors(path)
    return build(network_class, folder, config=config, bf16=bf16)


def build(
    network_class: type[PreTrainedModel],
    source: Path | str,
    *,
    config: PreTrainedConfig,
    weights: Mapping[str, torch.Tensor] | None = None,
    bf16: bool = False,
) -> PreTrainedModel:
    """A network with exactly the given weights, or those of the `source` folder; ModelError names any difference."""
    with silent_transformers():
        network, found = network_class.from_pretrained(
            source if weights is None else None,
            config=config,
            state_dict=weights,
            dtype=torch.bfloat16 if bf16 else torch.float32,
            local_files_only=True,
            use_safetensors=True,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    mismatched = [name for name, *_ in found["mismatched_keys"]]
    _refuse_differences(str(source), found["missing_keys"], found["unexpected_keys"], mismatched)
    return network


def _refuse_differences(
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


def family_of(folder: Path) -> Family:
    """What config.json says the folder holds; ModelError if it is none of ours."""
    kind = read_json(folder / "config.json").get("model_type")
    if not isinstance(kind, str) or kind not in FAMILIES:
        raise ModelError(f"config.json of {folder} says model_type {kind}: geodino loads {', '.join(FAMILIES)}")
    return FAMILIES[kind]


def row_of_folder(folder: Path) -> ModelRow:
    """The facts of a folder that the catalog does not know, from its own files.

    Where its architecture and statistics are those of a catalog row, as in a copy or a fine-tuned model, that row's
    GSD, window, licence and citation hold, unless the folder states its own; either of the two red means that are in
    circulation will do, and the folder's own is used. Its place on the Hub does not: the weights may be others.

    Raises
    ------
    ModelError
        If preprocessor_config.json does not say the mean and std: guessing them would shift every height.
    """
    family = family_of(folder)
    config = _config(folder, NETWORKS[family])
    mean, std = statistics_of(folder)
    shape = _shape(config)
    found = ModelRow(
        folder.name,
        f"{family} from {folder.name}",
        family,
        shape,
        mean,
        std,
        _tiling(config),
        UNTOLD_LICENCE,
        heads=_heads(config),
    )
    for row in rows():
        if (row.family, row.shape) == (family, shape) and _same_statistics((row.mean, row.std), (mean, std)):
            title = f"{row.title}, from {folder.name}"
            found = replace(row, name=folder.name, title=title, mean=mean, hub_id=None, gated=False, official=())
    return replace(
        found,
        gsd_m=_stated_gsd(folder) or found.gsd_m,
        licence=_stated_licence(folder) or found.licence,
        demonstration=_stated_demonstration(folder),
    )


def _same_statistics(published: Statistics, stated: Statistics) -> bool:
    """Whether they are the same, but for the red mean of SAT-493M that others give."""
    satellite = ((SAT_MEAN, SAT_STD), (CHMV2_MEAN, CHMV2_STD))
    return published == stated or (published in satellite and stated in satellite)


def statistics_of(folder: Path) -> Statistics:
    """Mean and std of red, green, blue, from preprocessor_config.json."""
    path = folder / "preprocessor_config.json"
    found = read_json(path)
    mean, std = _triple(path, found, "image_mean"), _triple(path, found, "image_std")
    if not all(0 < value < math.inf for value in std):
        raise ModelError(f"{path} says image_std {list(std)}: colours are divided by it, so it must be above 0")
    return mean, std


@contextmanager
def silent_transformers() -> Iterator[None]:
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
    """What config.json says, once a network without memory could be built from it; ModelError if none can."""
    try:
        with silent_transformers(), torch.device("meta"):
            config = network_class.config_class.from_pretrained(folder, local_files_only=True)
            network_class(config)
    except _NONSENSE as error:
        what = f"{type(error).__name__}: {error}"
        raise ModelError(f"config.json of {folder} does not describe a model that can be built: {what}") from error
    _check_parts_fit(folder, config)
    return config


def _check_parts_fit(folder: Path, config: PreTrainedConfig) -> None:
    """ModelError for what can be built but not run, or not by us."""
    backbone = getattr(config, "backbone_config", config)
    where = f"config.json of {folder} says"
    if isinstance(backbone, DINOv3ConvNextConfig) and backbone is config:
        return
    if not isinstance(backbone, DINOv3ViTConfig):
        raise ModelError(f"{where} backbone {backbone.model_type}: a canopy model needs dinov3_vit")
    if not config.patch_size == backbone.patch_size == PATCH:
        raise ModelError(f"{where} patch_size {config.patch_size} and {backbone.patch_size}: it must be {PATCH}")
    if backbone.hidden_size % backbone.num_attention_heads:
        raise ModelError(
            f"{where} hidden_size {backbone.hidden_size}: "
            f"it must be a multiple of num_attention_heads {backbone.num_attention_heads}"
        )


# preprocessor_config.json may state `gsd_m`, `licence`, `licence_url` and `demonstration`: keys of ours, which others
# ignore.


def _stated_gsd(folder: Path) -> float | None:
    match _stated(folder, "gsd_m"):
        case int() | float() as gsd_m if 0 < gsd_m < math.inf:
            return float(gsd_m)
        case None:
            return None
        case other:
            raise _misstated(folder, "gsd_m", other, "metres a pixel")


def _stated_licence(folder: Path) -> Licence | None:
    match _stated(folder, "licence"), _stated(folder, "licence_url"):
        case None, None:
            return None
        case str() as name, None:
            return Licence(name, "")
        case str() as name, str() as url:
            return Licence(name, url)
        case other:
            raise _misstated(folder, "licence and licence_url", other, "a name, and where it is to be read")


def _stated_demonstration(folder: Path) -> bool:
    match _stated(folder, "demonstration"):
        case bool() as demonstration:
            return demonstration
        case None:
            return False
        case other:
            raise _misstated(folder, "demonstration", other, "true or false")


def _stated(folder: Path, key: str) -> object:
    return read_json(folder / "preprocessor_config.json").get(key)


def _misstated(folder: Path, key: str, value: object, wanted: str) -> ModelError:
    return ModelError(f"{folder / 'preprocessor_config.json'} says {key} {value}: it must be {wanted}")


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


def _heads(config: PreTrainedConfig) -> tuple[str, ...]:
    """What a network says of the ground: "height" and "spread", "trees", "segment", "classify"."""
    if isinstance(config, HeadedConfig):
        return tuple(name for task in config.heads for name in (CANOPY if task == "canopy" else (task,)))
    return CANOPY if isinstance(config, CHMv2Config) else ()


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
