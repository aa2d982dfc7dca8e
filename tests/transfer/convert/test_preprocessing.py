"""The preprocessing that files state or imply, and files that almost look like another kind."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.modeling import GeneralizedRCNN
from torchvision.models.feature_extraction import create_feature_extractor

from pretrain.common.configs import digest_text
from pretrain.common.errors import UserError
from pretrain.config import load
from pretrain.yaml_text import parse_yaml
from tests.support.checkpoints import plain_file, torchvision_network
from tests.support.layouts import network
from tests.support.scripts import run_script
from transfer.convert.convert import convert
from transfer.convert.preprocessing import IMAGENET, KEYS, MSRA, Input
from transfer.convert.recognise import read_source
from transfer.convert.tensor_names import detectron2_name
from transfer.convert.verify import load_backbone

QUERY, KEY = network(1), network(2)


def test_a_detector_of_the_zoo_brings_its_own_pixel_statistics(tmp_path: Path) -> None:
    names = {
        f"backbone.bottom_up.{detectron2_name(n)}": t for n, t in QUERY.items() if "num_batches" not in n
    }
    statistics = {"pixel_mean": torch.tensor([103.53, 116.28, 123.675]), "pixel_std": torch.ones(3)}
    torch.save({"model": names | statistics}, tmp_path / "a.pth")
    found = read_source(tmp_path / "a.pth").input
    assert (found.format, found.mean[0], found.std, found.stride_in_1x1) == ("BGR", 103.53, (1, 1, 1), True)
    turned = {"pixel_mean": torch.tensor([123.675, 116.28, 103.53]), "pixel_std": torch.full((3,), 58.0)}
    torch.save({"model": names | turned}, tmp_path / "b.pth")
    found = read_source(tmp_path / "b.pth").input
    assert (found.format, found.std, found.stride_in_1x1) == ("RGB", (58, 58, 58), False)
    torch.save({"model": names, "__author__": "Detectron2 Model Zoo"}, tmp_path / "c.pth")
    assert read_source(tmp_path / "c.pth").input.format == "BGR"


def test_the_key_network_does_not_get_the_querys_last_stage(tmp_path: Path) -> None:
    early = {f"backbone.{n}": t for n, t in QUERY.items() if not n.startswith("layer4")}
    keys = {f"backbone_k.{n}": t for n, t in KEY.items() if not n.startswith("layer4")}
    late = {f"roi_head.shared_head.{n}": t for n, t in QUERY.items() if n.startswith("layer4")}
    torch.save({"state_dict": early | keys | late}, tmp_path / "a.pth")
    assert torch.equal(
        read_source(tmp_path / "a.pth").backbone["layer4.0.conv1.weight"], QUERY["layer4.0.conv1.weight"]
    )
    with pytest.raises(UserError, match=r"layer4|ResNet with"):
        read_source(tmp_path / "a.pth", branch="backbone_k")


def test_numbers_beyond_float32_are_refused(tmp_path: Path) -> None:
    state = {n: t.double() for n, t in QUERY.items()}
    state["layer1.0.bn1.bias"][0] = 1e39
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises(UserError, match=r"a\.pth: tensor layer1\.0\.bn1\.bias holds numbers beyond float32"):
        read_source(tmp_path / "a.pth")


def test_a_turned_sign_is_refused(tmp_path: Path) -> None:
    torch.save(dict(QUERY) | {"bn1.bias": torch._neg_view(QUERY["bn1.bias"])}, tmp_path / "a.pth")
    with pytest.raises(UserError, match="lazy negation or conjugation"):
        read_source(tmp_path / "a.pth")


def test_a_stage_of_another_network_is_not_taken(tmp_path: Path) -> None:
    names = {n: t for n, t in QUERY.items() if "num_batches" not in n}
    early = {
        f"model.backbone.{detectron2_name(n)}": t for n, t in names.items() if not n.startswith("layer4")
    }
    late = {f"roi_heads.{detectron2_name(n)}": t for n, t in names.items() if n.startswith("layer4")}
    torch.save(early | {f"model.{n}": t for n, t in late.items()}, tmp_path / "a.pth")
    assert len(read_source(tmp_path / "a.pth").backbone) == len(names)
    torch.save(early | {f"student.{n}": t for n, t in late.items()}, tmp_path / "b.pth")
    with pytest.raises(UserError):
        read_source(tmp_path / "b.pth")


def test_negative_variances_are_refused(tmp_path: Path) -> None:
    torch.save(dict(QUERY) | {"bn1.running_var": -QUERY["bn1.running_var"]}, tmp_path / "a.pth")
    with pytest.raises(UserError, match=r"bn1\.running_var holds negative variances"):
        read_source(tmp_path / "a.pth")


def test_a_config_that_grows_when_it_is_read_is_refused(tmp_path: Path) -> None:
    lines = [
        "a0: &a0 {x: 1}",
        *(f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}]}}" for n in range(1, 30)),
    ]
    torch.save(
        {"state_dict": QUERY, "config": "\n".join(lines), "iterations_per_epoch": 5}, tmp_path / "a.pth"
    )
    with pytest.raises(UserError, match="`config` is damaged"):
        read_source(tmp_path / "a.pth")


def test_many_names_that_look_like_heads_are_read_quickly(tmp_path: Path) -> None:
    torch.save({f"{'fc.' * 60}{n}": torch.zeros(1) for n in range(5_000)}, tmp_path / "a.pth")
    with pytest.raises(UserError, match="does not contain a ResNet"):
        read_source(tmp_path / "a.pth")


def test_settings_of_others_are_no_record_of_ours(tmp_path: Path) -> None:
    torch.save({"state_dict": QUERY, "preprocessing": {"resize": 256}, "config": "lr: 3"}, tmp_path / "a.pth")
    assert read_source(tmp_path / "a.pth").input == IMAGENET


@pytest.mark.parametrize(
    "record",
    [
        {"MODEL.RESNETS.STRIDE_IN_1X1": torch.zeros(2)},
        {"MODEL.RESNETS.STRIDE_IN_1X1": 1},
        {"MODEL.PIXEL_STD": [0.0, 1.0, 1.0]},
    ],
)
def test_records_with_other_kinds_of_values_are_refused(tmp_path: Path, record: dict[str, Any]) -> None:
    whole = {"INPUT.FORMAT": "RGB", "MODEL.PIXEL_MEAN": [1.0, 1.0, 1.0], "MODEL.PIXEL_STD": [1.0, 1.0, 1.0]}
    settings = {**whole, "MODEL.RESNETS.STRIDE_IN_1X1": False, **record}
    torch.save({"state_dict": QUERY, "preprocessing": settings}, tmp_path / "a.pth")
    with pytest.raises(UserError, match="record is damaged"):
        read_source(tmp_path / "a.pth")


def test_pixel_statistics_that_are_none(tmp_path: Path) -> None:
    names = {f"backbone.{detectron2_name(n)}": t for n, t in QUERY.items() if "num_batches" not in n}
    for mean in (torch.zeros(3, dtype=torch.complex64), torch.zeros(4), torch.full((3,), torch.nan)):
        torch.save(names | {"pixel_mean": mean, "pixel_std": torch.ones(3)}, tmp_path / "a.pth")
        assert read_source(tmp_path / "a.pth").input == IMAGENET
    two = {"a.pixel_mean": torch.zeros(3), "b.pixel_mean": torch.ones(3), "a.pixel_std": torch.ones(3)}
    torch.save(names | two, tmp_path / "b.pth")
    with pytest.raises(UserError, match="several pixel_mean"):
        read_source(tmp_path / "b.pth")


def test_a_config_of_ours_has_no_references(tmp_path: Path) -> None:
    text = digest_text(load("pretrain/moco_v2_R50.yaml"))
    assert parse_yaml(text)["INPUT"]["MEAN"] == [0.485, 0.456, 0.406]


HALF = torch.full((3,), 127.5)
BGR_MEAN = torch.tensor([103.53, 116.28, 123.675])


def openmmlab(path: Path, mean: torch.Tensor, std: torch.Tensor, *, name: str = "", config: str = "") -> Path:
    """A file as mmengine writes it: `data_preprocessor` has the statistics in the order of the network's channels."""
    buffers = {f"{name}data_preprocessor.mean": mean, f"{name}data_preprocessor.std": std}
    state = {f"{name}backbone.{n}": t for n, t in QUERY.items()} | buffers
    torch.save({"meta": {"epoch": 9, "cfg": config}, "state_dict": state}, path)
    return path


