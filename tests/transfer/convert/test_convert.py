"""The converted file: its names and bytes, and that a refused conversion writes nothing."""

import json
import pickle
import pickletools
from pathlib import Path

import numpy
import pytest
import torch
import yaml

from pretrain.common.errors import UserError
from pretrain.model.encoders import architecture
from tests.support.checkpoints import moco_file, plain_file, small_network, torchvision_network
from tests.support.scripts import run_script
from transfer.convert.convert import config_block, convert, preprocessing
from transfer.convert.preprocessing import IMAGENET, Input
from transfer.convert.tensor_names import detectron2_name

SMALL = small_network().state_dict()


@pytest.mark.parametrize(
    ("torchvision", "detectron2"),
    [
        ("conv1.weight", "stem.conv1.weight"),
        ("bn1.running_var", "stem.conv1.norm.running_var"),
        ("layer1.0.conv1.weight", "res2.0.conv1.weight"),
        ("layer2.3.bn3.bias", "res3.3.conv3.norm.bias"),
        ("layer3.0.downsample.0.weight", "res4.0.shortcut.weight"),
        ("layer4.0.downsample.1.running_mean", "res5.0.shortcut.norm.running_mean"),
    ],
)
def test_names(torchvision: str, detectron2: str) -> None:
    assert detectron2_name(torchvision) == detectron2


@pytest.mark.parametrize("name", ["fc.weight", "layer1.0.fc.weight", "conv9.weight"])
def test_names_outside_the_table_are_errors(name: str) -> None:
    with pytest.raises(KeyError):
        detectron2_name(name)


def written(tmp_path: Path) -> Path:
    output = tmp_path / "a.pkl"
    convert(moco_file(tmp_path / "a.pth.tar", SMALL), output)
    return output


def test_the_file_says_what_it_is_and_what_it_needs(tmp_path: Path) -> None:
    contents = pickle.loads(written(tmp_path).read_bytes())
    assert contents["matching_heuristics"] is True
    assert len(contents["model"]) == 53 * 6 - 53
    assert {array.dtype for array in contents["model"].values()} == {numpy.dtype("float32")}
    assert numpy.array_equal(contents["model"]["res4.5.conv2.weight"], SMALL["layer3.5.conv2.weight"])
    assert contents["preprocessing"] == {
        "INPUT.FORMAT": "RGB",
        "MODEL.PIXEL_MEAN": [123.675, 116.28, 103.53],
        "MODEL.PIXEL_STD": [58.395, 57.12, 57.375],
        "MODEL.RESNETS.DEPTH": 50,
        "MODEL.RESNETS.STRIDE_IN_1X1": False,
        "MODEL.RESNETS.NUM_GROUPS": 1,
        "MODEL.RESNETS.WIDTH_PER_GROUP": 8,
        "MODEL.RESNETS.STEM_OUT_CHANNELS": 8,
        "MODEL.RESNETS.RES2_OUT_CHANNELS": 32,
    }
    record = contents["record"]
    assert (record["source"], record["branch"], record["epoch"]) == ("moco", "module.encoder_q", 200)
    assert record["dropped"]["encoder_k"] == 322
    # Smaller differences are recorded as 1e-9.
    assert record["proof"] == {"res2": 1e-9, "res3": 1e-9, "res4": 1e-9, "res5": 1e-9}


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    first = written(tmp_path).read_bytes()
    result = run_script("tools/convert_to_d2.py", str(tmp_path / "a.pth.tar"), str(tmp_path / "again.pkl"))
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "again.pkl").read_bytes() == first


def test_numpy_1_can_load_it(tmp_path: Path) -> None:
    operations = list(pickletools.genops(written(tmp_path).read_bytes()))
    named = {argument for operation, argument, _ in operations if operation.name == "GLOBAL"}
    assert named == {"numpy.core.multiarray _reconstruct", "numpy ndarray", "numpy dtype"}
    assert not any(operation.name == "STACK_GLOBAL" for operation, _, _ in operations)
    assert max(operation.proto for operation, _, _ in operations) <= 4


@pytest.mark.parametrize(
    ("name", "group_channels", "stem", "res2"),
    [("resnet18", 64, 64, 64), ("resnext50_32x8d", 8, 64, 256), ("resnet50", 64, 64, 256)],
)
def test_settings_of_other_networks(name: str, group_channels: int, stem: int, res2: int) -> None:
    settings = preprocessing(architecture(name))
    assert settings["MODEL.RESNETS.WIDTH_PER_GROUP"] == group_channels
    assert settings["MODEL.RESNETS.STEM_OUT_CHANNELS"] == stem
    assert settings["MODEL.RESNETS.RES2_OUT_CHANNELS"] == res2


def test_the_yaml_block_reads_back_as_the_settings(tmp_path: Path) -> None:
    settings = preprocessing(architecture("resnet50", 0.25))
    tree = yaml.safe_load(config_block(settings, tmp_path / "a.pkl"))
    assert tree["MODEL"]["WEIGHTS"] == str(tmp_path / "a.pkl")
    assert tree["INPUT"]["FORMAT"] == "RGB"
    assert tree["MODEL"]["PIXEL_STD"] == settings["MODEL.PIXEL_STD"]
    assert tree["MODEL"]["RESNETS"]["STRIDE_IN_1X1"] is False


