"""Every model that geodino knows by name, one row each: where it lies, what it expects, under which licence.

Facts are those of https://github.com/facebookresearch/dinov3 at 6876159 (June 2026): file names and hashes from
dinov3/hub/backbones.py and dinov3/hub/depthers.py, sizes and statistics from README.md, pretraining from MODEL_CARD.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from geodino.errors import ModelError
from geodino.shipped import nearest
from geodino.windows import Tiling

Family = Literal["vit", "convnext", "chmv2", "headed"]


@dataclass(frozen=True)
class ViTShape:
    """The size of a vision transformer with 16 px patches and 4 register tokens.

    Attributes
    ----------
    hidden
        Width inside the MLP; of each of its two halves where it is `gated` (SwiGLU).
    qkv_bias
        Whether queries and values have a bias; keys never have one (the official code masks it to 0).
    """

    width: int
    depth: int
    heads: int
    hidden: int
    gated: bool = False
    qkv_bias: bool = True


@dataclass(frozen=True)
class ConvNeXtShape:
    """Blocks and width of each of the four stages."""

    depths: tuple[int, int, int, int]
    widths: tuple[int, int, int, int]


@dataclass(frozen=True)
class Licence:
    """What the weights may be used under."""

    name: str
    url: str


@dataclass(frozen=True)
class ModelRow:
    """One model.

    Attributes
    ----------
    hub_id
        Repository on the Hugging Face Hub; None for what is only local.
    shape
        None where only the folder's own config.json knows it.
    mean, std
        Of red, green, blue in 0..1: the model sees (pixel - mean) / std.
    parameters
        As published, rounded; 0 where unknown.
    gsd_m
        Metres a pixel of the imagery it was made for; None where it was trained on photographs.
    heads
        What it predicts by itself; empty for a backbone, which gives features only.
    official
        Names of the .pth files it is published as; the eight hex digits are the first of the file's SHA-256.
    demonstration
        Whether it only shows how geodino works and its figures are not to be relied on.
    """

    name: str
    title: str
    family: Family
    shape: ViTShape | ConvNeXtShape | None
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    tiling: Tiling
    licence: Licence
    hub_id: str | None = None
    parameters: int = 0
    gsd_m: float | None = None
    heads: tuple[str, ...] = ()
    gated: bool = False
    official: tuple[str, ...] = ()
    pretraining: str = ""
    citation: str = ""
    demonstration: bool = False


DINOV3_LICENCE = Licence("DINOv3 License", "https://ai.meta.com/resources/models-and-libraries/dinov3-license/")
CC_BY = Licence("CC-BY-4.0", "https://creativecommons.org/licenses/by/4.0/")

DINOV3_PAPER = "Siméoni et al. (2025), DINOv3, arXiv:2508.10104"
CHMV2_PAPER = "Brandt et al. (2026), CHMv2: Improvements in Global Canopy Height Mapping using DINOv3, arXiv:2603.06382"

LVD = "LVD-1689M: 1,689 million photographs from the web"
SAT = "SAT-493M: 493 million 512 px Maxar RGB ortho images at 0.6 m"

# README.md 258-286 of the official repository. The red mean of CHMv2 is not that of the plain SAT-493M backbones:
# notebooks/chmv2_inference.ipynb cell 8 and transformers' processor say 0.420, the README's SAT-493M section 0.430.
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SAT_MEAN, SAT_STD = (0.430, 0.411, 0.296), (0.213, 0.156, 0.143)
CHMV2_MEAN, CHMV2_STD = (0.420, 0.411, 0.296), (0.213, 0.156, 0.143)

# Near the training sizes (416 to 512 px), at the flat optimum of cost against overlap.
WIDE = Tiling(512, overlap=64, margin=16)

VITS = ViTShape(width=384, depth=12, heads=6, hidden=1536)
VITS_PLUS = ViTShape(width=384, depth=12, heads=6, hidden=1536, gated=True)
VITB = ViTShape(width=768, depth=12, heads=12, hidden=3072)
VITL = ViTShape(width=1024, depth=24, heads=16, hidden=4096)
VITH_PLUS = ViTShape(width=1280, depth=32, heads=20, hidden=5120, gated=True)
VIT7B = ViTShape(width=4096, depth=40, heads=32, hidden=8192, gated=True, qkv_bias=False)

TINY = ConvNeXtShape((3, 3, 9, 3), (96, 192, 384, 768))
SMALL = ConvNeXtShape((3, 3, 27, 3), (96, 192, 384, 768))
BASE = ConvNeXtShape((3, 3, 27, 3), (128, 256, 512, 1024))
LARGE = ConvNeXtShape((3, 3, 27, 3), (192, 384, 768, 1536))


def _sat(name: str, title: str, shape: ViTShape, parameters: int, digest: str) -> ModelRow:
    arch = name.removeprefix("sat-")
    return ModelRow(
        name,
        title,
        "vit",
        shape,
        SAT_MEAN,
        SAT_STD,
        WIDE,
        DINOV3_LICENCE,
        hub_id=f"facebook/dinov3-{arch}-pretrain-sat493m",
        parameters=parameters,
        gsd_m=0.6,
        gated=True,
        official=(f"dinov3_{arch}_pretrain_sat493m-{digest}.pth",),
        pretraining=SAT,
        citation=DINOV3_PAPER,
    )


def _lvd(name: str, title: str, shape: ViTShape | ConvNeXtShape, parameters: int, digest: str) -> ModelRow:
    arch = name.removeprefix("lvd-")
    return ModelRow(
        name,
        title,
        "vit" if isinstance(shape, ViTShape) else "convnext",
        shape,
        IMAGENET_MEAN,
        IMAGENET_STD,
        WIDE,
        DINOV3_LICENCE,
        hub_id=f"facebook/dinov3-{arch}-pretrain-lvd1689m",
        parameters=parameters,
        gated=True,
        official=(f"dinov3_{arch.replace('-', '_')}_pretrain_lvd1689m-{digest}.pth",),
        pretraining=LVD,
        citation=DINOV3_PAPER,
    )


_ROWS = (
    ModelRow(
        "chmv2",
        "CHMv2: canopy height on DINOv3 ViT-L/16 SAT-493M",
        "chmv2",
        VITL,
        CHMV2_MEAN,
        CHMV2_STD,
        WIDE,
        DINOV3_LICENCE,
        hub_id="facebook/dinov3-vitl16-chmv2-dpt-head",
        parameters=337_000_000,
        gsd_m=0.6,
        heads=("height", "spread"),
        gated=True,
        official=("dinov3_vitl16_pretrain_sat493m-eadcf0ff.pth", "dinov3_vitl16_chmv2_dpt_head-3703d643.pth"),
        pretraining=f"{SAT}; head on airborne lidar heights",
        citation=f"{CHMV2_PAPER}; {DINOV3_PAPER}",
    ),
    ModelRow(
        "nano",
        "nano: a small demonstration model for canopy height and trees",
        "headed",
        None,
        CHMV2_MEAN,
        CHMV2_STD,
        Tiling(256, overlap=64, margin=16),
        CC_BY,
        parameters=7_501_508,
        gsd_m=0.6,
        heads=("height", "spread", "trees"),
        pretraining="none: trained from scratch on eight towns and a few lidar scenes, see its model card",
        demonstration=True,
    ),
    _sat("sat-vitl16", "DINOv3 ViT-L/16 SAT-493M", VITL, 300_000_000, "eadcf0ff"),
    _sat("sat-vit7b16", "DINOv3 ViT-7B/16 SAT-493M", VIT7B, 6_716_000_000, "a6675841"),
    _lvd("lvd-vits16", "DINOv3 ViT-S/16 LVD-1689M", VITS, 21_000_000, "08c60483"),
    _lvd("lvd-vits16plus", "DINOv3 ViT-S+/16 LVD-1689M", VITS_PLUS, 29_000_000, "4057cbaa"),
    _lvd("lvd-vitb16", "DINOv3 ViT-B/16 LVD-1689M", VITB, 86_000_000, "73cec8be"),
    _lvd("lvd-vitl16", "DINOv3 ViT-L/16 LVD-1689M", VITL, 300_000_000, "8aa4cbdd"),
    _lvd("lvd-vith16plus", "DINOv3 ViT-H+/16 LVD-1689M", VITH_PLUS, 840_000_000, "7c1da9a5"),
    _lvd("lvd-vit7b16", "DINOv3 ViT-7B/16 LVD-1689M", VIT7B, 6_716_000_000, "a955f4ea"),
    _lvd("lvd-convnext-tiny", "DINOv3 ConvNeXt Tiny LVD-1689M", TINY, 29_000_000, "21b726bb"),
    _lvd("lvd-convnext-small", "DINOv3 ConvNeXt Small LVD-1689M", SMALL, 50_000_000, "296db49d"),
    _lvd("lvd-convnext-base", "DINOv3 ConvNeXt Base LVD-1689M", BASE, 89_000_000, "801f2ba9"),
    _lvd("lvd-convnext-large", "DINOv3 ConvNeXt Large LVD-1689M", LARGE, 198_000_000, "61fa432d"),
)


def rows() -> tuple[ModelRow, ...]:
    """All models, canopy models first."""
    return _ROWS


def row(name: str) -> ModelRow:
    """The model of that name; ModelError offers the nearest known one."""
    for candidate in _ROWS:
        if candidate.name == name:
            return candidate
    raise ModelError(f"no model named {name}{nearest(name, [row.name for row in _ROWS])}")