@pytest.mark.parametrize("shape", [(3,), (3, 1, 1), (1, 3, 1, 1)])
@pytest.mark.parametrize("name", ["", "module.", "_orig_mod.", "model."])
def test_the_statistics_of_openmmlab_are_used(tmp_path: Path, name: str, shape: tuple[int, ...]) -> None:
    path = openmmlab(tmp_path / "a.pth", HALF.view(shape), HALF.view(shape) + 1, name=name)
    source = read_source(path)
    assert source.input == Input("RGB", (127.5,) * 3, (128.5,) * 3)
    assert "data_preprocessor.mean" in source.input_origin and "--channel-order" in source.input_origin


def test_a_single_statistic_and_those_of_pixels_up_to_1(tmp_path: Path) -> None:
    found = read_source(openmmlab(tmp_path / "a.pth", torch.tensor([127.5]), torch.tensor([50.0]))).input
    assert (found.mean, found.std) == ((127.5,) * 3, (50.0,) * 3)
    small = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    assert read_source(openmmlab(tmp_path / "b.pth", *small)).input.mean == pytest.approx(IMAGENET.mean)
    assert read_source(openmmlab(tmp_path / "b.pth", *small)).input.std == pytest.approx(IMAGENET.std)
    raw = read_source(openmmlab(tmp_path / "c.pth", torch.zeros(3), torch.ones(3))).input
    assert (raw.mean, raw.std) == ((0.0,) * 3, (1.0,) * 3)


