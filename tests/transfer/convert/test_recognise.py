"""Recognising checkpoints: what is found, what happens to each tensor, and what is refused, with its name."""

import argparse
import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision.models import ResNet, resnet

from pretrain.common.errors import UserError
from pretrain.model.encoders import ARCHITECTURES
from tests.support.checkpoints import moco_file, moco_state, plain_file, small_network, torchvision_network
from transfer.convert import recognise
from transfer.convert.program.report import describe
from transfer.convert.recognise import read_source

SMALL = small_network().state_dict()
SMALLEST = small_network("resnet18").state_dict()
TRUNK = [name for name in SMALL if not name.startswith("fc.") and not name.endswith("num_batches_tracked")]


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_a_torchvision_file_is_the_network_without_its_classifier(tmp_path: Path, name: str) -> None:
    state = torchvision_network(name).state_dict()
    source = read_source(plain_file(tmp_path / "a.pth", state))
    batch_norms = {"resnet18": 20, "resnet50": 53}[name]
    assert (source.kind, source.branch) == ("torchvision", "")
    assert source.architecture == ARCHITECTURES[name]
    assert (
        len(source.backbone) == batch_norms * 5
    )  # each has a convolution, and a weight, bias, mean and variance
    assert source.dropped == {"fc": 2, "num_batches_tracked": batch_norms}
    assert all(torch.equal(source.backbone[key], state[key]) for key in source.backbone)
    assert source.digest == hashlib.sha256((tmp_path / "a.pth").read_bytes()).hexdigest()


@pytest.mark.parametrize(("head", "head_tensors"), [("linear", 2), ("mlp", 4)])
@pytest.mark.parametrize("wrapped", [True, False])
def test_a_moco_file_gives_its_query_encoder(
    tmp_path: Path, head: str, head_tensors: int, wrapped: bool
) -> None:
    source = read_source(moco_file(tmp_path / "a.pth.tar", SMALL, head=head, wrapped=wrapped))
    assert source.kind == "moco"
    assert source.branch == ("module.encoder_q" if wrapped else "encoder_q")
    assert source.epoch == 200
    assert all(torch.equal(source.backbone[name], SMALL[name]) for name in TRUNK)
    assert source.dropped == {
        "fc": head_tensors,
        "encoder_k": 318 + head_tensors,  # 53 convolutions and 53 x 5 tensors of batch norm
        "queue": 1,
        "queue_ptr": 1,
        "optimizer": 3,
        "num_batches_tracked": 53,
    }


def test_every_tensor_is_counted_once(tmp_path: Path) -> None:
    source = read_source(moco_file(tmp_path / "a.pth.tar", SMALL))
    total = len(moco_state(SMALL)) + 3  # the three are the optimizer's
    assert len(source.backbone) + sum(source.dropped.values()) == total


def test_end_to_end_and_stripped_files_are_moco_too(tmp_path: Path) -> None:
    without_queue = read_source(moco_file(tmp_path / "a.pth.tar", SMALL, queue=False))
    assert "queue" not in without_queue.dropped
    public = {name: tensor for name, tensor in moco_state(SMALL).items() if ".encoder_q." in name}
    source = read_source(plain_file(tmp_path / "b.pth.tar", {"state_dict": public}))
    assert source.kind == "moco"
    assert set(source.dropped) == {"fc", "num_batches_tracked"}


def test_missing_counters_and_half_precision_are_fine(tmp_path: Path) -> None:
    state = {name: SMALL[name].to(torch.bfloat16) for name in TRUNK}
    source = read_source(plain_file(tmp_path / "a.pth", state))
    assert all(tensor.dtype == torch.float32 for tensor in source.backbone.values())
    assert torch.equal(source.backbone["conv1.weight"], SMALL["conv1.weight"].bfloat16().float())


def test_objects_in_the_file_are_named_and_not_loaded(tmp_path: Path) -> None:
    torch.save({"state_dict": SMALL, "args": argparse.Namespace(lr=0.03)}, tmp_path / "a.pth")
    assert read_source(tmp_path / "a.pth").opaque == ("argparse.Namespace",)


@pytest.mark.parametrize(
    ("blocks", "groups", "base", "expected"),
    [
        ([3, 4, 6, 3], 32, 4, (50, 32, 4)),
        ([3, 4, 23, 3], 32, 8, (101, 32, 8)),
        ([3, 4, 6, 3], 1, 128, (50, 1, 128)),  # Wide ResNet-50-2
    ],
)
def test_groups_and_inner_widths_are_read_from_shapes(
    tmp_path: Path, blocks: list[int], groups: int, base: int, expected: tuple[int, int, int]
) -> None:
    network = ResNet(resnet.Bottleneck, blocks, groups=groups, width_per_group=base)
    found = read_source(plain_file(tmp_path / "a.pth", network.state_dict())).architecture
    assert (found.depth, found.groups, found.width_per_group) == expected
    assert found.blocks == tuple(blocks)


