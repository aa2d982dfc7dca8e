"""The numeric verification of ViTs passes for correct files, and fails for each wrong tensor and setting."""

import dataclasses
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from pretrain.common.errors import UserError
from tests.support.checkpoints import State
from tests.support.vit.layouts import vit
from transfer.convert.program.networks import convert_any
from transfer.convert.verify import TOLERANCE
from transfer.convert.vit.recognise import VitSource, build_vit, read_vit
from transfer.convert.vit.verify import RESIZED, compare, load_vit, other_grid, verify


def converted(tmp_path: Path, state: State, **options: Any) -> tuple[VitSource, Path]:
    torch.save(state, tmp_path / "a.pth")
    convert_any(tmp_path / "a.pth", tmp_path / "a.pkl", verify=False, **options)
    return read_vit(tmp_path / "a.pth", heads=options.get("heads")), tmp_path / "a.pkl"


def edit(path: Path, change: Any) -> None:
    contents = pickle.loads(path.read_bytes())
    change(contents)
    path.write_bytes(pickle.dumps(contents, protocol=3))


@pytest.mark.parametrize(
    ("options", "limit"),
    [
        ({}, 1e-12),
        ({"class_position": False}, 1e-12),
        ({"registers": 3, "layer_scale": True}, 1e-5),  # products rounded to float32
        ({"grid": 14, "patch": 16, "depth": 5}, 1e-12),  # the recipes' windows
    ],
)
def test_right_files_pass(tmp_path: Path, options: dict[str, Any], limit: float) -> None:
    source, path = converted(tmp_path, vit(1, **options), heads=2)
    differences = verify(source, path)
    blocks = options.get("depth", 2)
    assert list(differences) == [*(f"block {number}" for number in range(blocks)), RESIZED]
    assert max(differences.values()) < limit


def test_the_source_network_is_that_of_a_written_out_loop(tmp_path: Path) -> None:
    """The reference of the comparison, without class token, against a computation from the tensors alone."""
    state = {name: tensor.double() for name, tensor in vit(1).items()}
    source, _ = converted(tmp_path, vit(1), heads=2)
    image = torch.randn(1, 3, 48, 48, dtype=torch.float64)
    x = functional.conv2d(image, state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], stride=16)
    x = x.flatten(2).transpose(1, 2)[0] + state["pos_embed"][0, 1:]

    def linear(name: str, inputs: torch.Tensor) -> torch.Tensor:
        return inputs @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    def norm(name: str, inputs: torch.Tensor) -> torch.Tensor:
        centred = inputs - inputs.mean(1, keepdim=True)
        scaled = centred / (centred.square().mean(1, keepdim=True) + 1e-6).sqrt()
        return scaled * state[f"{name}.weight"] + state[f"{name}.bias"]

    for block in ("blocks.0.", "blocks.1."):
        q, k, v = linear(f"{block}attn.qkv", norm(f"{block}norm1", x)).split(64, dim=1)
        heads = []
        for head in (slice(0, 32), slice(32, 64)):
            heads.append((q[:, head] @ k[:, head].T / 32**0.5).softmax(1) @ v[:, head])
        x = x + linear(f"{block}attn.proj", torch.cat(heads, dim=1))
        hidden = functional.gelu(linear(f"{block}mlp.fc1", norm(f"{block}norm2", x)))
        x = x + linear(f"{block}mlp.fc2", hidden)
    found = build_vit(source).double().tokens(image, extra=False)[-1]
    torch.testing.assert_close(found.flatten(1, 2)[0], x, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("scaled", [False, True])
def test_each_tensor_of_the_source_matters(tmp_path: Path, scaled: bool) -> None:
    """A change of one percent in any tensor is visible in the tokens after the blocks."""
    source, path = converted(tmp_path, vit(1, grid=2, layer_scale=scaled), heads=2)
    ignored = {"cls_token", "norm.weight", "norm.bias"}
    insensitive = []
    for name, tensor in source.backbone.items():
        if name in ignored:
            continue
        changed = dataclasses.replace(source, backbone=source.backbone | {name: tensor * 1.01})
        backbone, settings = load_vit(path, grid=2)
        if max(compare(changed, backbone, settings).values()) <= TOLERANCE:
            insensitive.append(name)
    assert insensitive == []
    assert len(source.backbone) == 4 + 12 * 2 + 2 + (4 if scaled else 0)


@pytest.mark.parametrize(
    "name", ["pos_embed", "patch_embed.proj.bias", "blocks.0.attn.qkv.weight", "blocks.1.mlp.fc2.bias"]
)
def test_a_wrong_tensor_in_the_file_is_named(tmp_path: Path, name: str) -> None:
    source, path = converted(tmp_path, vit(1), heads=2)
    edit(path, lambda contents: contents["model"][name].__imul__(1.02))
    with pytest.raises(
        UserError, match=rf"tokens differ .*tensor {name} differs from the source's \(1 such tensors\)"
    ):
        verify(source, path)


def test_what_no_token_shows_fails_too(tmp_path: Path) -> None:
    """The bias of the keys adds the same to all logits of a query; the class token's position is not used."""
    source, path = converted(tmp_path, vit(1), heads=2)
    edit(path, lambda contents: contents["model"]["blocks.0.attn.qkv.bias"][64:128].__iadd__(1))
    edit(path, lambda contents: contents["model"]["pos_embed"][:, 0].__iadd__(1))
    with pytest.raises(
        UserError, match=r"\(2 such tensors\), although the tokens agree|tensor pos_embed differs"
    ):
        verify(source, path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("INPUT.FORMAT", "BGR"),
        ("MODEL.PIXEL_MEAN", [127.5, 127.5, 127.5]),
        ("MODEL.PIXEL_STD", [58.14, 57.12, 57.375]),
        ("MODEL.VIT.HEADS", 4),
        ("MODEL.VIT.NORM_EPS", 1e-2),
    ],
)
def test_another_setting_fails(tmp_path: Path, key: str, value: Any) -> None:
    source, path = converted(tmp_path, vit(1), heads=2)
    edit(path, lambda contents: contents["preprocessing"].update({key: value}))
    with pytest.raises(UserError, match="verification failed: the tokens differ"):
        verify(source, path)


