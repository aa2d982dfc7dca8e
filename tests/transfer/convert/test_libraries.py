"""Networks built and saved by other libraries are converted completely, or refused for the right reason."""

import copy
import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import nn

from pretrain.common.errors import UserError
from tests.support.checkpoints import randomise
from tests.support.layouts import transformers_names
from transfer.convert.convert import convert
from transfer.convert.recognise import read_source
from transfer.convert.tensor_names import detectron2_name
from transfer.convert.verify import load_backbone
from transfer.convert.weights_file import read_weights

IMAGE = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
TRUNK = ("conv1.", "bn1.", "layer")


def library(name: str) -> Any:
    """Import a library, or skip the test if it is not installed. Some libraries warn while they are imported."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip(name)


def save(path: Path, state: dict[str, torch.Tensor], **config: Any) -> Path:
    """Save with torch.save, or with safetensors and a `config.json` next to the file, as on the hubs."""
    if path.suffix == ".safetensors":
        library("safetensors.torch").save_file(state, path, metadata={"format": "pt"})
        (path.parent / "config.json").write_text(json.dumps(config))
    else:
        torch.save(state, path)
    return path


def trunk(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return what the converted file must hold, under torchvision's names."""
    return {n: t for n, t in state.items() if n.startswith(TRUNK) and not n.endswith("num_batches_tracked")}


def convert_and_compare(source: Path, expected: dict[str, torch.Tensor], *, verify: bool = False) -> dict:
    """Convert a file and compare every tensor of the written file with the library's."""
    record = convert(source, source.parent / "out.pkl", verify=verify)
    written = read_weights(source.parent / "out.pkl")["model"]
    assert written.keys() == {detectron2_name(name) for name in expected}
    for name, tensor in expected.items():
        assert torch.equal(torch.as_tensor(written[detectron2_name(name)]), tensor), name
    return record


@torch.no_grad()
def detectron2_features(weights: Path, image: torch.Tensor) -> list[torch.Tensor]:
    backbone, _ = load_backbone(weights)
    return list(backbone.double().eval()(image.double()).values())


def assert_close(actual: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    assert [a.shape for a in actual] == [e.shape for e in expected]
    for a, e in zip(actual, expected, strict=True):
        assert (a - e).abs().max() <= 1e-9 * e.abs().max()


@pytest.mark.parametrize(
    ("name", "suffix"),
    [
        ("resnet18", ".pth"),
        ("resnet18", ".safetensors"),
        ("resnet50", ".safetensors"),
        ("resnext50_32x4d", ".safetensors"),
        ("wide_resnet50_2", ".pth"),
    ],
)
def test_timm(tmp_path: Path, name: str, suffix: str) -> None:
    state = randomise(library("timm").create_model(name, pretrained=False)).state_dict()
    card = {"mean": [0.5, 0.25, 0.125], "std": [0.5, 0.4, 0.2]}
    path = save(tmp_path / f"model{suffix}", state, architecture=name, pretrained_cfg=card)
    record = convert_and_compare(path, trunk(state), verify=(name, suffix) == ("resnet18", ".safetensors"))
    assert record["record"]["dropped"].keys() == {"fc", "num_batches_tracked"}
    settings = record["preprocessing"]
    mean = [127.5, 63.75, 31.875] if suffix == ".safetensors" else [123.675, 116.28, 103.53]
    assert settings["MODEL.PIXEL_MEAN"] == mean
    assert settings["MODEL.RESNETS.NUM_GROUPS"] == (32 if "next" in name else 1)


@torch.no_grad()
def test_detectron2_computes_the_features_of_timm(tmp_path: Path) -> None:
    timm = library("timm")
    network = randomise(timm.create_model("resnext50_32x4d", pretrained=False)).eval()
    convert(save(tmp_path / "a.pth", network.state_dict()), tmp_path / "a.pkl", verify=False)
    pyramid = timm.create_model(
        "resnext50_32x4d", pretrained=False, features_only=True, out_indices=(1, 2, 3, 4)
    )
    pyramid.load_state_dict(network.state_dict(), strict=False)
    expected = pyramid.double().eval()(IMAGE.double())
    assert_close(detectron2_features(tmp_path / "a.pkl", IMAGE), expected)
    assert_close([network.double().forward_features(IMAGE.double())], expected[-1:])


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("resnet26", r"\[2, 2, 2, 2\] bottleneck blocks"),
        ("resnet50d", "deep stem"),
        ("resnetrs50", "deep stem"),
        ("resnest14d", "deep stem"),
        ("seresnet50", "squeeze-and-excitation"),
        ("ecaresnetlight", "channel attention"),
        ("res2net50_26w_4s", "Res2Net"),
        ("resnet50_gn", "group norm"),
        ("skresnet18", "selective-kernel"),
        ("skresnext50_32x4d", "selective-kernel"),
        ("resnetv2_50", "pre-activation ResNet"),
        ("nf_resnet50", "normaliser-free ResNet"),
        ("resnet33ts", "ByobNet"),
        ("resnet50_clip", "ByobNet"),
        ("convnext_tiny", "ConvNeXt"),
        ("convnextv2_atto", "ConvNeXt"),
        ("vit_tiny_patch16_224", "vision transformer"),
        ("swin_tiny_patch4_window7_224", "Swin"),
        ("regnety_002", "RegNet"),
        ("densenet121", "DenseNet"),
        ("efficientnet_b0", "EfficientNet"),
    ],
)
def test_other_networks_of_timm_are_refused(tmp_path: Path, name: str, reason: str) -> None:
    with torch.device("meta"):  # initialising the weights would take longer than the rest of the test
        shapes = library("timm").create_model(name, pretrained=False).state_dict()
    torch.save(
        {key: torch.zeros(tensor.shape, dtype=tensor.dtype) for key, tensor in shapes.items()},
        tmp_path / "a.pth",
    )
    with pytest.raises(UserError, match=reason) as error:
        convert(tmp_path / "a.pth", tmp_path / "a.pkl", verify=False)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "a.pkl").exists()


