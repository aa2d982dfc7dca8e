"""MODEL.WEIGHTS: reading is safe, settings must match the configuration, and every tensor must be used."""

import os
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_model
from torch import nn

from pretrain.common.errors import UserError
from tests.support.checkpoints import moco_file, plain_file, small_network
from tests.support.layouts import detectron2_names
from transfer.convert.convert import convert
from transfer.convert.weights_file import read_weights
from transfer.models import init_weights
from transfer.models.init_weights import (
    check_filled,
    check_kind,
    check_preprocessing,
    load_detector,
    load_into,
)

NETWORK = small_network()
SETTINGS = {
    "INPUT.FORMAT": "RGB",
    "MODEL.DEVICE": "cpu",
    "MODEL.PIXEL_MEAN": [123.675, 116.28, 103.53],
    "MODEL.PIXEL_STD": [58.395, 57.12, 57.375],
    "MODEL.RESNETS.STRIDE_IN_1X1": False,
    "MODEL.RESNETS.WIDTH_PER_GROUP": 8,
    "MODEL.RESNETS.STEM_OUT_CHANNELS": 8,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 32,
    "MODEL.RESNETS.NORM": "BN",
}
FPN = {
    "MODEL.BACKBONE.NAME": "build_resnet_fpn_backbone",
    "MODEL.RESNETS.OUT_FEATURES": ["res2", "res3", "res4", "res5"],
    "MODEL.FPN.IN_FEATURES": ["res2", "res3", "res4", "res5"],
    "MODEL.FPN.OUT_CHANNELS": 8,
    "MODEL.ANCHOR_GENERATOR.SIZES": [[32], [64], [128], [256], [512]],
    "MODEL.RPN.IN_FEATURES": ["p2", "p3", "p4", "p5", "p6"],
    "MODEL.ROI_HEADS.NAME": "StandardROIHeads",
    "MODEL.ROI_HEADS.IN_FEATURES": ["p2", "p3", "p4", "p5"],
    "MODEL.ROI_BOX_HEAD.NAME": "FastRCNNConvFCHead",
    "MODEL.ROI_BOX_HEAD.NUM_FC": 1,
    "MODEL.ROI_BOX_HEAD.FC_DIM": 8,
}


def config(weights: Path | str, changes: dict[str, Any] | None = None, *, fpn: bool = True) -> CfgNode:
    cfg = get_cfg()
    settings = SETTINGS | (FPN if fpn else {}) | {"MODEL.WEIGHTS": str(weights)} | (changes or {})
    for key, value in settings.items():
        cfg.merge_from_list([key, value])
    return cfg


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    convert(moco_file(folder / "a.pth.tar", NETWORK.state_dict()), folder / "a.pkl", verify=False)
    return folder / "a.pkl"


def without(path: Path, output: Path, *fragments: str, author: str | None = None) -> Path:
    """Copy a weights file without the tensors whose names contain a fragment; `author` also replaces its record."""
    contents = pickle.loads(path.read_bytes())
    model = contents["model"]
    contents["model"] = {n: a for n, a in model.items() if not any(part in n for part in fragments)}
    if author:
        contents = {"model": contents["model"], "__author__": author, "matching_heuristics": True}
    output.write_bytes(pickle.dumps(contents))
    return output


@pytest.mark.parametrize("fpn", [True, False])
@pytest.mark.parametrize("norm", ["BN", "FrozenBN"])
def test_every_backbone_tensor_arrives(converted: Path, fpn: bool, norm: str) -> None:
    cfg = config(converted, {"MODEL.RESNETS.NORM": norm}, fpn=fpn)
    model = build_model(cfg)
    loaded = load_into(model, cfg)
    assert loaded["matched"] == 265
    assert loaded["record"]["source"] == "moco"
    state, source = model.state_dict(), NETWORK.state_dict()
    trunk = "backbone.bottom_up." if fpn else "backbone."
    assert torch.equal(state[f"{trunk}stem.conv1.weight"], source["conv1.weight"])
    assert torch.equal(state[f"{trunk}res4.5.conv3.norm.running_var"], source["layer3.5.bn3.running_var"])
    last = "backbone.bottom_up.res5.2" if fpn else "roi_heads.res5.2"
    assert torch.equal(state[f"{last}.conv2.weight"], source["layer4.2.conv2.weight"])


