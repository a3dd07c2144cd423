"""What a training starts from: a backbone, a headed model or a canopy model, with the head that is to learn."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from transformers import DINOv3ViTConfig, PreTrainedModel

from geodino.errors import ModelError
from geodino.models.catalog import CHMV2_MEAN, CHMV2_STD, Licence, ModelRow
from geodino.models.heads import KINDS, ON_PYRAMID
from geodino.models.loading import find_weights
from geodino.models.network import HeadedConfig, HeadedNetwork, begin_head
from geodino.training.chipset import ChipSet
from geodino.training.leaks import training_record
from geodino.training.licences import NOT_STATED
from geodino.windows import Tiling

# `--model new`: the shape of `nano`, from random weights.
NEW = "new"
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
        Prefixes of the weights that begin at random.
    record
        What an earlier training of it left in training.json; empty if there was none.
    replaced
        Whether it had a head for the task, which was thrown away.
    """

    network: HeadedNetwork
    row: ModelRow
    sha256: str
    shared: tuple[str, ...]
    fresh: tuple[str, ...]
    record: Mapping[str, Any] = field(default_factory=dict)
    replaced: bool = False

    @property
    def licence(self) -> Licence | None:
        """Of the weights it started from; None where they are random."""
        return None if self.sha256 == RANDOM else self.row.licence


def begin(model: str | Path, chips: ChipSet, *, head: str, size: int, seed: int) -> Start:
    """The network to train, with a fresh head for the chips' task.

    Parameters
    ----------
    model
        `new`, or whatever `--model` takes: a backbone, a canopy model (its backbone is taken), or a folder that an
        earlier training wrote (its other heads are kept, and what they stand on stays frozen; one for the same task
        gives way to the fresh one).
    head
        A kind of `models.heads.KINDS`.
    size
        Side of the crops, which becomes the model's window.

    Raises
    ------
    ModelError
        The model is no ViT, or the head no kind for this task.
    """
    task = chips.task
    if head not in KINDS[task]:
        raise ModelError(f"head {head} is not one for {task}: use {' or '.join(KINDS[task])}")
    torch.manual_seed(seed)
    if str(model) == NEW:
        start_row, source, sha256 = _new_row(), None, RANDOM
        vit = DINOv3ViTConfig(**NEW_VIT, image_size=size)
    else:
        weights = find_weights(model)
        start_row, source, sha256 = weights.row, weights.load("fp32"), weights.sha256()
        if isinstance(source, HeadedNetwork):
            grown = _with_head(source, start_row, sha256, task, head, chips)
            return replace(grown, record=training_record(weights.folder))
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
    others = set(config.heads) - {task}
    shared = ("backbone", "pyramid") if others else ()
    return Start(grown, start_row, sha256, shared, fresh, replaced=task in config.heads)


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
