"""What fewer bits do to a model's figures and to its speed: float32, bfloat16 and dynamic int8, on the CPU.

    python benchmarks/precision.py --data data

Figures are those of `geodino evaluate`: trees on the chips of split `val` of urban-trees, heights on autzen_val. Speed
is that of both heads on windows in memory; the three take turns, and the ratio to float32 is taken within each turn,
because machines drift. Dynamic int8 (torch.ao.quantization) reaches matrix products only, the vision transformer's;
convolutions stay in float32.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import torch

from geodino.evaluation.models import evaluate_model
from geodino.models import Model
from geodino.models.loading import find_weights
from geodino.models.precision import Precision
from geodino.training.chips import ChipOptions, LabelOptions, build_chips
from geodino.training.chipset import ChipSet

KINDS: dict[str, Precision] = {"fp32": "fp32", "bf16": "bf16", "int8": "fp32"}
WINDOWS = 24


def main() -> None:
    """Measure and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with urban-trees and canopy")
    parser.add_argument("--model", default="nano")
    parser.add_argument("--turns", type=int, default=5)
    arguments = parser.parse_args()
    models = {kind: load(arguments.model, kind) for kind in KINDS}
    gsd_m, side = models["fp32"].row.gsd_m or 0.6, models["fp32"].tiling.size
    with tempfile.TemporaryDirectory() as folder:
        chips = {
            "canopy": autzen(arguments.data / "canopy" / "scenes", Path(folder) / "canopy", side),
            "trees": towns(arguments.data / "urban-trees", Path(folder) / "trees", side),
        }
        shown = {"canopy": ("mae_m", "bias_m", "r2"), "trees": ("f1", "count_r2", "count_bias")}
        print(f"{'':<6} {'canopy MAE':>10} {'bias':>7} {'R2':>6} {'trees F1':>9} {'count R2':>9} {'bias %':>7}")
        for kind, model in models.items():
            cells = []
            for task, names in shown.items():
                found = evaluate_model(model, chips[task]).report
                figures = {figure.name: figure.value for figure in found.figures}
                cells += [figures[name] for name in names]
            print(f"{kind:<6} " + " ".join(f"{cell:>9.3f}" for cell in cells), flush=True)
    windows = np.random.default_rng(0).random((WINDOWS, 3, side, side), dtype=np.float32)
    kept = {kind: [] for kind in KINDS}
    for _ in range(arguments.turns):
        for kind, model in models.items():
            kept[kind].append(seconds(model, windows))
    stride_m = models["fp32"].tiling.stride * gsd_m
    print(f"\n{'':<6} {'windows/s':>9} {'km2/min':>8} {'of fp32':>8}")
    for kind, spent in kept.items():
        rate = WINDOWS / statistics.median(spent)
        ratio = statistics.median(one / other for one, other in zip(kept["fp32"], spent, strict=True))
        print(f"{kind:<6} {rate:>9.1f} {rate * 60 * stride_m**2 / 1e6:>8.1f} {ratio:>8.2f}")


def load(name: str, kind: str) -> Model:
    """The model with the bits of one kind."""
    weights = find_weights(name)
    network = weights.load("fp32").eval()
    if kind == "int8":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch says that it will move to torchao
            network.backbone = torch.ao.quantization.quantize_dynamic(
                network.backbone, {torch.nn.Linear}, dtype=torch.qint8
            )
    return Model(
        network, weights.row, weights_sha256=weights.sha256(), precision=KINDS[kind], device=torch.device("cpu")
    )


def autzen(scenes: Path, folder: Path, side: int) -> ChipSet:
    """The canopy scene that nothing was trained or tuned on."""
    labels, source = [str(scenes / "autzen_val_chm.tif")], [str(scenes / "autzen_val_rgb.tif")]
    return build_chips("canopy", labels, source, folder=folder, options=ChipOptions(size=side))


def towns(data: Path, folder: Path, side: int) -> ChipSet:
    """The chips of towns that nothing was trained or tuned on."""
    options = ChipOptions(size=side, labels=LabelOptions(scene_column="chip"), splits=(str(data / "chips.csv"),))
    source = [str(data / "stac" / "catalog.json")]
    chips = build_chips("trees", [str(data / "trees.parquet")], source, folder=folder, options=options)
    return chips.subset((chips.table["split"] == "val").to_numpy())


def seconds(model: Model, windows: np.ndarray) -> float:
    """Of both heads over all windows."""
    began = time.perf_counter()
    model.maps(windows)
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
