"""A file of each known layout yields the intended network, whatever else it holds."""

import pickle
from pathlib import Path

import pytest
import torch

from pretrain.common.errors import UserError
from tests.support.layouts import FILES, caffe2_names, detectron2_names, network, under
from transfer.convert.layouts import LAYOUTS
from transfer.convert.recognise import Source, read_source

QUERY, KEY = network(1), network(2)


def assert_is(source: Source, expected: dict[str, torch.Tensor]) -> None:
    wanted = {name: tensor for name, tensor in expected.items() if not name.endswith("num_batches_tracked")}
    assert source.backbone.keys() == wanted.keys()
    assert all(torch.equal(source.backbone[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("name", FILES)
def test_the_network_that_is_meant_is_taken(tmp_path: Path, name: str) -> None:
    kind, make = FILES[name]
    torch.save(make(QUERY, KEY), tmp_path / "a.pth")
    source = read_source(tmp_path / "a.pth")
    assert source.kind == kind
    assert_is(source, QUERY)
    assert source.architecture.depth == 50 and source.architecture.width == 0.125


def test_every_entry_of_the_table_has_a_fixture() -> None:
    with_own_test = {"simclr", "detectron2", "caffe2", "caffe"}
    assert ({kind for kind, _ in FILES.values()} - {"unknown"}) | with_own_test == set(LAYOUTS)


def test_two_encoders_of_a_stranger_are_ambiguous(tmp_path: Path) -> None:
    """PyContrast has its average under `model_ema`, too; a Lightning module's own average need not be it."""
    state = under("model.encoder.", QUERY) | under("model_ema.encoder.", KEY)
    torch.save({"state_dict": state}, tmp_path / "a.pth")
    with pytest.raises(
        UserError, match=r"ambiguous.*not where a known layout has them.*--branch model\.encoder"
    ):
        read_source(tmp_path / "a.pth")


@pytest.mark.parametrize(
    ("name", "branch"),
    [
        ("moco v2, DDP", "encoder_k"),
        ("moco v3", "momentum_encoder"),
        ("dino full", "student"),
        ("pycontrast", "model_ema"),
        ("lightly benchmark moco", "backbone"),
        ("solo", "momentum_backbone"),
        ("byol port", "target_network"),
    ],
)
def test_the_other_network_is_taken_on_request(tmp_path: Path, name: str, branch: str) -> None:
    torch.save(FILES[name][1](QUERY, KEY), tmp_path / "a.pth")
    assert_is(read_source(tmp_path / "a.pth", branch=branch), KEY)


def test_an_alias_that_is_no_alias_is_ambiguous(tmp_path: Path) -> None:
    contents = FILES["openselfsup, densecl raw"][1](QUERY, KEY)
    contents["state_dict"]["encoder_q.0.bn1.bias"] = contents["state_dict"]["encoder_q.0.bn1.bias"] + 1
    torch.save(contents, tmp_path / "a.pth")
    with pytest.raises(UserError, match=r"ambiguous.*backbone.*encoder_q\.0"):
        read_source(tmp_path / "a.pth")


def test_swav_and_simclr_have_their_own_pixel_statistics(tmp_path: Path) -> None:
    torch.save(FILES["swav"][1](QUERY, KEY), tmp_path / "swav.pth")
    assert read_source(tmp_path / "swav.pth").input.std[0] == pytest.approx(255 * 0.228)
    torch.save({"state_dict": QUERY}, tmp_path / "simclr.pth")
    read = read_source(tmp_path / "simclr.pth", source="simclr")
    assert (read.input.mean, read.input.std) == ((0, 0, 0), (255, 255, 255))


@pytest.mark.parametrize("junk", [{}, {"stem.fc.weight": torch.zeros(2, 2).numpy()}])
def test_converted_files_of_others_are_read(tmp_path: Path, junk: dict) -> None:
    contents = {"model": detectron2_names(QUERY) | junk, "__author__": "MOCO", "matching_heuristics": True}
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(contents))
    source = read_source(tmp_path / "a.pkl")
    assert source.kind == "detectron2" and source.input.format == "RGB"
    assert_is(source, QUERY)


def test_a_c4_detector_gives_its_backbone_with_the_stage_of_the_box_head(tmp_path: Path) -> None:
    named = {name: torch.from_numpy(array) for name, array in detectron2_names(QUERY).items()}
    head = {f"roi_heads.{n}": t for n, t in named.items() if n.startswith("res5.")}
    backbone = under("backbone.", {n: t for n, t in named.items() if not n.startswith("res5.")})
    torch.save(
        {"model": backbone | head | {"roi_heads.res5.norm.weight": torch.zeros(3)}}, tmp_path / "a.pth"
    )
    assert_is(read_source(tmp_path / "a.pth"), QUERY)


def test_caffe2_files_are_bgr_with_merged_batch_norm(tmp_path: Path) -> None:
    (tmp_path / "R-50.pkl").write_bytes(pickle.dumps({"blobs": caffe2_names(QUERY)}, protocol=2))
    source = read_source(tmp_path / "R-50.pkl")
    assert (source.kind, source.input.format, source.input.stride_in_1x1) == ("caffe2", "BGR", True)
    assert source.input.std == (1, 1, 1) and source.input.mean == (103.53, 116.28, 123.675)
    merged = {}
    for name, tensor in QUERY.items():
        if name.endswith("running_mean"):
            tensor = torch.zeros_like(tensor)
        elif name.endswith("running_var"):
            tensor = torch.ones_like(tensor) - 1e-5
        merged[name] = tensor
    assert_is(source, merged)
    assert source.dropped == {"fc1000_w": 1, "fc1000_b": 1}