@pytest.mark.parametrize(
    ("mean", "std", "config", "expected"),
    [
        # Order and stride from the file alone
        (BGR_MEAN, torch.ones(3), "", ("BGR", True)),
        (BGR_MEAN, torch.tensor([57.375, 57.12, 58.395]), "", ("BGR", False)),
        (BGR_MEAN.flip(0), torch.tensor([58.395, 57.12, 57.375]), "", ("RGB", False)),
        # mmengine's config knows better
        (HALF, HALF, "data_preprocessor = dict(bgr_to_rgb=False)", ("BGR", False)),
        (HALF, HALF, "data_preprocessor = dict(bgr_to_rgb=True)", ("RGB", False)),
        (HALF, HALF, "data_preprocessor=dict(to_rgb=False)\nbackbone=dict(style='caffe')", ("BGR", True)),
        (BGR_MEAN, torch.ones(3), "backbone = dict(type='ResNet', style='pytorch')", ("BGR", False)),
        (BGR_MEAN, HALF, "a = dict(bgr_to_rgb=True)", ("RGB", False)),
        (HALF, HALF, "a = dict(to_rgb=True)\nb = dict(to_rgb=False)", ("RGB", False)),  # no statement
    ],
)
def test_channel_order_and_stride_of_openmmlab(
    tmp_path: Path, mean: torch.Tensor, std: torch.Tensor, config: str, expected: tuple[str, bool]
) -> None:
    found = read_source(openmmlab(tmp_path / "a.pth", mean, std, config=config)).input
    assert (found.format, found.stride_in_1x1) == expected
    assert found.mean == pytest.approx(mean.tolist(), rel=1e-6)  # never reordered


