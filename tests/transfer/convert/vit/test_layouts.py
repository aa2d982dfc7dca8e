"""A file of each known layout with a ViT yields the intended network, and every tensor is accounted for."""

from pathlib import Path
from typing import Any

import pytest
import torch

from pretrain.common.errors import UserError
from pretrain.tensor_files.read_any import read_file
from tests.support.checkpoints import State
from tests.support.layouts import mlp, under
from tests.support.vit.layouts import (
    DEPTH,
    FILES,
    GRID,
    HIDDEN,
    NOT_IN_DETECTORS,
    WIDTH,
    chunked,
    transformers_names,
    vit,
)
from transfer.convert.program.networks import read_any
from transfer.convert.vit.kinds import KINDS
from transfer.convert.vit.recognise import VitSource, read_vit

QUERY, KEY = vit(1), vit(2)


def read(folder: Path, contents: Any, **options: Any) -> VitSource:
    torch.save(contents, folder / "a.pth")
    return read_vit(folder / "a.pth", **options)


def assert_is(source: VitSource, expected: State) -> None:
    assert source.backbone.keys() == expected.keys()
    assert all(torch.equal(source.backbone[name], expected[name]) for name in expected)


@pytest.mark.parametrize("name", FILES)
def test_the_network_that_is_meant_is_taken_and_every_tensor_accounted_for(tmp_path: Path, name: str) -> None:
    kind, make = FILES[name]
    torch.save(make(QUERY, KEY), tmp_path / "a.pth")
    source = read_any(tmp_path / "a.pth")
    assert isinstance(source, VitSource) and source.kind == kind
    without = NOT_IN_DETECTORS if kind == "detectron2" else ()
    assert_is(source, {name: tensor for name, tensor in QUERY.items() if name not in without})
    shape = source.shape
    assert (shape.width, shape.depth, shape.hidden, shape.grid) == (WIDTH, DEPTH, HIDDEN, GRID)
    assert (shape.heads, shape.patch_size, shape.class_position) == (1, 16, True)
    joined = 4 * DEPTH if source.fused else 0  # three weights and three biases became one of each
    used = len(source.backbone) + joined
    assert len(read_file(tmp_path / "a.pth").tensors) == used + sum(source.dropped.values())


def test_every_entry_of_the_table_has_a_fixture() -> None:
    assert {kind for kind, _ in FILES.values()} - {"unknown"} == set(KINDS) - {"lightly"}  # as for ResNets


@pytest.mark.parametrize(
    ("name", "branch"),
    [("vit: moco v3", "momentum_encoder"), ("vit: dino full", "student"), ("vit: solo", "momentum_backbone")],
)
def test_the_other_network_is_taken_on_request(tmp_path: Path, name: str, branch: str) -> None:
    assert_is(read(tmp_path, FILES[name][1](QUERY, KEY), branch=branch), KEY)


def test_a_network_that_its_kind_passes_over_is_not_taken_alone(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"its only ViT, at momentum_encoder, is not the one to take"):
        read(tmp_path, under("momentum_encoder.", KEY))
    with pytest.raises(UserError, match=r"ambiguous: its ViTs, at a, b, are not where"):
        read(tmp_path, under("a.", QUERY) | under("b.", KEY))


@pytest.mark.parametrize("dino", [False, True])
def test_layer_scale_and_registers_under_all_names(tmp_path: Path, dino: bool) -> None:
    state = vit(3, layer_scale=True, registers=4)
    if dino:
        source = read(tmp_path, transformers_names(state, dino=True))
    else:  # DINOv2's own names
        contents = {**chunked(state), "mask_token": torch.zeros(1, WIDTH)}
        contents["register_tokens"] = contents.pop("reg_token")
        source = read(tmp_path, contents)
    assert_is(source, state)
    assert source.shape.layer_scale and source.shape.registers == 4 and source.shape.eps == 1e-6


def test_deit_iii_and_positions_without_the_class_token(tmp_path: Path) -> None:
    state = vit(3, layer_scale=True, class_position=False)
    source = read(
        tmp_path, {n.replace(".ls1.gamma", ".gamma_1").replace(".ls2.gamma", ".gamma_2"): t for n, t in state.items()}
    )  # fmt: skip
    assert_is(source, state)
    assert not source.shape.class_position


