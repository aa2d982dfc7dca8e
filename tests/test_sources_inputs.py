"""Files that are nearly something else: what they were fed, and whose stages they hold."""

from pathlib import Path

import pytest
import torch
from layouts import network

from pretrain.errors import UserError
from transfer.layouts import IMAGENET
from transfer.names import detectron2_name
from transfer.sources import read_source

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
    with pytest.raises(UserError, match=r"layer4|ResNet of"):
        read_source(tmp_path / "a.pth", branch="backbone_k")


def test_numbers_beyond_float32_are_refused(tmp_path: Path) -> None:
    state = {n: t.double() for n, t in QUERY.items()}
    state["layer1.0.bn1.bias"][0] = 1e39
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises(UserError, match=r"a\.pth: tensor layer1\.0\.bn1\.bias holds numbers beyond float32"):
        read_source(tmp_path / "a.pth")


def test_a_turned_sign_is_read_as_torch_reads_it(tmp_path: Path) -> None:
    state = dict(QUERY) | {"bn1.bias": torch._neg_view(QUERY["bn1.bias"])}
    torch.save(state, tmp_path / "a.pth")
    assert torch.equal(read_source(tmp_path / "a.pth").backbone["bn1.bias"], -QUERY["bn1.bias"])


def test_settings_of_others_are_no_record_of_ours(tmp_path: Path) -> None:
    torch.save({"state_dict": QUERY, "preprocessing": {"resize": 256}, "config": "lr: 3"}, tmp_path / "a.pth")
    assert read_source(tmp_path / "a.pth").input == IMAGENET