@pytest.mark.parametrize("width", [0.25, 1.5])
def test_widths_are_read_from_shapes(tmp_path: Path, width: float) -> None:
    state = small_network(width=width).state_dict()
    found = read_source(plain_file(tmp_path / "a.pth", state)).architecture
    assert (found.width, found.groups, found.width_per_group, found.depth) == (width, 1, 64 * width, 50)


def thin(stem: int, inner: list[int], outputs: list[int]) -> dict[str, torch.Tensor]:
    """A ResNet-50 whose stages have these widths, from its names and shapes alone."""
    state = {"conv1.weight": torch.ones(stem, 3, 7, 7)} | _norm("bn1", stem)
    before = stem
    for stage, count in enumerate([3, 4, 6, 3]):
        for block in range(count):
            place, middle, after = f"layer{stage + 1}.{block}", inner[stage], outputs[stage]
            shapes = {"1": (middle, before, 1, 1), "2": (middle, middle, 3, 3), "3": (after, middle, 1, 1)}
            for number, shape in shapes.items():
                state[f"{place}.conv{number}.weight"] = torch.ones(shape)
                state |= _norm(f"{place}.bn{number}", shape[0])
            if block == 0:
                state[f"{place}.downsample.0.weight"] = torch.ones(after, before, 1, 1)
                state |= _norm(f"{place}.downsample.1", after)
            before = after
    return state


def _norm(name: str, channels: int) -> dict[str, torch.Tensor]:
    parts = ("weight", "bias", "running_mean", "running_var")
    return {f"{name}.{part}": torch.ones(channels) for part in parts}


def test_stem_inner_and_output_channels_are_independent(tmp_path: Path) -> None:
    state = thin(5, [3, 6, 12, 24], [10, 20, 40, 80])
    found = read_source(plain_file(tmp_path / "a.pth", state))
    shape = found.architecture
    assert (shape.stem_channels, shape.width_per_group, shape.out_channels) == (5, 3, 10)
    assert found.backbone.keys() == state.keys() and len(state) == 265


@pytest.mark.parametrize(
    ("inner", "outputs", "words"),
    [
        ([8, 16, 30, 64], [16, 32, 64, 128], "layer3 has 30 inner channels; detectron2 builds only 32 there"),
        ([8, 8, 8, 8], [16, 32, 64, 128], "layer2 has 8 inner channels; detectron2 builds only 16 there"),
        (
            [8, 16, 32, 64],
            [16, 32, 64, 100],
            "layer4 has 100 output channels; detectron2 builds only 128 there",
        ),
    ],
)
def test_a_stage_that_does_not_double_is_named(
    tmp_path: Path, inner: list[int], outputs: list[int], words: str
) -> None:
    assert words in refusal(plain_file(tmp_path / "a.pth", thin(8, inner, outputs)))


def refusal(path: Path, **options: str) -> str:
    with pytest.raises(UserError) as error:
        read_source(path, **options)
    message = str(error.value)
    assert "\n" not in message
    return message


@pytest.fixture
def refusal_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, torch.Tensor]], str]:
    """Return a function like `refusal` for tensors; the file is read only once."""
    path = plain_file(tmp_path / "a.pth", SMALLEST)
    loaded = recognise.read_checkpoint(path)

    def refused(state: dict[str, torch.Tensor]) -> str:
        monkeypatch.setattr(
            recognise, "read_checkpoint", lambda _: replace(loaded, tensors=state, keys=tuple(state))
        )
        return refusal(path)

    return refused


def test_each_missing_tensor_is_named(refusal_of: Callable[[dict[str, torch.Tensor]], str]) -> None:
    for name in SMALLEST.keys() & TRUNK:
        assert name in refusal_of({key: tensor for key, tensor in SMALLEST.items() if key != name})


def test_each_misshaped_tensor_is_named(refusal_of: Callable[[dict[str, torch.Tensor]], str]) -> None:
    for name in SMALLEST.keys() & TRUNK:
        tensor = torch.cat([SMALLEST[name], SMALLEST[name][:1]])
        assert f"tensor {name} has shape" in refusal_of(SMALLEST | {name: tensor})


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["conv1.weight", "layer4.2.bn3.running_var"])
def test_numbers_that_are_not_finite_are_refused(tmp_path: Path, bad: float, name: str) -> None:
    spoilt = SMALL[name].clone()
    spoilt.view(-1)[-1] = bad
    assert f"tensor {name} holds NaN" in refusal(plain_file(tmp_path / "a.pth", SMALL | {name: spoilt}))