def test_each_missing_tensor_is_refused(converted: Path) -> None:
    """This holds for frozen batch norm too, which silently fills in missing statistics."""
    model = build_model(config(converted, {"MODEL.RESNETS.NORM": "FrozenBN"}))
    weights = read_weights(converted)
    for name in list(weights["model"])[
        ::4
    ]:  # of all kinds and stages: a convolution and its norm are five tensors
        partial = {key: tensor for key, tensor in weights["model"].items() if key != name}
        with pytest.raises(UserError, match=rf"1 of 265 tensors would stay random, first \S*{name};"):
            check_filled(model, weights | {"model": partial})


def test_c4_needs_the_last_stage_in_its_head(converted: Path) -> None:
    model = build_model(config(converted, fpn=False))
    model.roi_heads.res5.add_module("norm", nn.BatchNorm2d(256))  # as in the paper's C4; new, not in the file
    weights = read_weights(converted)
    assert check_filled(model, weights) == 265
    weights["model"] = {name: t for name, t in weights["model"].items() if not name.startswith("res5.")}
    with pytest.raises(UserError, match=r"roi_heads\.res5\.0"):
        check_filled(model, weights)


def test_weights_of_a_deeper_network_are_refused(converted: Path) -> None:
    weights = read_weights(converted)
    weights["model"] = weights["model"] | {"res4.6.conv1.weight": torch.zeros(1)}
    with pytest.raises(
        UserError, match=r"the model lacks \d+ backbone tensors of the file, first res4\.6\.conv1\.weight"
    ):
        check_filled(build_model(config(converted)), weights)


def test_every_contradiction_is_listed_with_its_cure(converted: Path) -> None:
    wrong = {"INPUT.FORMAT": "BGR", "MODEL.RESNETS.STRIDE_IN_1X1": True, "MODEL.PIXEL_STD": [1.0, 1.0, 1.0]}
    cfg = config(converted, wrong)
    with pytest.raises(UserError) as error:
        load_into(build_model(cfg), cfg)
    for part in (
        "INPUT.FORMAT is BGR (needed: RGB, assumed)",
        "convert it again with --channel-order, --pixel-std, --stride-in-1x1; otherwise add to the command line: ",
        'INPUT.FORMAT RGB MODEL.PIXEL_STD "[58.395, 57.12, 57.375]" MODEL.RESNETS.STRIDE_IN_1X1 False',
    ):
        assert part in str(error.value)
    assert "PIXEL_MEAN" not in str(error.value)


def test_a_contradiction_says_whose_word_each_value_is(converted: Path) -> None:
    cfg = config(
        converted, {"INPUT.FORMAT": "BGR", "MODEL.PIXEL_STD": [1.0, 1.0, 1.0], "MODEL.RESNETS.DEPTH": 101}
    )
    weights = read_weights(converted)
    weights["record"]["origins"] |= {"INPUT.FORMAT": "file", "MODEL.PIXEL_STD": "flag"}
    with pytest.raises(UserError) as error:
        check_preprocessing(cfg, weights)
    assert str(error.value) == (
        "the configuration contradicts MODEL.WEIGHTS: INPUT.FORMAT is BGR (needed: RGB, stated by the checkpoint), "
        "MODEL.PIXEL_STD is [1.0, 1.0, 1.0] (needed: [58.395, 57.12, 57.375], stated by --pixel-std at the conversion)"
        ", MODEL.RESNETS.DEPTH is 101 (needed: 50); add to the command line: INPUT.FORMAT RGB "
        'MODEL.PIXEL_STD "[58.395, 57.12, 57.375]" MODEL.RESNETS.DEPTH 50'
    )
    for damaged in (
        {},
        {"origins": None},
        {"origins": {"INPUT.FORMAT": ["x"]}},
    ):  # an older file, or a stranger's
        with pytest.raises(UserError, match=r"INPUT\.FORMAT is BGR \(needed: RGB\), "):
            check_preprocessing(cfg, weights | {"record": damaged})