def test_a_config_of_openmmlab_without_buffers(tmp_path: Path) -> None:
    """mmengine's buffers are not persistent by default, so most files have only the config's text."""
    text = (
        "data_preprocessor = dict(\n    mean=[\n        103.53,\n        116.28,\n        123.675,\n    ],\n"
        "    std=[1.0, 1.0, 1.0],\n    bgr_to_rgb=False)\n"
    )
    torch.save({"state_dict": QUERY, "meta": {"cfg": text}}, tmp_path / "a.pth")
    assert read_source(tmp_path / "a.pth").input == MSRA
    torch.save({"state_dict": QUERY, "meta": {"cfg": text + "mean=[1., 2., 3.]"}}, tmp_path / "b.pth")
    assert read_source(tmp_path / "b.pth").input == IMAGENET  # two means: not a statement


def test_statistics_may_be_integers(tmp_path: Path) -> None:
    path = openmmlab(tmp_path / "a.pth", torch.tensor([104, 116, 124]), torch.tensor([57, 57, 58]))
    assert read_source(path).input == Input("BGR", (104, 116, 124), (57, 57, 58))


def test_unusable_statistics_are_named(tmp_path: Path) -> None:
    source = read_source(openmmlab(tmp_path / "a.pth", torch.full((3,), torch.nan), HALF))
    assert source.input == IMAGENET
    assert "its state_dict.data_preprocessor.mean is not usable" in source.input_origin


def test_flags_replace_what_the_file_states_and_say_so(tmp_path: Path) -> None:
    path = openmmlab(tmp_path / "a.pth", BGR_MEAN, HALF)
    given = {"mean": (1.0, 2.0, 3.0), "std": (4.0, 5.0, 6.0)}
    source = read_source(path, given=given)
    assert source.input == Input("BGR", (1.0, 2.0, 3.0), (4.0, 5.0, 6.0))
    assert source.input_origin.startswith(
        "--pixel-mean, --pixel-std as given, although the file has BGR, mean 103.5"
    )
    # What the file does not state is not contradicted.
    source = read_source(openmmlab(tmp_path / "b.pth", HALF, HALF), given={"format": "BGR"})
    assert source.input == Input("BGR", (127.5,) * 3, (127.5,) * 3)
    assert source.input_origin.startswith("--channel-order as given; the rest as its data_preprocessor")
    torch.save(QUERY, tmp_path / "c.pth")
    source = read_source(tmp_path / "c.pth", given={"stride_in_1x1": True})
    assert source.input == replace(IMAGENET, stride_in_1x1=True)
    assert "although" not in source.input_origin
    turned = read_source(tmp_path / "c.pth", given={"format": "BGR"}).input
    assert turned == Input("BGR", (103.53, 116.28, 123.675), (57.375, 57.12, 58.395))
    # A stated mean has the order of the network's channels, whatever their names.
    assert read_source(path, given={"format": "RGB"}).input.mean == pytest.approx(BGR_MEAN.tolist())
    buffers = {"data_preprocessor.mean": BGR_MEAN, "data_preprocessor.std": HALF}
    source = read_source(plain_file(tmp_path / "d.pth", QUERY | buffers), source="simclr")
    assert source.input.mean == pytest.approx(BGR_MEAN.tolist())
    assert "this replaces what --source simclr implies: RGB, mean 0, 0, 0, std 255" in source.input_origin


def test_who_states_each_value_is_recorded(tmp_path: Path) -> None:
    format, mean, std, stride = KEYS.values()
    path = plain_file(tmp_path / "a.pth", torchvision_network("resnet18").state_dict())

    def recorded(path: Path, **given: Any) -> dict[str, str]:
        return convert(path, tmp_path / "a.pkl", given=given, verify=False)["record"]["origins"]

    assert recorded(path) == dict.fromkeys(KEYS.values(), "assumed")
    # What was assumed does not become the file's word when our own file is converted again.
    copied = tmp_path / "b.pkl"
    copied.write_bytes((tmp_path / "a.pkl").read_bytes())
    assert recorded(copied) == dict.fromkeys(KEYS.values(), "assumed")
    assert recorded(path, mean=(1.0, 2.0, 3.0)) == {
        format: "assumed", mean: "flag", std: "assumed", stride: "assumed",
    }  # fmt: skip
    stated = openmmlab(tmp_path / "c.pth", HALF, HALF)
    assert recorded(stated) == {format: "assumed", mean: "file", std: "file", stride: "assumed"}
    assert recorded(stated, format="BGR", std=(9.0, 9.0, 9.0)) == {
        format: "flag", mean: "file", std: "flag", stride: "assumed",
    }  # fmt: skip