def test_positions_of_registers_move_into_the_registers(tmp_path: Path) -> None:
    state = vit(3, registers=2)
    extra = torch.randn(1, 2, WIDTH)
    table = torch.cat([state["pos_embed"][:, :1], extra, state["pos_embed"][:, 1:]], dim=1)
    source = read(tmp_path, state | {"pos_embed": table})
    assert_is(source, state | {"reg_token": state["reg_token"] + extra})


def test_the_number_of_heads_comes_from_the_kind_or_a_flag(tmp_path: Path) -> None:
    small = vit(3, width=384, depth=1, hidden=8, grid=1, patch=1)
    assert read(tmp_path, {"state_dict": under("module.base_encoder.", small)}).shape.heads == 12
    assert read(tmp_path, small).shape.heads == 6
    # MoCo v3's alone: its table of sines and cosines has zeros for the class token.
    alone = small | {"pos_embed": small["pos_embed"] * torch.tensor([0.0, 1.0]).view(1, 2, 1)}
    with pytest.raises(UserError, match=r"number of heads cannot be known.*add --heads 12 or --heads 6"):
        read(tmp_path, alone)
    assert read(tmp_path, alone, heads=12).shape.heads == 12
    # MAE-Lite's and solo-learn's networks have 12 heads at a width of 192, too, where DeiT's have 3.
    tiny = vit(3, width=192, depth=1, hidden=8, grid=1, patch=1)
    assert read(tmp_path, tiny).shape.heads == 3
    tiny["pos_embed"][:, 0] = 0
    decoder = {"decoder_blocks.0.norm1.weight": torch.ones(8), "mask_token": torch.zeros(1, 1, 8)}
    for contents in (tiny, {"model": under("module.model.", tiny)}, {"model": tiny | decoder}):
        with pytest.raises(UserError, match=r"a width of 192 .*MAE-Lite.*add --heads 12 or --heads 3"):
            read(tmp_path, contents)
    solo = read(
        tmp_path, {"state_dict": under("backbone.", tiny) | {"classifier.weight": torch.ones(2, 192)}}
    )
    assert (solo.kind, solo.shape.heads) == ("solo", 12)
    huge = vit(3, width=1280, depth=1, hidden=8, grid=1, patch=1)
    assert read(tmp_path, huge).shape.heads == 16
    odd = vit(3, width=48)
    with pytest.raises(UserError, match=r"its width, 48, is not a multiple of 64: give it with --heads N"):
        read(tmp_path, odd)
    with pytest.raises(UserError, match="7 heads do not divide the width of 48"):
        read(tmp_path, odd, heads=7)
    assert "as --heads says" in read(tmp_path, odd, heads=3).heads_origin