def test_the_cure_works_when_pasted(converted: Path) -> None:
    cfg = config(converted, {"MODEL.PIXEL_MEAN": [103.53, 116.28, 123.675]})
    with pytest.raises(UserError) as error:
        check_preprocessing(cfg, read_weights(converted))
    key, value = str(error.value).split("command line: ")[1].split(" ", 1)
    cfg.merge_from_list([key, value.strip('"')])
    check_preprocessing(cfg, read_weights(converted))


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({"OUTPUT_DIR": "/tmp/x"}, "sets OUTPUT_DIR, which is not a setting of the network"),
        ({"MODEL.WEIGHTS": "x.pkl"}, r"sets MODEL\.WEIGHTS"),
        ({"INPUT.FORMAT": "L"}, r"INPUT\.FORMAT 'L'"),
        ({"MODEL.PIXEL_MEAN": "-" * 9000 + "1"}, r"MODEL\.PIXEL_MEAN '-+\.\.\.'"),
        ({"MODEL.PIXEL_MEAN": [1.0, 2.0, float("inf")]}, r"MODEL\.PIXEL_MEAN \[1\.0, 2\.0, inf\]"),
        ({"MODEL.PIXEL_STD": [1.0, 2.0, 0.0]}, r"MODEL\.PIXEL_STD \[1\.0, 2\.0, 0\.0\]"),
        ({"MODEL.RESNETS.DEPTH": True}, r"MODEL\.RESNETS\.DEPTH True"),
        ({"MODEL.RESNETS.DEPTH": 1 << 40}, r"MODEL\.RESNETS\.DEPTH"),
        ({"MODEL.RESNETS.STRIDE_IN_1X1": 1}, r"MODEL\.RESNETS\.STRIDE_IN_1X1 1"),
    ],
)
def test_a_record_sets_only_the_network_and_its_input(
    converted: Path, tmp_path: Path, record: dict[str, Any], words: str
) -> None:
    contents = pickle.loads(converted.read_bytes())
    contents["preprocessing"] |= record
    (tmp_path / "b.pkl").write_bytes(pickle.dumps(contents))
    with pytest.raises(UserError, match=words) as caught:
        init_weights.settings(str(tmp_path / "b.pkl"))
    assert str(caught.value).isprintable()


def test_statistics_may_only_be_absent_from_merged_batch_norm(converted: Path, tmp_path: Path) -> None:
    merged = without(converted, tmp_path / "a.pkl", "running_", author="Caffe2")
    cfg = config(merged, {"MODEL.RESNETS.NORM": "FrozenBN"})
    assert load_into(build_model(cfg), cfg)["matched"] == 265 - 2 * 53
    other = without(converted, tmp_path / "b.pkl", "running_", author="third party")
    with pytest.raises(UserError, match="running_mean"):
        check_filled(build_model(cfg), read_weights(other))


def test_a_file_by_caffe2_is_understood(converted: Path, tmp_path: Path) -> None:
    """Names such as `res2_0_branch2a_w`, pickled as the model zoo's oldest files are."""
    renamed = {}
    branches = {"conv1": "branch2a", "conv2": "branch2b", "conv3": "branch2c", "shortcut": "branch1"}
    leaves = {"weight": "w", "norm.weight": "bn_s", "norm.bias": "bn_b"}
    for name, tensor in read_weights(converted)["model"].items():
        if "running" in name:
            continue
        if name.startswith("stem.conv1."):
            stem = {"weight": "conv1_w", "norm.weight": "res_conv1_bn_s", "norm.bias": "res_conv1_bn_b"}
            renamed[stem[name.removeprefix("stem.conv1.")]] = tensor.numpy()
        else:
            stage, block, module, leaf = name.split(".", 3)
            renamed[f"{stage}_{block}_{branches[module]}_{leaves[leaf]}"] = tensor.numpy()
    path = tmp_path / "R-50.pkl"
    path.write_bytes(pickle.dumps({"blobs": renamed | {"conv1_w_momentum": numpy.zeros(1)}}, protocol=2))
    cfg = config(path, {"MODEL.RESNETS.NORM": "FrozenBN"})
    model = build_model(cfg)
    assert load_into(model, cfg)["matched"] == 53 * 3
    expected = NETWORK.state_dict()["layer2.0.downsample.1.bias"]
    assert torch.equal(model.state_dict()["backbone.bottom_up.res3.0.shortcut.norm.bias"], expected)

    # now batch norm is not merged, so some statistics are missing
    renamed["res2_0_branch2a_bn_rm"] = numpy.zeros(8, numpy.float32)
    path.write_bytes(pickle.dumps(renamed, protocol=2))
    with pytest.raises(UserError, match="105 of 265 tensors would stay random"):
        check_filled(model, read_weights(path))


