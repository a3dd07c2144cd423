"""CHMv2 and DINOv3 networks of a few thousand weights, built from configs, for tests."""

import json
from pathlib import Path

import torch
from transformers import (
    CHMv2Config,
    CHMv2ForDepthEstimation,
    DINOv3ConvNextConfig,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    PreTrainedModel,
)

from geodino.models.network import HeadedConfig, HeadedNetwork

# Networks this small lose more by two threads waiting for each other than they gain, a hundredfold on a busy machine.
torch.set_num_threads(1)

CHMV2_STATISTICS = {"image_mean": [0.420, 0.411, 0.296], "image_std": [0.213, 0.156, 0.143]}


def vit_config(**changes: object) -> DINOv3ViTConfig:
    kwargs = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "num_register_tokens": 4,
        "image_size": 128,
    }
    return DINOv3ViTConfig(**(kwargs | changes))


def convnext_config() -> DINOv3ConvNextConfig:
    return DINOv3ConvNextConfig(hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 2, 1])


def canopy_network(*, seed: int = 0, vit: dict[str, object] | None = None, **head: object) -> CHMv2ForDepthEstimation:
    """A tiny CHMv2, its random weights scaled up so that heights differ from pixel to pixel."""
    backbone = vit_config(out_indices=[1, 2, 3, 4], return_class_token=True, **(vit or {}))
    kwargs = {"post_process_channels": [8, 16, 24, 32], "fusion_hidden_size": 16, "head_hidden_size": 8}
    torch.manual_seed(seed)
    return randomise(CHMv2ForDepthEstimation(CHMv2Config(backbone_config=backbone, **(kwargs | head))))


def headed_network(*, seed: int = 0, **heads: dict[str, object]) -> HeadedNetwork:
    """A tiny network of geodino's own heads, random."""
    pyramid = {"widths": [4, 8, 12, 16], "middle": 8, "width": 8, "blocks": [1, 1, 1]}
    torch.manual_seed(seed)
    config = HeadedConfig(vit_config(num_hidden_layers=2), taps=[1, 2], pyramid=pyramid, heads=heads)
    return randomise(HeadedNetwork(config))


def randomise(network: PreTrainedModel) -> PreTrainedModel:
    """Every weight random and every bias not 0, so that none can be lost or mistaken for another unnoticed."""
    with torch.no_grad():
        for weight in network.parameters():
            scale = weight[0].numel() ** -0.5 if weight.dim() > 1 else 0.3
            weight.copy_(torch.randn_like(weight) * scale + (0.0 if weight.dim() > 1 else 0.2))
    return network.eval()


def save_backbone(folder: Path) -> Path:
    """A tiny ViT with the statistics of SAT-493M, for heads to be trained on."""
    torch.manual_seed(0)
    statistics = {"image_mean": [0.43, 0.411, 0.296], "image_std": [0.213, 0.156, 0.143]}
    return save(DINOv3ViTModel(vit_config()).eval(), folder, statistics)


def save(network: PreTrainedModel, folder: Path, statistics: dict[str, list[float]] | None = None) -> Path:
    """The network as a folder in the Hub's layout."""
    network.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(statistics or CHMV2_STATISTICS))
    return folder