def test_files_of_our_own_pre_training_state_their_heads_and_input(tmp_path: Path) -> None:
    config = "INPUT: {MEAN: [0.5, 0.5, 0.5], STD: [0.2, 0.2, 0.2]}\nMODEL: {ARCH: vit, VIT: {HEADS: 4}}\n"
    state = under("module.base_encoder.", QUERY) | under("module.momentum_encoder.", KEY)
    source = read(tmp_path, {"state_dict": state, "config": config, "iterations_per_epoch": 3, "epoch": 1})
    assert (source.kind, source.shape.heads, source.heads_origin) == ("mocov3", 4, "as its config states")
    assert source.input.mean == (127.5,) * 3 and source.input_origin == "as its config states"
    for damaged in ("MODEL: [", "MODEL: {VIT: {HEADS: many}}"):
        with pytest.raises(UserError, match="its `config` is damaged"):
            read(tmp_path, {"state_dict": state, "config": damaged, "iterations_per_epoch": 3})


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"storage_tokens": torch.zeros(1, 4, WIDTH)}, r"DINOv3's ViT \(storage_tokens\).*rotary \(RoPE\)"),
        ({"blocks.0.attn.qkv.bias_mask": torch.zeros(192)}, r"DINOv3's ViT .*RoPE"),
        ({"rope.freqs": torch.zeros(4)}, r"rotary \(RoPE\)"),
        ({"freqs": torch.zeros(2, 12, 32)}, r"a ViT with freqs: .*rotary \(RoPE\)"),
        ({"blocks.0.mlp.w12.weight": torch.zeros(4, WIDTH)}, r"gated MLPs \(SwiGLU, blocks\.0\.mlp\.w12\.weight\)"),
        ({"blocks.0.attn.relative_position_bias_table": torch.zeros(9, 1)}, "relative position biases"),
        ({"blocks.0.attn.q_norm.weight": torch.zeros(64)}, r"further norms"),
        ({"blocks.1.attn.rel_pos_h": torch.ones(5, 64)}, "trained relative positions"),
        ({"norm_pre.weight": torch.zeros(WIDTH)}, "a norm before its blocks"),
        ({"patch_embed.proj.0.weight": torch.zeros(8, 3, 3, 3)}, "patch embedding is not one convolution"),
        ({"blocks.0.conv.weight": torch.zeros(3)}, r"blocks\.0\.conv\.weight has no place in a plain ViT"),
        ({"pos_embed": torch.zeros(1, 12, WIDTH)}, r"pos_embed has shape \(1, 12, 64\)"),
        ({"pos_embed": torch.zeros(1, 1 + 200**2, WIDTH)}, "1 heads over 200 x 200 positions"),
        ({"pos_embed": None}, "without tensor pos_embed"),
        ({"patch_embed.proj.weight": None}, r"patch_embed\.proj\.weight of 4 dimensions"),
        ({"patch_embed.proj.weight": torch.zeros(WIDTH, 4, 16, 16)}, "takes 4 input channels"),
        ({"patch_embed.proj.weight": torch.zeros(WIDTH, 3, 2, 16, 16)}, "a ViT for videos"),
        ({"patch_embed.proj.weight": torch.zeros(WIDTH, 3, 16, 8)}, "square patches"),
        ({"patch_embed.proj.weight": torch.zeros(WIDTH, 3, 16, 16)}, "holds only zeros"),
        ({"blocks.1.mlp.fc2.bias": None}, r"a ViT without tensor blocks\.1\.mlp\.fc2\.bias \(1 missing\)"),
        ({"blocks.1.attn.proj.bias": torch.zeros(WIDTH).half() / 0}, r"attn\.proj\.bias holds NaN"),
        ({"blocks.1.norm1.bias": torch.zeros(WIDTH + 1)}, r"blocks\.1\.norm1\.bias has shape \(65,\), not \(64,\)"),
        ({"blocks.0.norm1.bias": torch.zeros(WIDTH, dtype=torch.int64)}, r"holds torch\.int64"),
        ({"blocks.0.attn.qkv.weight": torch.zeros(192, WIDTH, dtype=torch.int8)}, "the file is quantised"),
    ],
)  # fmt: skip
def test_other_transformers_and_damaged_ones_are_refused(tmp_path: Path, change: Any, reason: str) -> None:
    state = {name: tensor for name, tensor in (QUERY | change).items() if tensor is not None}
    with pytest.raises(UserError, match=reason):
        read(tmp_path, state)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        (
            "vit_base_patch16_rope_ape_224",
            r"rotary positions \(its (name|`arch`) contains vit_base_patch16_rope\)",
        ),
        ("rope_axial_ape_deit_base_patch16_LS", "rotary positions"),
        ("vit_base_patch16_rpn_224-sw-3b07e89d", "norms after its residual branches"),
        ("vit_europe", ""),
        ("vit_rpnet", ""),
    ],
)
def test_networks_with_a_plain_vits_tensors_are_known_by_name(tmp_path: Path, name: str, reason: str) -> None:
    torch.save(QUERY, tmp_path / f"{name}.pth")
    torch.save({"arch": name, "state_dict": QUERY}, tmp_path / "a.pth")
    for path in (tmp_path / f"{name}.pth", tmp_path / "a.pth"):
        if not reason:
            assert_is(read_vit(path), QUERY)
            continue
        with pytest.raises(UserError, match=reason):
            read_vit(path)


def test_flags_without_an_effect_are_refused(tmp_path: Path) -> None:
    torch.save(QUERY, tmp_path / "a.pth")
    torch.save(mlp("", "fc"), tmp_path / "b.pth")
    for options, reason in (
        ({"keep": ("fpn",)}, "--keep has no effect on a ViT"),
        ({"merged_norm": True}, "--merged-norm has no effect on a ViT"),
        ({"given": {"stride_in_1x1": True}}, "--stride-in-1x1 has no effect on a ViT"),
        ({"source": "moco"}, "it holds a ViT; choose auto, mocov3"),
    ):
        with pytest.raises(UserError, match=reason):
            read_any(tmp_path / "a.pth", **options)
    for heads in (3, 0):
        with pytest.raises(UserError, match="--heads has no effect on a ResNet"):
            read_any(tmp_path / "b.pth", heads=heads)