def test_other_files_are_used_with_a_note(
    converted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cfg = config(without(converted, tmp_path / "foreign.pkl", author="somebody"))
    assert load_into(build_model(cfg), cfg)["record"] is None
    printed = capsys.readouterr().out
    assert printed.startswith("note: foreign.pkl (by somebody)")
    assert printed.count("\n") == 1


@pytest.mark.parametrize("entries", [{}, {"__author__": "x"}, {"matching_heuristics": False}])
@pytest.mark.parametrize("fpn", [True, False])
def test_a_backbone_with_detectron2_names_needs_no_other_entries(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], entries: dict[str, Any], fpn: bool
) -> None:
    trunk = {name: t for name, t in NETWORK.state_dict().items() if not name.startswith("fc.")}
    path = tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps({"model": detectron2_names(trunk), **entries}))
    cfg = config(path, fpn=fpn)
    model = build_model(cfg)
    assert load_into(model, cfg)["matched"] == 265
    printed = capsys.readouterr().out
    assert "does not record the settings it needs; assumed: INPUT.FORMAT RGB" in printed
    assert "note: a.pkl has a backbone's names without matching_heuristics; they are matched" in printed
    last = model.backbone.bottom_up.res5 if fpn else model.roi_heads.res5
    assert torch.equal(last[2].conv3.weight, trunk["layer4.2.conv3.weight"])


def test_names_with_another_prefix_are_converted_as_the_message_advises(tmp_path: Path) -> None:
    trunk = {name: t for name, t in NETWORK.state_dict().items() if not name.startswith("fc.")}
    path = tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps({"model": {f"net.{n}": a for n, a in detectron2_names(trunk).items()}}))
    cfg = config(path)
    with pytest.raises(UserError, match=r"Convert them with tools/convert_to_d2\.py"):
        load_into(build_model(cfg), cfg)
    convert(path, tmp_path / "b.pkl", verify=False)
    cfg = config(tmp_path / "b.pkl")
    assert load_into(build_model(cfg), cfg)["matched"] == 265


def test_norms_without_statistics_are_converted_as_the_message_advises(tmp_path: Path) -> None:
    trunk = {name: t for name, t in NETWORK.state_dict().items() if not name.startswith("fc.")}
    arrays = {n: a for n, a in detectron2_names(trunk).items() if "running_" not in n}
    path = tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps({"model": arrays, "__author__": "x"}))
    cfg = config(path, {"MODEL.RESNETS.NORM": "FrozenBN"})
    with pytest.raises(UserError, match=r"no running statistics .* convert it with \S+ --merged-norm"):
        load_into(build_model(cfg), cfg)
    convert(path, tmp_path / "b.pkl", verify=False, merged_norm=True)
    cfg = config(tmp_path / "b.pkl", {"MODEL.RESNETS.NORM": "FrozenBN"})
    with pytest.raises(
        UserError, match=r"INPUT\.FORMAT is RGB \(needed: BGR, assumed\)"
    ):  # as in MSRA's networks
        load_into(build_model(cfg), cfg)


class Malicious:
    def __reduce__(self) -> Any:
        return os.system, ("touch harmed",)


@pytest.mark.parametrize("where", ["alone", "in model", "in an array"])
def test_code_in_a_pickle_is_refused_and_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    monkeypatch.chdir(tmp_path)
    array = numpy.array([Malicious()], dtype=object) if where == "in an array" else Malicious()
    contents = Malicious() if where == "alone" else {"model": {"x": array}, "__author__": "x"}
    (tmp_path / "bad.pkl").write_bytes(pickle.dumps(contents))
    with pytest.raises(UserError, match=r"(posix|nt)\.system|array of type 'O8'"):
        load_into(nn.Identity(), config(tmp_path / "bad.pkl"))
    assert not (tmp_path / "harmed").exists()


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_arrays_of_every_protocol_are_read(tmp_path: Path, protocol: int) -> None:
    array = numpy.arange(6, dtype=numpy.float32).reshape(2, 3)
    model = OrderedDict(weight=array, step=numpy.int64(3))
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"model": model, "__author__": "x"}, protocol=protocol))
    read = read_weights(tmp_path / "a.pkl")["model"]
    assert numpy.array_equal(read["weight"], array)
    assert int(read["step"]) == 3