def test_anti_aliased_networks_of_timm_are_refused_by_what_is_said_of_them(tmp_path: Path) -> None:
    timm = library("timm")
    state = timm.create_model("resnetblur50", pretrained=False).state_dict()
    assert state.keys() == timm.create_model("resnet50", pretrained=False).state_dict().keys()
    torch.save({"arch": "resnetblur50", "state_dict": state}, tmp_path / "checkpoint.pth")
    files = [
        tmp_path / "checkpoint.pth",
        save(tmp_path / "model.safetensors", state, architecture="resnetblur50"),
        save(tmp_path / "resnetblur50-84f4748f.pth", state),
    ]
    for path in files:
        with pytest.raises(UserError, match="anti-aliased") as error:
            read_source(path)
        assert "\n" not in str(error.value)


def hugging_face(
    tmp_path: Path, depth: int, *, head: bool = False, **settings: Any
) -> tuple[nn.Module, Path]:
    """Return a narrow ResNet of transformers and the file that transformers saved it to."""
    transformers = library("transformers")
    blocks, kind = {18: ([2, 2, 2, 2], "basic"), 50: ([3, 4, 6, 3], "bottleneck")}[depth]
    scale = 1 if kind == "basic" else 4
    stem = 64 if kind == "basic" else 16  # detectron2 cannot build narrow basic blocks
    config = transformers.ResNetConfig(
        embedding_size=stem,
        hidden_sizes=[scale * stem * 2**stage for stage in range(4)],
        depths=blocks,
        layer_type=kind,
        **settings,
    )
    maker = transformers.ResNetForImageClassification if head else transformers.ResNetModel
    network = randomise(maker(config)).eval()
    network.save_pretrained(tmp_path / "hub")
    return network, tmp_path / "hub" / "model.safetensors"


def by_torchvisions_names(network: nn.Module, name: str, stem: int) -> dict[str, torch.Tensor]:
    """Rename tensors by the tests' own table, which is independent of the converter's and goes the other way."""
    like = trunk(getattr(torchvision.models, name)().state_dict())
    back = dict(zip(transformers_names(like), like, strict=True))
    state = {key.removeprefix("resnet."): tensor for key, tensor in network.state_dict().items()}
    assert state["embedder.embedder.convolution.weight"].shape[0] == stem
    return {back[key]: tensor for key, tensor in state.items() if key in back}


