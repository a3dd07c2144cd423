"""What a training starts from: a backbone, a headed model or a canopy model, with the head that is to learn."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from transformers import CHMv2ForDepthEstimation, DINOv3ViTConfig, PreTrainedModel

from geodino.errors import ModelError
from geodino.models.catalog import CHMV2_MEAN, CHMV2_STD, Licence, ModelRow
from geodino.models.heads import KINDS, ON_PYRAMID, DPTHead
from geodino.models.loading import find_weights
from geodino.models.network import HeadedConfig, HeadedNetwork, begin_head
from geodino.training.chipset import ChipSet
from geodino.training.leaks import training_record
from geodino.training.licences import NOT_STATED
from geodino.windows import Tiling

# `--model new`: the shape of `nano`, from random weights.
NEW = "new"
# `--head own`: the head for the task that the model has goes on learning.
OWN = "own"
# What stands for the SHA-256 of weights that nobody has trained.
RANDOM = "random"
NEW_VIT = {
    "hidden_size": 192,
    "intermediate_size": 768,
    "num_hidden_layers": 8,
    "num_attention_heads": 3,
    "num_register_tokens": 4,
    "key_bias": True,
    "layer_norm_eps": 1e-6,
    "drop_path_rate": 0.05,
    # DINOv3's default of 2 blurs positions more than a model for one window size needs.
    "pos_embed_rescale": 1.25,
}
PYRAMID = {"widths": [32, 64, 128, 256], "middle": 96, "width": 48, "blocks": [2, 2, 1]}
BINS, HIGHEST_M = 64, 96.0
# Blocks at which the heads look, as shares of the depth: CHMv2's four for its own head.
TAPS = (0.5, 1.0)
DPT_TAPS = (0.25, 0.5, 0.75, 1.0)
DPT_BINS = 256
# What decides the shape and the meaning of CHMv2's head, by its names in CHMv2Config.
_DPT_SHAPE = (
    "post_process_channels", "reassemble_factors", "fusion_hidden_size", "head_hidden_size", "number_output_channels",
    "readout_type", "min_depth", "max_depth", "bins_strategy", "norm_strategy",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Start:
    """A network whose head is to learn.

    Attributes
    ----------
    network
        In float32, on the CPU.
    row
        The facts of what it started from.
    sha256
        Of those weights; `RANDOM` for a new network.
    shared
        Prefixes of the weights that other heads of the network stand on: they stay as they are.
    fresh
        Prefixes of the weights that learn though nothing is fine-tuned: what begins at random, and the head.
    record
        What an earlier training of it left in training.json; empty if there was none.
    replaced, own
        Whether it had a head for the task, which was thrown away, or which goes on learning.
    """

    network: HeadedNetwork
    row: ModelRow
    sha256: str
    shared: tuple[str, ...]
    fresh: tuple[str, ...]
    record: Mapping[str, Any] = field(default_factory=dict)
    replaced: bool = False
    own: bool = False

    @property
    def licence(self) -> Licence | None:
        """Of the weights it started from; None where they are random."""
        return None if self.sha256 == RANDOM else self.row.licence


def begin(model: str | Path, chips: ChipSet, *, head: str, size: int, seed: int) -> Start:
    """The network to train, with a fresh head for the chips' task, or with its own.

    Parameters
    ----------
    model
        `new`, or whatever `--model` takes: a backbone, a canopy model (its backbone is taken), or a folder that an
        earlier training wrote (its other heads are kept, and what they stand on stays frozen; one for the same task
        gives way to the fresh one).
    head
        A kind of `models.heads.KINDS`, or `OWN`: the head that the model has, such as CHMv2's.
    size
        Side of the crops, which becomes the window of a model that is no headed one yet.

    Raises
    ------
    ModelError
        The model is no ViT, the head no kind for this task, or the model has none of its own for it.
    """
    task = chips.task
    if head not in (*KINDS[task], OWN):
        raise ModelError(f"head {head} is not one for {task}: use {' or '.join((*KINDS[task], OWN))}")
    torch.manual_seed(seed)
    if str(model) == NEW:
        if head == OWN:
            raise ModelError(f"a new network has no head of its own: use {' or '.join(KINDS[task])}")
        start_row, source, sha256 = _new_row(), None, RANDOM
        vit = DINOv3ViTConfig(**NEW_VIT, image_size=size)
    else:
        weights = find_weights(model)
        start_row, source, sha256 = weights.row, weights.load("fp32"), weights.sha256()
        if isinstance(source, HeadedNetwork):
            grown = _with_head(source, start_row, sha256, task, head, chips)
            return replace(grown, record=training_record(weights.folder))
        if head == OWN:
            return _with_canopy_head(source, start_row, sha256, task)
        vit = _vit_config(source, start_row)
    config = HeadedConfig(
        vit,
        taps=[max(1, round(share * vit.num_hidden_layers)) for share in (DPT_TAPS if head == "dpt" else TAPS)],
        pyramid=PYRAMID if head in ON_PYRAMID else None,
        heads={task: _head_config(task, head, chips)},
    )
    network = HeadedNetwork(config)
    begin_head(network, task)
    if source is not None:
        found = getattr(source, "backbone", source).state_dict()
        network.backbone.load_state_dict(found)
    fresh = (*(["pyramid"] if config.pyramid else []), f"heads.{task}", *(["backbone"] if source is None else []))
    return Start(network, start_row, sha256, (), fresh)


def trained_prefixes(start: Start, *, finetune: bool, learned: Collection[str] = ()) -> tuple[str, ...]:
    """Which weights learn: what is fresh, and the backbone and pyramid too where asked and no other head needs them.

    Parameters
    ----------
    learned
        Tasks that are learned, those that are rehearsed among them.

    Raises
    ------
    ModelError
        To fine-tune would change what other heads stand on, or a new backbone would stay random.
    """
    if finetune:
        if start.shared and (others := sorted(set(start.network.heads) - set(learned))):
            raise ModelError(
                f"fine-tuning would change what other heads ({', '.join(others)}) stand on: train without it, or with "
                "--rehearse and the folder of the training that made them"
            )
        return ("backbone", *(["pyramid"] if start.network.config.pyramid else []), "heads")
    if "backbone" in start.fresh:
        raise ModelError("a new backbone is random: train it too, with --finetune")
    return start.fresh


def _with_head(network: HeadedNetwork, start_row: ModelRow, sha256: str, task: str, head: str, chips: ChipSet) -> Start:
    """The network with one head more, or a fresh one in the place of its own; all else stays."""
    config = network.config
    if head == OWN:
        _check_own(config.heads, start_row.name, task, chips)
        return Start(network, start_row, sha256, _shared(config.heads, task), (f"heads.{task}",), own=True)
    if head == "dpt" and len(config.taps) != len(DPT_TAPS):
        raise ModelError(f"a dpt head looks at {len(DPT_TAPS)} levels, and {start_row.name} has {len(config.taps)}")
    heads = {**config.heads, task: _head_config(task, head, chips)}
    pyramid = config.pyramid or (PYRAMID if head in ON_PYRAMID else None)
    grown = HeadedNetwork(HeadedConfig(config.backbone_config, config.taps, pyramid, heads))
    begin_head(grown, task)
    kept = {name: value for name, value in network.state_dict().items() if not name.startswith(f"heads.{task}.")}
    missing, surplus = grown.load_state_dict(kept, strict=False)
    assert not surplus, surplus
    fresh = tuple(sorted({".".join(name.split(".")[: 2 if name.startswith("heads") else 1]) for name in missing}))
    return Start(grown, start_row, sha256, _shared(config.heads, task), fresh, replaced=task in config.heads)


def _with_canopy_head(source: PreTrainedModel, start_row: ModelRow, sha256: str, task: str) -> Start:
    """A canopy model, such as CHMv2, as a network whose head is its own."""
    if task != "canopy" or not isinstance(source, CHMv2ForDepthEstimation):
        raise ModelError(f"{start_row.name} has no head for {task} of its own: use {' or '.join(KINDS[task])}")
    config = source.config
    heads = {task: {"kind": "dpt", "bins": config.number_output_channels}}
    network = HeadedNetwork(
        HeadedConfig(_vit_config(source, start_row), taps=list(config.backbone_config.out_indices), heads=heads)
    )
    ours = network.heads[task]
    assert isinstance(ours, DPTHead)
    apart = [name for name in _DPT_SHAPE if getattr(ours.config, name) != getattr(config, name)]
    if apart or not config.backbone_config.apply_layernorm:
        raise ModelError(
            f"the head of {start_row.name} has another shape than CHMv2's ({', '.join(apart) or 'apply_layernorm'}), "
            "which alone can go on learning: use --head dpt for a fresh one"
        )
    network.backbone.load_state_dict(source.backbone.state_dict())
    ours.head.load_state_dict(source.head.state_dict())
    return Start(network, start_row, sha256, (), (f"heads.{task}",), own=True)


def _check_own(heads: Mapping[str, Any], name: str, task: str, chips: ChipSet) -> None:
    if task not in heads:
        raise ModelError(f"{name} has no head for {task} of its own: use {' or '.join(KINDS[task])}")
    known, asked = tuple(heads[task].get("classes", chips.class_names)), tuple(chips.class_names)
    if known != asked:
        raise ModelError(
            f"the head of {name} knows the classes {', '.join(known)}, and the labels are of {', '.join(asked)}: name "
            "them the same, in the same order, with --classes, or train a fresh head"
        )


def _shared(heads: Collection[str], task: str) -> tuple[str, ...]:
    """What other heads than that for the task stand on."""
    return ("backbone", "pyramid") if set(heads) - {task} else ()


def _head_config(task: str, head: str, chips: ChipSet) -> dict[str, Any]:
    if task == "canopy":
        return {"kind": head, "bins": DPT_BINS if head == "dpt" else BINS, "highest_m": HIGHEST_M}
    if task == "trees":
        return {"kind": head}
    return {"kind": head, "classes": list(chips.class_names)}


def _vit_config(source: PreTrainedModel, start_row: ModelRow) -> DINOv3ViTConfig:
    config = getattr(source.config, "backbone_config", source.config)
    if config.model_type != "dinov3_vit":
        raise ModelError(f"{start_row.name} is a {config.model_type}: heads are trained on ViT backbones")
    return DINOv3ViTConfig(**{k: v for k, v in config.to_dict().items() if k not in ("model_type", "architectures")})


def _new_row() -> ModelRow:
    tiling, licence = Tiling(256, overlap=64, margin=16), Licence(NOT_STATED, "")
    return ModelRow(NEW, "a new network", "vit", None, CHMV2_MEAN, CHMV2_STD, tiling, licence)
