"""The preprocessing that files state or imply, and files that almost look like another kind."""

from pathlib import Path
from typing import Any

import pytest
import torch

from pretrain.common.configs import digest_text, read_dump
from pretrain.common.errors import UserError
from pretrain.config import load
from tests.support.layouts import network
from transfer.convert.preprocessing import IMAGENET
from transfer.convert.recognise import read_source
from transfer.convert.tensor_names import detectron2_name

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
    torch.save({f"{'fc.' * 60}{n}": torch.zeros(1) for n in range(20_000)}, tmp_path / "a.pth")
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
    assert read_dump(text)["INPUT"]["MEAN"] == [0.485, 0.456, 0.406]