def refusal(weights: Path | str) -> str:
    cfg = config(weights)
    with pytest.raises(UserError) as error:
        load_into(nn.Identity(), cfg)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_files_that_are_no_weights_are_refused(converted: Path, tmp_path: Path) -> None:
    assert "MODEL.INIT random" in refusal("")
    assert "no such file" in refusal(tmp_path / "none.pkl")
    raw = moco_file(tmp_path / "moco.pth.tar", NETWORK.state_dict())
    assert f"python tools/convert_to_d2.py {raw} moco.pkl" in refusal(raw)
    assert "convert it first" in refusal(plain_file(tmp_path / "r50.pth", NETWORK.state_dict()))
    part = plain_file(tmp_path / "model-00001-of-00002.safetensors", {})
    assert f"convert it first: python tools/convert_to_d2.py {part} model-0" in refusal(part)
    assert "is a folder: name a weights file" in refusal(tmp_path)
    (tmp_path / "half.pkl").write_bytes(converted.read_bytes()[:5000])
    assert "truncated" in refusal(tmp_path / "half.pkl")
    (tmp_path / "text.pkl").write_bytes(pickle.dumps({"model": {"x": "text"}, "__author__": "x"}))
    assert "not an array" in refusal(tmp_path / "text.pkl")
    (tmp_path / "list.pkl").write_bytes(pickle.dumps([1, 2]))
    assert "not a dict" in refusal(tmp_path / "list.pkl")


