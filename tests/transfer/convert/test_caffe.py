"""Caffe models against a layer by layer computation from their own numbers."""

import pickle
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

from pretrain.common.errors import UserError
from pretrain.model.encoders import Architecture, ResNet, architecture
from tests.support.checkpoints import State, randomise
from tests.support.fuzzing.caffe import (
    caffemodel,
    features,
    from_torchvision,
    he_names,
    yahoo_names,
)
from tests.support.layouts import caffe2_names
from transfer.convert.convert import convert
from transfer.convert.program.command import convert_one
from transfer.convert.recognise import build_network, read_source
from transfer.convert.tensor_names import caffe_name

BLOCKS = (3, 4, 6, 3)
SHAPE = Architecture(50, BLOCKS, width_per_group=4, stem_channels=8, out_channels=12)
LEVELS = ("res2", "res3", "res4", "res5")


def network(shape: Architecture = SHAPE) -> State:
    torch.manual_seed(0)
    state = randomise(ResNet(shape)).state_dict()
    return {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}


STATE = network()


def written(path: Path, layers: Any, **options: Any) -> Path:
    path.write_bytes(caffemodel(layers, **options))
    return path


def test_features_are_those_of_the_layers(tmp_path: Path) -> None:
    layers = from_torchvision(STATE, biases=True)
    source = read_source(written(tmp_path / "a.caffemodel", layers))
    assert (source.kind, source.architecture, source.dropped) == ("caffe", SHAPE, {"fc1000": 2})
    assert len(source.backbone) == 265
    images = torch.randn(2, 3, 64, 96, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    net = build_network(source).double().eval()
    with torch.no_grad():
        ours = net.features(images)
        net.maxpool = torch.nn.MaxPool2d(3, 2, ceil_mode=True)
        caffes = net.features(images)
    for found, padded in ((ours, True), (caffes, False)):
        expected = features(layers, images, list(BLOCKS), padded=padded)
        for level, maps in zip(LEVELS, expected, strict=True):
            assert maps.std() > 0.1
            # means and variances are rounded to float32 when they are divided and folded
            assert (found[level] - maps).abs().max() < 1e-5 * maps.abs().max()


def test_biases_are_subtracted_from_the_means(tmp_path: Path) -> None:
    layers = from_torchvision(STATE, biases=True)
    found = read_source(written(tmp_path / "a.caffemodel", layers)).backbone
    for module, norm in (("conv1", "bn1"), ("layer2.0.downsample.0", "layer2.0.downsample.1")):
        convolution, statistics, scale = he_names(module)
        means = layers[statistics]["mean"].astype("f8") / 2 - layers[convolution]["bias"]
        assert numpy.array_equal(found[f"{norm}.running_mean"], means.astype("f4"))
        assert numpy.array_equal(found[f"{norm}.running_var"], layers[statistics]["variance"] / 2)
        assert numpy.array_equal(found[f"{norm}.weight"], layers[scale]["gamma"])
        assert numpy.array_equal(found[f"{norm}.bias"], layers[scale]["beta"])
        assert numpy.array_equal(found[f"{module}.weight"], layers[convolution]["weight"])


@pytest.mark.parametrize("names", [he_names, yahoo_names])
@pytest.mark.parametrize("old", [False, True])
def test_a_network_without_biases_comes_back_bit_for_bit(tmp_path: Path, names: Any, old: bool) -> None:
    found = read_source(written(tmp_path / "a.caffemodel", from_torchvision(STATE, names), old=old))
    assert found.backbone.keys() == STATE.keys()
    assert all(torch.equal(found.backbone[name], tensor) for name, tensor in STATE.items())
    assert (found.input.format, found.input.mean, found.input.std) == ("BGR", (104, 117, 123), (1, 1, 1))
    assert found.input.stride_in_1x1 and "assumed" in found.input_origin


@pytest.mark.parametrize("name", ["resnet18", "resnet101", "resnet152"])
def test_names_of_other_depths(name: str) -> None:
    with torch.device("meta"):
        kernels = [n for n, t in ResNet(architecture(name)).state_dict().items() if t.ndim == 4]
    blocks = {"resnet18": 2, "resnet101": 23, "resnet152": 36}[name]
    for kernel in kernels:
        convolution, statistics, scale = he_names(kernel.removesuffix(".weight"), blocks)
        assert caffe_name(f"{convolution}.weight") == kernel
        norm = kernel.removesuffix(".weight").replace("conv", "bn").replace("downsample.0", "downsample.1")
        assert caffe_name(f"{statistics}.running_var") == f"{norm}.running_var"
        assert caffe_name(f"{scale}.bias") == f"{norm}.bias"
    assert he_names("layer3.22.conv2", 23)[2] == "scale4b22_branch2b"


@pytest.mark.parametrize(("first", "second"), [(2, 1), (1, 2)])
def test_the_place_of_the_stride_is_read_from_the_layers(tmp_path: Path, first: int, second: int) -> None:
    strides = {"res3a_branch2a": first, "res3a_branch2b": second, "conv1": 2}
    source = read_source(written(tmp_path / "a.caffemodel", from_torchvision(STATE), strides=strides))
    assert source.input.stride_in_1x1 == (first == 2)
    assert source.input_origin.startswith("the stride as its layers state; the rest assumed")


def test_basic_blocks_have_no_1x1_convolution(tmp_path: Path) -> None:
    shape = architecture("resnet18", 0.125)
    source = read_source(written(tmp_path / "a.caffemodel", from_torchvision(network(shape))))
    assert source.architecture == shape
    assert build_network(source).layer2[0].conv1.stride == (2, 2)


def test_a_conversion_is_verified_and_names_what_the_pooling_changes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(tmp_path / "a.caffemodel", from_torchvision(STATE, yahoo_names, biases=True))
    convert_one(path, tmp_path / "a.pkl", record=None)
    printed = capsys.readouterr().out
    assert "ResNet-50, width 0.046875, 1 group(s) of 4, stem 8, res2 12" in printed
    assert "STEM_OUT_CHANNELS: 8\n    RES2_OUT_CHANNELS: 12" in printed
    assert "shifted\n          by two pixels" in printed
    record = read_source(tmp_path / "a.pkl")
    assert record.architecture == SHAPE and record.input == read_source(path).input


def test_the_pooling_alone_is_a_shift_by_two_pixels(tmp_path: Path) -> None:
    """detectron2's pooling of an image without its first two pixels is Caffe's of the whole, up to the borders."""
    path = written(tmp_path / "a.caffemodel", from_torchvision(STATE))
    net = build_network(read_source(path)).double().eval()
    images = torch.randn(1, 3, 64, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        stem = [net.bn1(net.conv1(part)).relu() for part in (images, images[..., 2:, 2:])]
        caffes = torch.nn.functional.max_pool2d(stem[0], 3, 2, ceil_mode=True)
        ours = net.maxpool(stem[1])
    torch.testing.assert_close(
        ours[..., 2:-2, 2:-2], caffes[..., 2 : ours.shape[2] - 2, 2 : ours.shape[3] - 2]
    )


def test_msras_files_have_the_same_sentence_and_others_none(tmp_path: Path) -> None:
    pooling = {}
    (tmp_path / "msra.pkl").write_bytes(pickle.dumps({"blobs": caffe2_names(STATE)}, protocol=2))
    torch.save(STATE, tmp_path / "plain.pth")
    written(tmp_path / "he.caffemodel", from_torchvision(STATE))
    for name in ("msra.pkl", "plain.pth", "he.caffemodel"):
        record = convert(tmp_path / name, tmp_path / f"{name}.out.pkl")["record"]
        pooling[name] = record.get("pooling")
        assert max(record["proof"].values()) < 1e-8
    assert pooling["plain.pth"] is None
    for name in ("msra.pkl", "he.caffemodel"):
        assert tuple(pooling[name]) == LEVELS and all(0.05 < figure < 2 for figure in pooling[name].values())


def spoilt(layers: dict[str, dict[str, Any]], fault: str) -> dict[str, dict[str, Any]]:
    if fault == "missing scale":
        del layers["scale3b_branch2a"]
    if fault == "missing convolution":
        del layers["res4c_branch2b"]
    if fault == "another part":
        layers["res3b_branch2a_fc"] = layers.pop("fc1000")
    if fault == "wrong shape":
        layers["res3b_branch2b"]["weight"] = layers["res3b_branch2b"]["weight"][:4]
    if fault == "wrong bias":
        layers["res3b_branch2b"]["bias"] = layers["res3b_branch2b"]["bias"][:4]
    if fault == "NaN":
        layers["bn3b_branch2a"]["mean"] = layers["bn3b_branch2a"]["mean"] * numpy.float32("nan")
    if fault == "negative variance":
        layers["bn3b_branch2a"]["variance"] = -layers["bn3b_branch2a"]["variance"]
    if fault == "factor 0":
        layers["bn3b_branch2a"]["factor"] = numpy.zeros(1, "f4")
    if fault == "merged":
        layers = {name: parts for name, parts in layers.items() if not name.startswith(("bn", "scale"))}
    return layers


FAULTS = {
    "missing scale": r"a ResNet-50 without tensor layer2\.1\.bn1\.weight \(2 missing\)",
    "missing convolution": r"without tensor layer3\.2\.conv2\.weight",
    "another part": r"tensor res3b_branch2a_fc\.weight has no place in a ResNet-50",
    "wrong shape": r"tensor layer2\.1\.conv2\.weight has shape \(4, 8, 3, 3\)",
    "wrong bias": r"tensor layer2\.1\.conv2\.bias has no place",
    "NaN": r"tensor layer2\.1\.bn1\.running_mean holds NaN",
    "negative variance": r"tensor layer2\.1\.bn1\.running_var holds negative variances",
    "factor 0": "layer bn3b_branch2a has 0 as its scale factor",
    "merged": r"tensor bn1\.weight is missing",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_wrong_is_one_line_and_no_file(tmp_path: Path, fault: str) -> None:
    layers = spoilt(from_torchvision(STATE, biases=True), fault)
    path = written(tmp_path / "a.caffemodel", layers)
    with pytest.raises(UserError, match=FAULTS[fault]) as error:
        convert(path, tmp_path / "a.pkl")
    assert str(error.value).startswith(f"{path}: ") and str(error.value).isprintable()
    assert [file.name for file in tmp_path.iterdir()] == ["a.caffemodel"]