def test_the_proof_and_detectron2_use_what_the_user_states(tmp_path: Path) -> None:
    """The truth is torchvision's network on (x / 255 - mean) / std in BGR, as its trainer would have fed it."""
    network = torchvision_network("resnet18").eval()
    plain_file(tmp_path / "a.pth", network.state_dict())
    flags = ["--mean", "0.4,0.5,0.6", "--std", "0.2,0.25,0.3", "--scale", "1", "--bgr"]
    done = run_script("tools/convert_to_d2.py", str(tmp_path / "a.pth"), str(tmp_path / "a.pkl"), *flags)
    assert done.returncode == 0, done.stderr
    assert "input     BGR, mean 102, 127.5, 153, std 51, 63.75, 76.5" in done.stdout
    assert "verified  the source network" in done.stdout
    backbone, settings = load_backbone(tmp_path / "a.pkl")
    bgr = torch.randint(0, 256, (3, 64, 96), generator=torch.Generator().manual_seed(0)).float()
    with torch.no_grad():
        mean, std = (torch.tensor(settings[f"MODEL.PIXEL_{part}"]).view(3, 1, 1) for part in ("MEAN", "STD"))
        actual = backbone.eval()(((bgr - mean) / std)[None])["res5"]
        own_mean, own_std = torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.25, 0.3])
        fed = (bgr / 255 - own_mean.view(3, 1, 1)) / own_std.view(3, 1, 1)
        expected = create_feature_extractor(network, {"layer4": "res5"})(fed[None])["res5"]
    assert settings["INPUT.FORMAT"] == "BGR"
    assert (actual - expected).abs().max() < 1e-4 * expected.abs().max()


def test_detectron2_computes_with_the_statistics_of_the_file(tmp_path: Path) -> None:
    """The truth is torchvision's network on (x - mean) / std in BGR; the rest is detectron2's own code."""
    network = torchvision_network("resnet18").eval()
    mean, std = torch.tensor([90.0, 110.0, 130.0]), torch.tensor([40.0, 50.0, 60.0])
    state = {f"backbone.{n}": t for n, t in network.state_dict().items()}
    buffers = {"data_preprocessor.mean": mean.view(3, 1, 1), "data_preprocessor.std": std.view(3, 1, 1)}
    torch.save({"state_dict": state | buffers}, tmp_path / "a.pth")
    written = convert(tmp_path / "a.pth", tmp_path / "a.pkl")
    backbone, settings = load_backbone(tmp_path / "a.pkl")
    assert settings["INPUT.FORMAT"] == "BGR"
    assert "data_preprocessor" in written["record"]["input"]
    model = GeneralizedRCNN(
        backbone=backbone.eval(),
        proposal_generator=torch.nn.Identity(),
        roi_heads=torch.nn.Identity(),
        pixel_mean=settings["MODEL.PIXEL_MEAN"],
        pixel_std=settings["MODEL.PIXEL_STD"],
    )
    bgr = torch.randint(0, 256, (3, 64, 96), generator=torch.Generator().manual_seed(0)).float()
    with torch.no_grad():
        actual = backbone(model.preprocess_image([{"image": bgr}]).tensor)["res5"]
        extract = create_feature_extractor(network, {"layer4": "res5"})
        expected = extract(((bgr - mean.view(3, 1, 1)) / std.view(3, 1, 1))[None])["res5"]
    assert (actual - expected).abs().max() < 1e-4 * expected.abs().max()