def test_a_refusal_leaves_the_old_output_and_nothing_else(tmp_path: Path) -> None:
    output = tmp_path / "out" / "a.pkl"
    output.parent.mkdir()
    convert(plain_file(tmp_path / "b.pth", SMALL), output, verify=False)
    old = output.read_bytes()
    state = {name: tensor for name, tensor in SMALL.items() if name != "layer4.2.bn3.bias"}
    result = run_script("tools/convert_to_d2.py", plain_file(tmp_path / "a.pth", state), str(output))
    assert result.returncode == 2
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert "layer4.2.bn3.bias" in result.stderr
    assert output.read_bytes() == old
    assert list(output.parent.iterdir()) == [output]


def test_a_failed_proof_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reversed_mean = Input(mean=IMAGENET.mean[::-1])
    monkeypatch.setattr(
        "transfer.convert.convert.preprocessing", lambda kind, *_: preprocessing(kind, reversed_mean)
    )
    with pytest.raises(UserError, match="verification failed"):
        convert(moco_file(tmp_path / "a.pth.tar", SMALL), tmp_path / "out" / "a.pkl")
    assert not (tmp_path / "out").exists()


def test_own_pixel_statistics_go_into_the_record_and_through_the_proof(tmp_path: Path) -> None:
    mean, std = [0.5, 0.25, 0.125], [0.2, 0.3, 0.4]
    contents = torch.load(moco_file(tmp_path / "a.pth.tar", SMALL), weights_only=True)
    ours = {"iterations_per_epoch": 1, "config": yaml.safe_dump({"INPUT": {"MEAN": mean, "STD": std}})}
    torch.save({**contents, **ours}, tmp_path / "b.pth.tar")
    written = convert(tmp_path / "b.pth.tar", tmp_path / "b.pkl")
    assert written["preprocessing"]["MODEL.PIXEL_MEAN"] == [127.5, 63.75, 31.875]
    assert written["preprocessing"]["MODEL.PIXEL_STD"] == [51, 76.5, 102]
    assert max(written["record"]["proof"].values()) < 1e-9


def test_the_input_is_not_overwritten(tmp_path: Path) -> None:
    path = plain_file(tmp_path / "a.pkl", SMALL)
    before = path.read_bytes()
    with pytest.raises(UserError, match="is the input"):
        convert(path, path)
    assert path.read_bytes() == before


def test_output_names_and_narrow_basic_networks_are_refused(tmp_path: Path) -> None:
    path = moco_file(tmp_path / "a.pth.tar", SMALL)
    with pytest.raises(UserError, match=r"\*\.pkl"):
        convert(path, tmp_path / "a.bin")
    narrow = plain_file(tmp_path / "b.pth", small_network("resnet18", 0.5).state_dict())
    with pytest.raises(UserError, match="pre-train a resnet50"):
        convert(narrow, tmp_path / "b.pkl")


def test_the_tool_prints_what_it_did(tmp_path: Path) -> None:
    path, record = moco_file(tmp_path / "a.pth.tar", SMALL), tmp_path / "a.json"
    result = run_script("tools/convert_to_d2.py", str(path), str(tmp_path / "a.pkl"), "--record", str(record))
    assert result.returncode == 0, result.stderr
    for part in (
        "moco",
        "module.encoder_q",
        "epoch 200",
        "ResNet-50",
        "encoder_k (322)",
        "res5",
        "PIXEL_MEAN",
    ):
        assert part in result.stdout
    written = json.loads(record.read_text())
    assert max(written["record"]["proof"].values()) < 1e-9
    assert written["preprocessing"]["MODEL.RESNETS.DEPTH"] == 50


def test_without_the_proof_the_weights_are_the_same(tmp_path: Path) -> None:
    verified = pickle.loads(written(tmp_path).read_bytes())
    convert(tmp_path / "a.pth.tar", tmp_path / "b.pkl", verify=False)
    unverified = pickle.loads((tmp_path / "b.pkl").read_bytes())
    assert unverified["record"]["proof"] is None
    assert all(
        numpy.array_equal(verified["model"][name], unverified["model"][name]) for name in verified["model"]
    )


def test_a_torchvision_file_too(tmp_path: Path) -> None:
    state = torchvision_network("resnet18").state_dict()
    record = convert(plain_file(tmp_path / "a.pth", state), tmp_path / "a.pkl")["record"]
    assert record["source"] == "torchvision"
    assert record["architecture"]["blocks"] == (2, 2, 2, 2)
    contents = torch.load(tmp_path / "a.pth", weights_only=True)
    model = pickle.loads((tmp_path / "a.pkl").read_bytes())["model"]
    assert sum(array.size for array in model.values()) == sum(
        tensor.numel()
        for name, tensor in contents.items()
        if not name.startswith("fc.") and not name.endswith("num_batches_tracked")
    )
