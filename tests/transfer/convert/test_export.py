"""Export to other formats and libraries, conversion of many files, and `--inspect`."""

import pickle
from pathlib import Path

import numpy
import pytest
import torch
import torchvision
from detectron2.checkpoint import DetectionCheckpointer
from safetensors.torch import load_file
from torch import nn

from pretrain.common.errors import UserError
from tests.support.checkpoints import moco_file, plain_file, small_network, torchvision_network
from tests.support.layouts import FILES, caffe2_names, detectron2_names, network
from tests.support.scripts import run_script
from transfer.convert.convert import convert
from transfer.convert.export import export
from transfer.convert.program.report import describe
from transfer.convert.recognise import read_source
from transfer.convert.weights_file import read_weights

QUERY, KEY = network(1), network(2)


@pytest.mark.parametrize("to", ["torchvision", "timm", "moco"])
@pytest.mark.parametrize("ending", ["pth", "safetensors"])
def test_the_round_trip_is_bit_equal(tmp_path: Path, to: str, ending: str) -> None:
    if (to, ending) == ("moco", "safetensors"):
        pytest.skip("MoCo's files are PyTorch's")
    convert(plain_file(tmp_path / "a.pth", QUERY), tmp_path / "a.pkl", verify=False)
    back = tmp_path / f"back.{ending}"
    export(tmp_path / "a.pkl", back, to=to)
    convert(back, tmp_path / "b.pkl", verify=False)
    first, second = (read_weights(tmp_path / name)["model"] for name in ("a.pkl", "b.pkl"))
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    assert read_source(back).kind == ("moco" if to == "moco" else "torchvision")


def test_torchvision_loads_the_export(tmp_path: Path) -> None:
    state = torchvision_network("resnet18").state_dict()
    convert(moco_file(tmp_path / "a.pth.tar", state), tmp_path / "a.pkl", verify=False)
    lines = export(tmp_path / "a.pkl", tmp_path / "back.pth", to="torchvision")
    model = torchvision.models.resnet18()
    loaded = model.load_state_dict(torch.load(tmp_path / "back.pth", weights_only=True), strict=False)
    assert set(loaded.missing_keys) == {"fc.weight", "fc.bias"} and not loaded.unexpected_keys
    assert torch.equal(model.layer4[1].bn2.running_var, state["layer4.1.bn2.running_var"])
    assert any("torchvision.models.resnet18()" in line for line in lines)


def test_strides_that_others_cannot_have_are_refused(tmp_path: Path) -> None:
    (tmp_path / "R-50.pkl").write_bytes(pickle.dumps({"blobs": caffe2_names(QUERY)}, protocol=2))
    with pytest.raises(UserError, match="stride in the 1x1"):
        export(tmp_path / "R-50.pkl", tmp_path / "a.pth", to="torchvision")
    with pytest.raises(UserError, match=r"\*\.pth"):
        export(tmp_path / "R-50.pkl", tmp_path / "a.onnx", to="timm")


@pytest.mark.parametrize("ending", ["pkl", "pth", "safetensors"])
def test_every_format_holds_the_same_and_is_reproducible(tmp_path: Path, ending: str) -> None:
    path = moco_file(tmp_path / "a.pth.tar", QUERY)
    outputs = [tmp_path / f"{number}.{ending}" for number in range(2)]
    for output in outputs:
        convert(path, output)
    assert outputs[0].read_bytes() == outputs[1].read_bytes()
    read = read_weights(outputs[0])
    assert read["preprocessing"]["INPUT.FORMAT"] == "RGB" and read["record"]["proof"]
    expected = detectron2_names(QUERY)
    assert read["model"].keys() == expected.keys()
    assert all(numpy.array_equal(read["model"][name], expected[name]) for name in expected)
    if ending == "safetensors":
        assert load_file(outputs[0]).keys() == expected.keys()


def test_detectron2_itself_loads_pth(tmp_path: Path) -> None:
    convert(moco_file(tmp_path / "a.pth.tar", QUERY), tmp_path / "a.pth", verify=False)

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = nn.Module()
            self.backbone.stem = nn.Module()
            self.backbone.stem.conv1 = nn.Conv2d(3, 8, 7, bias=False)

    model = Model()
    DetectionCheckpointer(model).load(str(tmp_path / "a.pth"))  # matches names by their suffixes
    assert torch.equal(model.backbone.stem.conv1.weight, QUERY["conv1.weight"])


def test_a_converted_file_of_others_gets_its_record(tmp_path: Path) -> None:
    contents = {"model": detectron2_names(QUERY), "__author__": "MOCO", "matching_heuristics": True}
    (tmp_path / "old.pkl").write_bytes(pickle.dumps(contents))
    written = convert(tmp_path / "old.pkl", tmp_path / "new.pkl")
    assert written["preprocessing"]["MODEL.RESNETS.STRIDE_IN_1X1"] is False
    assert written["record"]["source"] == "detectron2" and max(written["record"]["proof"].values()) < 1e-8


def test_our_own_file_keeps_its_settings(tmp_path: Path) -> None:
    torch.save(FILES["swav"][1](QUERY, KEY), tmp_path / "swav.pth")
    first = convert(tmp_path / "swav.pth", tmp_path / "a.pkl", verify=False)
    second = convert(tmp_path / "a.pkl", tmp_path / "b.pkl", verify=False)
    assert first["preprocessing"] == second["preprocessing"]
    assert first["preprocessing"]["MODEL.PIXEL_STD"][0] == pytest.approx(58.14)


def test_inspect_names_networks_heads_and_what_would_go(tmp_path: Path) -> None:
    torch.save(FILES["dino full"][1](QUERY, KEY), tmp_path / "a.pth")
    text = "\n".join(describe(tmp_path / "a.pth"))
    for part in ("student.module.backbone", "taken     teacher.backbone: the teacher", "epoch 800", "ResNet-50",
                 "width 0.125", "student (", "argparse.Namespace", "RGB, mean 123.675", "16 -> 16"):  # fmt: skip
        assert part in text
    torch.save({"cls_token": torch.zeros(1, 1, 8)}, tmp_path / "vit.pth")
    assert "cannot be converted: it holds a vision transformer" in "\n".join(describe(tmp_path / "vit.pth"))


def test_many_files_at_once_with_a_table_and_an_exit_code(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    plain_file(tmp_path / "in" / "good.pth", small_network(width=0.0625).state_dict())
    plain_file(tmp_path / "in" / "vit.pth", {"cls_token": torch.zeros(1, 1, 8)})
    arguments = (str(tmp_path / "in" / "*.pth"), "--output-dir", str(tmp_path / "out"))
    result = run_script("tools/convert_to_d2.py", *arguments)
    assert result.returncode != 0
    assert "1 of 2 files were not converted" in result.stderr and "Traceback" not in result.stderr
    assert "FAILED" in result.stdout and "vision transformer" in result.stdout
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["good.pkl"]


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["a.pth"], "INPUT OUTPUT.pkl"),
        (["*.none", "--output-dir", "x"], "no file matches"),
        (["a.pth", "b.pth", "--output-dir", "x", "--to", "timm"], "--to has no effect with --output-dir"),
        (["x/a.pth", "y/b.pth", "x/a.pth"], "INPUT OUTPUT.pkl"),
    ],
)
def test_wrong_command_lines_are_one_line(arguments: list[str], part: str) -> None:
    result = run_script("tools/convert_to_d2.py", *arguments)
    assert result.returncode != 0 and part in result.stderr and result.stderr.count("\n") == 1