@pytest.mark.parametrize(
    "name", ["layer1.0.se.weight", "conv1.0.weight", "layer5.0.conv1.weight", "bn9.weight"]
)
def test_an_extra_tensor_in_the_backbone_is_named(tmp_path: Path, name: str) -> None:
    assert name in refusal(plain_file(tmp_path / "a.pth", SMALL | {name: torch.zeros(1)}))
    assert name in refusal(moco_file(tmp_path / "b.pth", SMALL | {name: torch.zeros(1)}))


def test_a_tensor_outside_the_backbone_is_dropped_and_counted(tmp_path: Path) -> None:
    state = moco_state(SMALL) | {"module.surprise.weight": torch.zeros(1)}
    assert read_source(plain_file(tmp_path / "a.pth", state)).dropped["surprise"] == 1


def test_only_a_head_is_called_that(tmp_path: Path) -> None:
    heads = {name: tensor for name, tensor in moco_state(SMALL).items() if ".encoder_q.fc." in name}
    message = refusal(plain_file(tmp_path / "a.pth", {"state_dict": heads}))
    assert "only a head" in message
    assert "module.encoder_q.fc.0.weight" in message


def test_other_networks_and_objects_are_refused_with_their_keys(tmp_path: Path) -> None:
    vit = {"cls_token": torch.zeros(1), "blocks.0.attn.qkv.weight": torch.zeros(2, 2)}
    assert "a vision transformer (ViT) (blocks.0.attn" in refusal(plain_file(tmp_path / "a.pth", vit))
    theirs = {"backbone.cls_token": torch.zeros(1), "backbone.layers.0.attn.qkv.weight": torch.zeros(2, 2)}
    assert "blocks are not named as timm" in refusal(plain_file(tmp_path / "a.pth", theirs))
    dinov3 = {
        "embeddings.cls_token": torch.zeros(1),
        "model.layer.0.attention.q_proj.weight": torch.zeros(2, 2),
    }
    assert "DINOv3's ViT" in refusal(plain_file(tmp_path / "a.pth", dinov3))
    clip = {"visual.transformer.resblocks.0.attn.in_proj_weight": torch.zeros(2, 2)}
    assert "CLIP's or SigLIP's" in refusal(plain_file(tmp_path / "a.pth", clip))
    torch.save(nn.Linear(2, 2), tmp_path / "b.pth")
    assert "state_dict()" in refusal(tmp_path / "b.pth")


def test_two_networks_without_a_rule_are_refused_with_the_choices(tmp_path: Path) -> None:
    other = {name: tensor + 1 for name, tensor in SMALL.items()}
    path = plain_file(tmp_path / "a.pth", {"first": SMALL, "second": other})
    assert "ambiguous" in refusal(path) and "first, second" in refusal(path)
    assert torch.equal(read_source(path, branch="second").backbone["bn1.bias"], other["bn1.bias"])
    assert "first, second" in refusal(path, branch="third")
    assert "--source torchvision" in refusal(moco_file(tmp_path / "c.pth", SMALL), source="torchvision")
    assert "--source nobody" in refusal(tmp_path / "c.pth", source="nobody")


def test_what_is_dropped_next_to_a_network_is_named(tmp_path: Path) -> None:
    """`state (4)` would say nothing: what it shares with the network's own prefix does not tell it apart."""
    trunk = {f"state.net.{name}": tensor for name, tensor in SMALL.items()}
    head = {f"state.projector.{n}.{leaf}": torch.ones(2, 2) for n in (0, 2) for leaf in ("weight", "bias")}
    path = plain_file(tmp_path / "a.pth", trunk | head)
    assert read_source(path).dropped == {"fc": 2, "state.projector": 4, "num_batches_tracked": 53}
    lines = describe(path)
    assert "dropped   fc (2), state.projector (4), num_batches_tracked (53)" in lines
    assert "head      state.projector: 2 -> 2, 2 -> 2" in lines


def test_one_network_under_any_prefix_is_taken(tmp_path: Path) -> None:
    prefixed = {f"trunk.net.{name}": tensor for name, tensor in SMALL.items()}
    source = read_source(plain_file(tmp_path / "a.pth", prefixed))
    assert (source.kind, source.branch, source.dropped["fc"]) == ("unknown", "trunk.net", 2)


def test_truncated_and_missing_files_are_refused(tmp_path: Path) -> None:
    path = moco_file(tmp_path / "a.pth", SMALL)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert "not a readable PyTorch checkpoint" in refusal(path)
    assert "no such file" in refusal(tmp_path / "none.pth")


def test_a_cifar_stem_and_an_unknown_depth_are_refused(tmp_path: Path) -> None:
    assert "tensor conv1.weight has shape" in refusal(
        plain_file(tmp_path / "a.pth", SMALL | {"conv1.weight": torch.zeros(8, 3, 3, 3)})
    )
    odd = ResNet(resnet.Bottleneck, [1, 1, 1, 1]).state_dict()
    assert "18, 34, 50, 101, 152" in refusal(plain_file(tmp_path / "b.pth", odd))
