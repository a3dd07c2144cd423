"""Imagery and models for the benchmarks: real pixels repeated to any size, and random weights of any shape."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import rasterio
import torch
from rasterio.windows import Window
from transformers import CHMv2Config, CHMv2ForDepthEstimation

from geodino.models.catalog import row
from geodino.shipped import sample_folder

GSD = 0.6
WEST, NORTH = 600_000.0, 4_800_000.0


def write_scene(path: Path, height: int, width: int) -> None:
    """A tiled uint8 RGB GeoTIFF at 0.6 m in UTM 10N: the sample's photo, mirrored and repeated."""
    if path.exists():
        return
    with rasterio.open(sample_folder() / "autzen" / "autzen.tif") as sample:
        photo = sample.read()
    tile = np.concatenate([photo, photo[:, ::-1]], axis=1)
    profile = {
        "driver": "GTiff",
        "dtype": "uint8",
        "count": 3,
        "height": height,
        "width": width,
        "crs": "EPSG:32610",
        "transform": rasterio.Affine(GSD, 0, WEST, 0, -GSD, NORTH),
        "tiled": True,
        "blockxsize": 512,
        "blockysize": 512,
        "compress": "deflate",
        "predictor": 2,
        "photometric": "rgb",
    }
    across = np.concatenate([tile] * (width // tile.shape[2] + 1), axis=2)[:, :, :width]
    with rasterio.open(path, "w", **profile) as scene:
        for top in range(0, height, 512):
            rows = min(512, height - top)
            picked = np.arange(top, top + rows) % tile.shape[1]
            scene.write(across[:, picked], window=Window(0, top, width, rows))


def bounds_aoi(height: int, width: int, inset_px: int = 0) -> str:
    """The scene's outline, drawn in by some pixels, as WKT in UTM 10N."""
    west, north = WEST + inset_px * GSD, NORTH - inset_px * GSD
    east, south = WEST + (width - inset_px) * GSD, NORTH - (height - inset_px) * GSD
    return f"SRID=32610;POLYGON(({west} {south}, {east} {south}, {east} {north}, {west} {north}, {west} {south}))"


def random_model(folder: Path, config: CHMv2Config) -> Path:
    """A model of that shape with random weights, saved as a local folder that `--model` takes."""
    if not (folder / "model.safetensors").exists():
        torch.manual_seed(0)
        CHMv2ForDepthEstimation(config).save_pretrained(folder)
        chmv2 = row("chmv2")
        facts = {"image_mean": list(chmv2.mean), "image_std": list(chmv2.std), "rescale_factor": 1 / 255, "gsd_m": GSD}
        (folder / "preprocessor_config.json").write_text(json.dumps(facts))
    return folder


def vit_large(folder: Path) -> Path:
    """The full-size CHMv2 (ViT-L/16 and its DPT head) with random weights; 1.3 GB."""
    return random_model(folder, CHMv2Config())


def tiny(folder: Path) -> Path:
    """A CHMv2 of two narrow layers, for measuring everything but the model."""
    backbone = {
        "model_type": "dinov3_vit",
        "image_size": 512,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_attention_heads": 2,
        "num_hidden_layers": 4,
        "num_register_tokens": 4,
        "key_bias": True,
        "out_indices": [1, 2, 3, 4],
        "reshape_hidden_states": True,
        "apply_layernorm": True,
        "return_class_token": True,
    }
    config = CHMv2Config(
        backbone_config=backbone,
        post_process_channels=[8, 8, 8, 8],
        fusion_hidden_size=8,
        head_hidden_size=4,
    )
    return random_model(folder, config)