def test_a_detector_comes_back_whole(converted: Path, tmp_path: Path) -> None:
    cfg = config(converted)
    saved, fresh = build_model(cfg), build_model(cfg)
    torch.save({"model": saved.state_dict(), "iteration": 7}, tmp_path / "model_final.pth")
    load_detector(fresh, tmp_path / "model_final.pth")
    pairs = zip(saved.state_dict().values(), fresh.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_a_detector_of_another_kind_is_refused(converted: Path, tmp_path: Path) -> None:
    model = build_model(config(converted))
    state = model.state_dict()
    path = tmp_path / "model_final.pth"

    def fault(changed: dict[str, torch.Tensor]) -> str:
        torch.save({"model": changed}, path)
        with pytest.raises(UserError) as error:
            load_detector(model, path)
        return str(error.value)

    name = "roi_heads.box_predictor.cls_score.bias"
    assert f"lacks {name} (1 such)" in fault({n: t for n, t in state.items() if n != name})
    assert "has the unknown tensor extra" in fault(state | {"extra": torch.zeros(1)})
    assert f"has a different shape for {name}" in fault(state | {name: torch.zeros(3)})
    scores = "roi_heads.box_predictor.cls_score.weight"
    classes = len(state[scores]) - 1
    line = fault(state | {scores: torch.zeros(4, state[scores].shape[1])})
    assert f"it has 3 classes, but MODEL.ROI_HEADS.NUM_CLASSES is {classes}" in line
    shallow = {n: t for n, t in state.items() if ".res4.1." not in n}
    assert "is MODEL.RESNETS.DEPTH the same as in the run" in fault(shallow)
    statistics = "backbone.bottom_up.res3.0.conv1.norm.running_mean"
    assert statistics in fault({n: t for n, t in state.items() if n != statistics})
    with pytest.raises(UserError, match="lacks"):
        load_detector(model, converted)  # only a backbone


VIT = {
    "MODEL.BACKBONE.NAME": "build_vit_sfp_backbone",
    "MODEL.VIT.WIDTH": 24, "MODEL.VIT.DEPTH": 2, "MODEL.VIT.HEADS": 3, "MODEL.VIT.PRETRAIN_SIZE": 64,
    "MODEL.VIT.IMAGE_SIZE": 64, "MODEL.VIT.GLOBAL_BLOCKS": (1,), "MODEL.FPN.NORM": "LN",
    "MODEL.ROI_BOX_HEAD.NORM": "LN", "MODEL.ROI_BOX_HEAD.NUM_CONV": 1, "MODEL.ROI_BOX_HEAD.CONV_DIM": 8,
}  # fmt: skip


def vit_file(path: Path, cfg: CfgNode, *, without: str = "") -> tuple[Path, dict[str, torch.Tensor]]:
    """Write what the converter writes of a ViT: unprefixed names, no relative positions."""
    torch.manual_seed(1)
    state = build_model(cfg).backbone.net.state_dict()
    model = {
        n: torch.randn_like(t)
        for n, t in state.items()
        if ".rel_pos_" not in n and not (without and without in n)
    }
    contents = {
        "model": {n: t.numpy() for n, t in model.items()},
        "__author__": "x",
        "matching_heuristics": True,
    }
    path.write_bytes(pickle.dumps(contents))
    return path, model


def test_a_vit_is_filled_except_for_relative_positions(tmp_path: Path) -> None:
    cfg = config(tmp_path / "vit.pkl", FPN | VIT)
    _, tensors = vit_file(tmp_path / "vit.pkl", cfg)
    model = build_model(cfg)
    assert load_into(model, cfg)["matched"] == len(tensors) == 3 + 2 * 12
    state = model.state_dict()
    for name, tensor in tensors.items():
        assert torch.equal(state[f"backbone.net.{name}"], tensor)
    assert all(t.abs().sum() == 0 for name, t in state.items() if ".rel_pos_" in name)


@pytest.mark.parametrize("name", ["pos_embed", "patch_embed.proj.bias", "blocks.1.attn.qkv.weight"])
def test_a_vit_that_is_not_filled_is_refused(tmp_path: Path, name: str) -> None:
    cfg = config(tmp_path / "vit.pkl", FPN | VIT)
    path, _ = vit_file(tmp_path / "vit.pkl", cfg, without=name)
    with pytest.raises(
        UserError, match=rf"1 of 31 tensors would stay random, first backbone\.net\.{name}; are MODEL"
    ):
        check_filled(build_model(cfg), read_weights(path))


def test_a_vit_of_another_shape_is_refused(tmp_path: Path, converted: Path) -> None:
    cfg = config(tmp_path / "vit.pkl", FPN | VIT)
    path, _ = vit_file(tmp_path / "vit.pkl", cfg)
    weights = read_weights(path)
    for changes, words in (
        (
            {"MODEL.VIT.PRETRAIN_SIZE": 96},
            r"first backbone\.net\.pos_embed; are MODEL\.VIT\.DEPTH.*PRETRAIN_SIZE",
        ),
        ({"MODEL.VIT.DEPTH": 1, "MODEL.VIT.GLOBAL_BLOCKS": (0,)}, "lacks 12 backbone tensors of the file"),
        ({"MODEL.VIT.DEPTH": 3}, "12 of 45 tensors would stay random"),
    ):
        other = build_model(config(path, FPN | VIT | changes))
        with pytest.raises(UserError, match=words):
            check_filled(other, weights)
    with pytest.raises(UserError, match=r"does not fill the backbone: 27 of 31 "):  # a ResNet's file
        check_filled(build_model(cfg), read_weights(converted))


def test_settings_of_a_vit_are_compared(tmp_path: Path) -> None:
    cfg = config(tmp_path / "vit.pkl", FPN | VIT)
    needed = {"MODEL.VIT.HEADS": 6, "MODEL.BACKBONE.NAME": "build_vit_sfp_backbone"}
    with pytest.raises(UserError, match=r"MODEL\.VIT\.HEADS is 3 \(needed: 6\); add .*MODEL\.VIT\.HEADS 6"):
        check_preprocessing(cfg, {"preprocessing": needed, "record": None})


def test_weights_of_the_other_kind_of_backbone_are_named_as_such(tmp_path: Path, converted: Path) -> None:
    """With a record or without, also if the settings of the record are followed."""
    resnet, vit = config(converted), config(tmp_path / "vit.pkl", FPN | VIT)
    path, _ = vit_file(tmp_path / "vit.pkl", vit)
    of_resnet, of_vit = read_weights(converted), read_weights(path)
    caffe = {"model": {"conv1_w": 0, "res2_0_branch2a_w": 0}}
    for weights in (of_resnet, caffe):
        check_kind(resnet, weights)
        with pytest.raises(
            UserError, match=r"which is a ResNet: .*a config of a ResNet, such as transfer/coco_R50"
        ):
            check_kind(vit, weights)
    check_kind(vit, of_vit)
    with pytest.raises(UserError, match=r"which is a ViT: .*NAME is build_resnet_fpn_backbone: take"):
        load_into(torch.nn.Module(), config(path))
    contents = pickle.loads(path.read_bytes())
    contents["preprocessing"] = {"MODEL.VIT.HEADS": 3, "MODEL.BACKBONE.NAME": "build_vit_sfp_backbone"}
    path.write_bytes(pickle.dumps(contents))
    assert init_weights.settings(str(path)) == ["MODEL.VIT.HEADS", "3"]


def test_relative_positions_of_a_detector_that_do_not_fit(tmp_path: Path) -> None:
    cfg = config(tmp_path / "vit.pkl", FPN | VIT)
    path, _ = vit_file(tmp_path / "vit.pkl", cfg)
    contents = pickle.loads(path.read_bytes())
    contents["model"]["blocks.1.attn.rel_pos_h"] = torch.zeros(5, 8).numpy()
    path.write_bytes(pickle.dumps(contents))
    with pytest.raises(UserError, match=r"first \S+rel_pos_h; are MODEL\.VIT\.REL_POS, IMAGE_SIZE, WINDOW"):
        check_filled(build_model(cfg), read_weights(path))
