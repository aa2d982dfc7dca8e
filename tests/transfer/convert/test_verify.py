"""The numeric verification passes for correct files of every kind, and fails for each wrong tensor."""

import copy
import dataclasses
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_resnet_backbone
from torch import nn
from torchvision.models import ResNet, resnet
from torchvision.models.feature_extraction import create_feature_extractor

from pretrain.common.errors import UserError
from tests.support.checkpoints import moco_file, plain_file, small_network, torchvision_network
from transfer.convert import verify as verification
from transfer.convert.convert import convert
from transfer.convert.recognise import Source, build_network, read_source
from transfer.convert.verify import LEVELS, TOLERANCE, compare, load_backbone, sample_images, verify


def converted(tmp_path: Path, network: nn.Module, *, head: str = "") -> tuple[Source, Path]:
    """Convert without verification, so that the tests can call it themselves."""
    state = network.state_dict()
    path = tmp_path / "source.pth"
    if head:
        moco_file(path, state, head=head)
    else:
        plain_file(path, state)
    convert(path, tmp_path / "weights.pkl", verify=False)
    return read_source(path), tmp_path / "weights.pkl"


def edit(path: Path, change: Any) -> None:
    contents = pickle.loads(path.read_bytes())
    change(contents)
    path.write_bytes(pickle.dumps(contents, protocol=3))


@pytest.mark.parametrize(
    ("name", "head"), [("resnet18", ""), ("resnet18", "linear"), ("resnet18", "mlp"), ("resnet50", "mlp")]
)
def test_right_files_pass(tmp_path: Path, name: str, head: str) -> None:
    differences = verify(*converted(tmp_path, torchvision_network(name), head=head))
    assert tuple(differences) == LEVELS
    assert max(differences.values()) < 1e-8  # only float64 rounding remains


@pytest.mark.parametrize("width", [0.0625, 0.25, 1.125])
def test_other_widths_pass(tmp_path: Path, width: float) -> None:
    assert max(verify(*converted(tmp_path, small_network(width=width))).values()) < 1e-8


