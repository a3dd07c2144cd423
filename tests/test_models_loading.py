"""A folder is loaded whole or not at all, and what is wrong with it is named."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import CHMV2_STATISTICS, canopy_network, convnext_config, randomise, save, vit_config
from transformers import CHMv2ForDepthEstimation, DINOv3ConvNextModel, DINOv3ViTModel

from geodino.errors import ModelError
from geodino.models import facts_of, is_at_hand, load_backbone, load_model
from geodino.models.catalog import DINOV3_LICENCE, Licence, ModelRow, row, rows
from geodino.models.checkpoint import load_network, row_of_folder
from geodino.models.files import sha256_of
from geodino.models.official import config_of
from geodino.shipped import nano_folder
from geodino.windows import Tiling


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(canopy_network(), tmp_path_factory.mktemp("saved") / "tiny")


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "tiny"))


def describe(folder: Path, known: ModelRow, **stated: object) -> Path:
    """The descriptions, without weights, of a model with the architecture and statistics of a published one."""
    # geodino.models.official states the published configurations.
    config_of(known).save_pretrained(folder)
    statistics = {"image_mean": list(known.mean), "image_std": list(known.std)}
    (folder / "preprocessor_config.json").write_text(json.dumps(statistics | stated))
    return folder


def change_weights(folder: Path, **changes: torch.Tensor | None) -> None:
    weights = load_file(folder / "model.safetensors") | changes
    save_file({k: v for k, v in weights.items() if v is not None}, folder / "model.safetensors", {"format": "pt"})


@torch.no_grad()
def test_a_folder_gives_the_numbers_of_the_plain_transformers_class(saved: Path) -> None:
    model = load_model(saved, device="cpu", precision="fp32")
    plain = CHMv2ForDepthEstimation.from_pretrained(saved)
    images = np.random.default_rng(0).random((2, 3, 96, 96), dtype=np.float32)
    mean, std = (np.array(v, np.float32).reshape(1, 3, 1, 1) for v in (model.mean, model.std))
    expected = plain.eval()(torch.from_numpy((images - mean) / std)).predicted_depth
    assert expected.std() > 0.1
    np.testing.assert_allclose(model.predict(images)[:, 0], expected, atol=1e-3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"head.convs.1.weight": None}, r"head\.convs\.1\.weight missing"),
        ({"head.extra": torch.zeros(2)}, r"head\.extra surplus"),
        ({"head.convs.1.weight": torch.zeros(3)}, r"head\.convs\.1\.weight of another shape"),
        ({"backbone.norm.weight": None, "more": torch.zeros(1)}, r"backbone\.norm\.weight missing; more surplus"),
    ],
)
def test_weights_that_are_not_those_of_the_architecture_are_named(
    folder: Path, changes: dict[str, torch.Tensor | None], message: str
) -> None:
    change_weights(folder, **changes)
    with pytest.raises(ModelError, match=message):
        load_model(folder)


def test_a_long_list_of_differences_is_cut_off(folder: Path) -> None:
    change_weights(folder, **{f"extra.{i}": torch.zeros(1) for i in range(9)})
    with pytest.raises(ModelError, match=r"extra\.4 and 4 more surplus$"):
        load_model(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 9\n", "Git LFS pointer.*git lfs pull"),
        (b"<!DOCTYPE html><html>Log in</html>", "a web page, not the weights"),
        (b"", "damaged or cut off"),
    ],
)
def test_what_is_not_weights_is_recognised(folder: Path, content: bytes, message: str) -> None:
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(ModelError, match=message):
        load_model(folder)


def test_half_a_download_is_refused(folder: Path) -> None:
    path = folder / "model.safetensors"
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(ModelError, match=r"model\.safetensors \([\d,]+ bytes\) is damaged or cut off"):
        load_model(folder)


def test_a_pickle_is_never_opened(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"pytorch_model\.bin, a pickle"):
        load_model(folder)


def test_a_missing_shard_is_named(saved: Path, tmp_path: Path) -> None:
    network = load_network(saved)
    network.save_pretrained(tmp_path, max_shard_size="60KB")
    shutil.copy(saved / "preprocessor_config.json", tmp_path)
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(shards) > 1
    assert load_model(tmp_path, device="cpu").weights_sha256 == sha256_of(shards)
    shards[1].unlink()
    with pytest.raises(ModelError, match=f"lacks {shards[1].name}"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.json", None, r"has no config\.json"),
        ("config.json", "{", "is not JSON"),
        ("config.json", "[]", "holds a list, not a JSON object"),
        ("config.json", '{"model_type": "bert"}', "says model_type bert: geodino loads chmv2, dinov3_vit"),
        ("config.json", '{"model_type": "chmv2", "min_depth": "low"}', "does not describe a model"),
        ("preprocessor_config.json", None, r"has no preprocessor_config\.json"),
        (
            "preprocessor_config.json",
            '{"image_mean": [0.4, 0.4, 0.3], "image_std": [0.2, 0.2, 0.1], "gsd_m": "60 cm"}',
            "says gsd_m 60 cm: it must be metres a pixel",
        ),
        ("preprocessor_config.json", '{"image_mean": [0.4, 0.4]}', "image_mean .*must be three numbers"),
        (
            "preprocessor_config.json",
            '{"image_mean": [0.4, 0.4, 0.3], "image_std": [0.2, 0, 0.1]}',
            r"image_std \[0\.2, 0\.0, 0\.1\]: .*must be above 0",
        ),
    ],
)
def test_a_bad_description_is_refused(folder: Path, file: str, content: str | None, message: str) -> None:
    (folder / file).unlink() if content is None else (folder / file).write_text(content)
    with pytest.raises(ModelError, match=message):
        load_model(folder)


def change_config(folder: Path, keys: str, value: object) -> None:
    described = json.loads((folder / "config.json").read_text())
    inner = described
    *outer, last = keys.split(".")
    for key in outer:
        inner = inner[key]
    inner[last] = value
    (folder / "config.json").write_text(json.dumps(described))


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        ("backbone_config", {}, "KeyError"),
        ("backbone_config.model_type", [1], "TypeError: unhashable"),
        ("backbone_config.model_type", "dinov3_convnext", "KeyError|backbone dinov3_convnext: a canopy model needs"),
        ("backbone_config.dtype", "float99", "AttributeError: .*float99"),
        ("backbone_config.hidden_act", "gelo", "KeyError: 'gelo'"),
        ("backbone_config.num_attention_heads", 0, "ZeroDivisionError"),
        ("backbone_config.num_attention_heads", 3, "hidden_size 32: it must be a multiple of num_attention_heads 3"),
        ("backbone_config.num_hidden_layers", 3, "ValueError: out_features must be a subset"),
        ("backbone_config.patch_size", [1, 2], r"patch_size 16 and \[1, 2\]: it must be 16"),
        ("backbone_config.image_size", [], "ValueError: not enough values"),
        ("dtype", [], "IndexError"),
        ("number_output_channels", -1, "RuntimeError: .*negative dimension -1"),
        ("patch_size", 0, "patch_size 0 and 16: it must be 16"),
    ],
)
def test_a_value_that_makes_no_network_is_told_with_its_folder(
    folder: Path, keys: str, value: object, message: str
) -> None:
    change_config(folder, keys, value)
    with pytest.raises(ModelError, match=rf"config\.json of {folder} .*({message})"):
        load_model(folder, device="cpu")


@pytest.mark.parametrize(("keys", "value"), [("hidden_sizes", []), ("hidden_act", "gelo"), ("depths", [1, 2])])
def test_a_convnext_that_cannot_be_built_is_told_with_its_folder(keys: str, value: object, tmp_path: Path) -> None:
    folder = save(DINOv3ConvNextModel(convnext_config()), tmp_path / "mine")
    change_config(folder, keys, value)
    with pytest.raises(ModelError, match=f"config.json of {folder} does not describe a model that can be built"):
        load_backbone(folder, device="cpu")


def test_mean_and_std_come_from_the_folder(folder: Path) -> None:
    statistics = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
    (folder / "preprocessor_config.json").write_text(json.dumps(statistics))
    model = load_model(folder, device="cpu")
    assert (model.mean, model.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


@pytest.mark.parametrize(("stated", "expected"), [({}, None), ({"gsd_m": 0.25}, 0.25)])
def test_metres_a_pixel_of_an_unknown_model_are_those_it_states(
    folder: Path, stated: dict[str, float], expected: float | None
) -> None:
    (folder / "preprocessor_config.json").write_text(json.dumps(CHMV2_STATISTICS | stated))
    assert row_of_folder(folder).gsd_m == expected


@pytest.mark.parametrize(
    "stated",
    [
        {"gsd_m": -1},
        {"gsd_m": float("inf")},
        {"licence": 4},
        {"licence_url": "https://example.org"},
        {"demonstration": "no"},
    ],
)
def test_what_a_folder_states_of_itself_must_make_sense(folder: Path, stated: dict[str, object]) -> None:
    (folder / "preprocessor_config.json").write_text(json.dumps(CHMV2_STATISTICS | stated))
    with pytest.raises(ModelError, match=rf"preprocessor_config\.json says .*{next(iter(stated))} .*: it must be"):
        row_of_folder(folder)


def test_a_folder_states_its_licence_and_that_it_is_a_demonstration(folder: Path) -> None:
    stated = {"licence": "CC0-1.0", "demonstration": True}
    (folder / "preprocessor_config.json").write_text(json.dumps(CHMV2_STATISTICS | stated))
    found = row_of_folder(folder)
    assert (found.licence, found.demonstration) == (Licence("CC0-1.0", ""), True)


def test_nano_by_its_path_is_still_a_demonstration_under_its_licence() -> None:
    by_name, by_path = load_model("nano", device="cpu").row, load_model(nano_folder(), device="cpu").row
    assert by_path == replace(by_name, title=by_path.title, shape=by_path.shape, pretraining="")


def test_nano_has_as_many_parameters_as_the_catalog_says() -> None:
    assert load_network(nano_folder()).num_parameters() == row("nano").parameters


def test_windows_of_an_unknown_model_have_its_training_size(saved: Path) -> None:
    assert row_of_folder(saved).tiling == Tiling(128, overlap=64, margin=16)


@pytest.mark.parametrize("name", [known.name for known in rows() if known.shape is not None])
def test_a_model_built_like_a_published_one_keeps_its_facts(name: str, tmp_path: Path) -> None:
    known = row(name)
    found = row_of_folder(describe(tmp_path, known))
    assert (found.name, found.licence, found.tiling, found.gsd_m) == (
        tmp_path.name,
        known.licence,
        known.tiling,
        known.gsd_m,
    )


@pytest.mark.parametrize("name", ["chmv2", "sat-vitl16", "sat-vit7b16"])
def test_the_other_red_mean_in_circulation_changes_no_licence(name: str, tmp_path: Path) -> None:
    known = row(name)
    other = (0.85 - known.mean[0], *known.mean[1:])
    found = row_of_folder(describe(tmp_path, replace(known, mean=tuple(round(value, 3) for value in other))))
    assert (found.licence, found.gsd_m) == (DINOV3_LICENCE, 0.6)
    assert found.mean == pytest.approx(other)


def test_a_dinov3_of_whom_nobody_says_a_licence_may_be_under_the_dinov3_license(tmp_path: Path) -> None:
    known = replace(row("sat-vitl16"), mean=(0.5, 0.5, 0.5))
    found = row_of_folder(describe(tmp_path, known)).licence
    assert found.name == "not stated (DINOv3 License if derived from DINOv3)" and found.url == DINOV3_LICENCE.url


@pytest.mark.parametrize("name", ["chmv2", "lvd-vits16"])
def test_a_fine_tuned_model_has_its_own_gsd_and_no_address_of_the_original(name: str, tmp_path: Path) -> None:
    found = row_of_folder(describe(tmp_path, row(name), gsd_m=0.3))
    assert (found.gsd_m, found.hub_id, found.official, found.gated) == (0.3, None, (), False)


@pytest.mark.parametrize(
    ("network_class", "config"), [(DINOv3ViTModel, vit_config()), (DINOv3ConvNextModel, convnext_config())]
)
def test_a_backbone_is_no_canopy_model(network_class: type, config: object, tmp_path: Path) -> None:
    folder = save(randomise(network_class(config)), tmp_path / "mine")
    with pytest.raises(
        ModelError, match=r"mine is a backbone without a head, .*: use chmv2 or nano, or `geodino train canopy`$"
    ):
        load_model(folder)
    with pytest.raises(ModelError, match=r"mine is a backbone without a head"):
        facts_of(folder)
    assert load_backbone(folder, device="cpu").row.name == "mine"


def test_a_canopy_model_is_no_backbone(saved: Path) -> None:
    with pytest.raises(ModelError, match="tiny is a model with heads"):
        load_backbone(saved)


def test_facts_of_a_folder_are_those_it_is_loaded_with_and_read_no_weights(folder: Path) -> None:
    loaded = replace(load_model(folder, device="cpu").row, parameters=0)
    (folder / "model.safetensors").write_bytes(b"not read")
    assert is_at_hand(folder) and facts_of(folder) == loaded


def test_a_folder_without_weights_is_refused_from_its_facts(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    assert not is_at_hand(folder)
    with pytest.raises(ModelError, match=r"lacks model\.safetensors"):
        facts_of(folder)


def test_facts_of_official_files_are_known_by_their_names(tmp_path: Path) -> None:
    files = [tmp_path / name for name in row("chmv2").official]
    files[0].touch()
    named = "+".join(map(str, files))
    assert not is_at_hand(named)
    with pytest.raises(ModelError, match=f"no file {files[1]}"):
        facts_of(named)
    files[1].touch()
    assert is_at_hand(named) and facts_of(named) == facts_of(tmp_path) == row("chmv2")


def test_names_of_old_checkpoints_are_understood(tmp_path: Path) -> None:
    # Repositories of August 2025 say `layer.0...`; transformers has said `model.layer.0...` since version 5.
    network = randomise(DINOv3ViTModel(vit_config()))
    folder = save(network, tmp_path / "old")
    old = {name.removeprefix("model."): weight for name, weight in network.state_dict().items()}
    save_file(old, folder / "model.safetensors", {"format": "pt"})
    loaded = load_network(folder).state_dict()
    assert all(torch.equal(loaded[name], weight) for name, weight in network.state_dict().items())


def test_straight_to_bf16_makes_no_float32_weight(saved: Path) -> None:
    assert {weight.dtype for weight in load_network(saved, bf16=True).parameters()} == {torch.bfloat16}


def test_loading_is_silent(saved: Path, capfd: pytest.CaptureFixture[str]) -> None:
    load_model(saved, device="cpu")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("chm2", "no model named chm2; did you mean chmv2"),
        ("no/such/folder", "no model named no/such/folder; known: chmv2, nano"),
        ("gone.pth", r"no file gone\.pth"),
    ],
)
def test_an_unknown_name_is_refused_with_a_way_on(name: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        load_model(name)