@pytest.mark.parametrize("fault", ["missing", "unexpected", "shape"])
def test_a_file_that_detectron2_does_not_place_whole_fails(tmp_path: Path, fault: str) -> None:
    source, path = converted(tmp_path, vit(1), heads=2)

    def change(contents: dict[str, Any]) -> None:
        tensor = contents["model"].pop("blocks.1.mlp.fc1.weight")
        if fault == "unexpected":
            contents["model"] |= {"blocks.1.mlp.fc1.weight": tensor, "blocks.2.mlp.fc1.weight": tensor}
        if fault == "shape":
            contents["model"]["blocks.1.mlp.fc1.weight"] = tensor[1:]

    edit(path, change)
    with pytest.raises(UserError, match="missing, unexpected or mis-shaped"):
        verify(source, path)


def test_a_dead_network_is_refused(tmp_path: Path) -> None:
    state = vit(1)
    for name in state:
        if name.endswith(("attn.proj.weight", "mlp.fc2.weight")):
            state[name] = state[name] * 0
    state["patch_embed.proj.weight"] = state["patch_embed.proj.weight"] * 1e-30
    source, path = converted(tmp_path, state, heads=2)
    with pytest.raises(UserError, match="tokens are the same for every image"):
        verify(source, path)


def test_the_memory_is_that_of_one_block_in_float64_and_the_weights_are_kept(tmp_path: Path) -> None:
    source, path = converted(tmp_path, vit(1), heads=2)
    backbone, settings = load_vit(path, grid=3)
    before = {name: tensor.data_ptr() for name, tensor in source.backbone.items()}
    compare(source, backbone, settings)
    assert {name: tensor.data_ptr() for name, tensor in source.backbone.items()} == before
    assert all(tensor.dtype == torch.float32 for tensor in backbone.state_dict().values())
    assert [other_grid(grid) for grid in (4, 14, 24, 28, 37)] == [8, 28, 36, 42, 28]