@pytest.mark.parametrize(("depth", "head"), [(18, False), (18, True), (50, False), (50, True)])
def test_transformers(tmp_path: Path, depth: int, head: bool) -> None:
    network, path = hugging_face(tmp_path, depth, head=head)
    expected = by_torchvisions_names(network, f"resnet{depth}", 64 if depth == 18 else 16)
    record = convert_and_compare(path, expected, verify=depth == 50)
    assert (record["record"]["source"], record["preprocessing"]["MODEL.RESNETS.STRIDE_IN_1X1"]) == (
        "transformers",
        False,
    )
    assert ("classifier" in record["record"]["dropped"]) == head


@pytest.mark.parametrize("in_1x1", [False, True])
@torch.no_grad()
def test_detectron2_computes_the_features_of_transformers(tmp_path: Path, in_1x1: bool) -> None:
    network, path = hugging_face(tmp_path, 50, downsample_in_bottleneck=in_1x1)
    record = convert(path, tmp_path / "a.pkl")
    assert record["preprocessing"]["MODEL.RESNETS.STRIDE_IN_1X1"] is in_1x1
    torch.save(network.state_dict(), path.with_name("pytorch_model.bin"))  # as in older files on the hub
    assert read_source(path.with_name("pytorch_model.bin")).input.stride_in_1x1 is in_1x1
    expected = network.double()(IMAGE.double(), output_hidden_states=True).hidden_states
    assert_close(detectron2_features(tmp_path / "a.pkl", IMAGE), list(expected[1:]))


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"downsample_in_first_stage": True}, "stride in its first stage"),
        ({"hidden_act": "gelu"}, "activation gelu"),
    ],
)
def test_transformers_of_another_kind_are_refused(tmp_path: Path, settings: dict, reason: str) -> None:
    _, path = hugging_face(tmp_path, 50, **settings)
    with pytest.raises(UserError, match=reason):
        read_source(path)


class LightlyMoCo(nn.Module):
    """The module of lightly's tutorial."""

    def __init__(self, head: Any) -> None:
        super().__init__()
        self.backbone = nn.Sequential(*list(torchvision.models.resnet18().children())[:-1])
        self.projection_head = head(512, 512, 128)
        self.backbone_momentum = copy.deepcopy(self.backbone)
        self.projection_head_momentum = copy.deepcopy(self.projection_head)


def test_lightly(tmp_path: Path) -> None:
    head = library("lightly.models.modules").MoCoProjectionHead
    network = LightlyMoCo(head)
    randomise(network.backbone, 1)
    randomise(network.backbone_momentum, 2)
    reference = torchvision.models.resnet18()
    for child, ours in zip(list(reference.children())[:-1], network.backbone, strict=True):
        child.load_state_dict(ours.state_dict())
    torch.save({"epoch": 3, "state_dict": network.state_dict()}, tmp_path / "a.ckpt")
    record = convert_and_compare(tmp_path / "a.ckpt", trunk(reference.state_dict()))["record"]
    assert (record["source"], record["branch"]) == ("lightly", "backbone")
    assert record["passed_over"] == ["state_dict.backbone_momentum"]


def test_the_cifar_network_of_lightly_is_refused(tmp_path: Path) -> None:
    network = library("lightly.models").ResNetGenerator("resnet-18")
    torch.save(network.state_dict(), tmp_path / "a.pth")
    with pytest.raises(UserError, match="CIFAR stem"):
        read_source(tmp_path / "a.pth")
    # In nn.Sequential without its last layer, its stages have other indices than those of a torchvision ResNet.
    indexed = nn.Sequential(*list(network.children())[:-1])
    torch.save({f"backbone.{n}": t for n, t in indexed.state_dict().items()}, tmp_path / "b.pth")
    with pytest.raises(UserError, match="CIFAR stem"):
        read_source(tmp_path / "b.pth")


@pytest.mark.parametrize(
    ("name", "groups", "inner"),
    [("wide_resnet50_2", 1, 128), ("resnext50_32x4d", 32, 4)],
)
def test_torchvision(tmp_path: Path, name: str, groups: int, inner: int) -> None:
    state = randomise(getattr(torchvision.models, name)()).state_dict()
    record = convert_and_compare(save(tmp_path / "a.pth", state), trunk(state))
    settings = record["preprocessing"]
    assert settings["MODEL.RESNETS.NUM_GROUPS"] == groups
    assert settings["MODEL.RESNETS.WIDTH_PER_GROUP"] == inner