def test_groups_pass(tmp_path: Path) -> None:
    network = ResNet(resnet.Bottleneck, [3, 4, 6, 3], groups=32, width_per_group=4)
    assert max(verify(*converted(tmp_path, network)).values()) < 1e-8


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_plain_detectron2_agrees_with_plain_torchvision(tmp_path: Path, name: str) -> None:
    """Use nothing of this project but the file: torchvision's class, detectron2's checkpointer, float32."""
    network = torchvision_network(name).eval()
    _, path = converted(tmp_path, network)
    cfg = get_cfg()
    cfg.MODEL.RESNETS.merge_from_other_cfg(
        type(cfg)(
            {"DEPTH": int(name[-2:]), "STRIDE_IN_1X1": False, "NORM": "BN", "OUT_FEATURES": list(LEVELS)}
        )
    )
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64 if name == "resnet18" else 256
    backbone = build_resnet_backbone(cfg, ShapeSpec(channels=3)).eval()
    DetectionCheckpointer(backbone).load(str(path))
    layers = {f"layer{number}": f"res{number + 1}" for number in range(1, 5)}
    image = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = create_feature_extractor(network, layers)(image)
        actual = backbone(image)
    for level in LEVELS:
        torch.testing.assert_close(actual[level], expected[level], rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_each_tensor_of_resnet18_matters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A change of one percent in any tensor of the source is visible in `res2` to `res5`."""
    source, path = converted(tmp_path, torchvision_network("resnet18"))
    assert len(source.backbone) == 100
    images = sample_images(32, 32)  # a quarter of the time
    network, features = build_network(source), verification._detectron2_features(path, images)
    monkeypatch.setattr(verification, "sample_images", lambda: images)

    def built_once(changed: Source) -> nn.Module:
        # Like the real function, which also initialises the network.
        network.load_state_dict(changed.backbone)
        return network.float()

    monkeypatch.setattr(verification, "build_network", built_once)
    monkeypatch.setattr(verification, "_detectron2_features", lambda *_: features)
    insensitive = []
    for name, tensor in source.backbone.items():
        changed = source.backbone | {name: tensor * 1.01 if tensor.any() else tensor + 0.01}
        difference = max(compare(dataclasses.replace(source, backbone=changed), path).values())
        if difference <= TOLERANCE:
            insensitive.append(f"{name} {difference:.1e}")
    assert insensitive == []
    assert max(compare(source, path).values()) < 1e-8


@pytest.mark.slow
def test_each_kind_of_tensor_of_a_small_resnet50_matters_in_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A change of two percent in a tensor that detectron2 loads is visible in `res2` to `res5`, wherever it is."""
    source, path = converted(tmp_path, small_network(width=0.0625))
    names = pickle.loads(path.read_bytes())["model"]
    assert len(names) == 265
    images = sample_images(32, 32)
    monkeypatch.setattr(verification, "sample_images", lambda: images)
    (backbone, settings), expected = load_backbone(path), verification._source_features(source, images)
    monkeypatch.setattr(verification, "_source_features", lambda *_: expected)
    insensitive = []
    for name in list(names)[::4]:  # a convolution and its norm are five tensors
        changed = copy.deepcopy(backbone)
        changed.state_dict()[name].mul_(1.02)
        monkeypatch.setattr(verification, "load_backbone", lambda _, changed=changed: (changed, settings))
        if max(compare(source, path).values()) <= TOLERANCE:
            insensitive.append(name)
    assert insensitive == []


@pytest.mark.parametrize(
    "name",
    [
        "stem.conv1.weight",
        "res2.0.shortcut.weight",
        "res3.3.conv2.weight",
        "res4.5.conv1.norm.weight",
        "res4.0.shortcut.norm.bias",
        "res5.0.conv2.norm.running_mean",
        "res5.2.conv3.norm.running_var",
    ],
)
def test_a_wrong_tensor_in_the_file_is_named(tmp_path: Path, name: str) -> None:
    source, path = converted(tmp_path, small_network(width=0.0625))
    edit(path, lambda contents: contents["model"][name].__imul__(1.02))
    with pytest.raises(
        UserError, match=rf"outputs differ .*tensor {name} differs from the source's \(1 such tensors\)"
    ):
        verify(source, path)


def test_each_tensor_in_the_file_is_compared_with_the_source(tmp_path: Path) -> None:
    source, path = converted(tmp_path, small_network(width=0.0625))
    edit(path, lambda contents: [array.__imul__(1.02) for array in contents["model"].values()])
    with pytest.raises(UserError, match=r"outputs differ .*differs from the source's \(265 such tensors\)"):
        verify(source, path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("INPUT.FORMAT", "BGR"),
        ("MODEL.PIXEL_MEAN", [103.53, 116.28, 123.675]),
        ("MODEL.PIXEL_MEAN", [123.7, 116.28, 103.53]),
        ("MODEL.PIXEL_STD", [1.0, 1.0, 1.0]),
        ("MODEL.PIXEL_STD", [58.14, 57.12, 57.375]),  # 0.228 instead of 0.229
        ("MODEL.RESNETS.STRIDE_IN_1X1", True),
    ],
)
def test_another_preprocessing_or_stride_fails(tmp_path: Path, key: str, value: Any) -> None:
    source, path = converted(tmp_path, small_network(width=0.0625))
    edit(path, lambda contents: contents["preprocessing"].update({key: value}))
    with pytest.raises(UserError, match="verification failed: the outputs differ"):
        verify(source, path)


def test_what_no_output_shows_fails_too(tmp_path: Path) -> None:
    """A gamma of zero silences a whole branch, so only a comparison of the tensors themselves finds the error."""
    network = small_network(width=0.0625)
    nn.init.zeros_(network.layer4[2].bn3.weight)
    source, path = converted(tmp_path, network)
    edit(path, lambda contents: contents["model"]["res5.2.conv2.weight"].__imul__(1.5))
    assert max(compare(source, path).values()) <= TOLERANCE
    with pytest.raises(UserError, match=r"tensor res5\.2\.conv2\.weight differs from the source's"):
        verify(source, path)


@pytest.mark.parametrize("fault", ["missing", "unexpected", "shape"])
def test_a_file_that_detectron2_does_not_place_whole_fails(tmp_path: Path, fault: str) -> None:
    source, path = converted(tmp_path, small_network(width=0.0625))

    def change(contents: dict[str, Any]) -> None:
        tensor = contents["model"].pop("res3.1.conv2.weight")
        if fault == "unexpected":
            contents["model"] |= {"res3.1.conv2.weight": tensor, "stem.fc.weight": tensor}
        if fault == "shape":
            contents["model"]["res3.1.conv2.weight"] = tensor[1:]

    edit(path, change)
    with pytest.raises(UserError, match="missing, unexpected or mis-shaped"):
        verify(source, path)


def test_the_images_are_the_same_each_time() -> None:
    first, second = sample_images(), sample_images()
    assert first.shape == (2, 64, 96, 3)
    assert (first == second).all()
    assert (first.reshape(-1, 3).std(axis=0) > 30).all()
