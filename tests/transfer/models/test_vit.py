"""The ViT for detection against loops, closed forms, and numbers that detectron2's main branch gives too."""

import sys
from types import ModuleType

import numpy as np
import pytest
import torch
from detectron2.layers import get_norm
from detectron2.modeling import build_model
from torch import nn

from pretrain.common.errors import UserError
from tests.support.vit import tiny
from transfer.config.load import load_config
from transfer.models import build, channel_norm, vit

# Means and root mean squares; test_vit_parity.py compares detectron2's own backbone with the same numbers.
FIXTURE = {
    "p2": [0.00635455463772, 0.0944835382478],
    "p3": [-0.0335230760232, 0.104755371772],
    "p4": [-0.0316723273239, 0.133385010211],
    "p5": [-0.030840780528, 0.167402485594],
    "p6": [-0.0323087036513, 0.178817206324],
    "net.pos_embed": [-0.0132834185897, 0.351990414941],
    "net.blocks.0.attn.rel_pos_h": [-3.42443320104e-19, 0.000319746267873],
    "net.blocks.1.attn.rel_pos_w": [1.79609486316e-20, 7.43637641695e-06],
    "net.blocks.2.mlp.fc1.weight": [0.00016138394404, 0.0970675585693],
}
DEMO = "transfer/demo_ViT_SFP.yaml"


def test_numbers_that_detectron2_gives_too() -> None:
    model = tiny.pyramid().eval()
    tiny.fill(model)
    found = tiny.numbers(model, tiny.images())
    assert found.keys() == FIXTURE.keys()
    for name, pair in FIXTURE.items():
        assert found[name] == pytest.approx(pair, rel=1e-6, abs=1e-9), name


def attention_by_loops(layer: vit.Attention, x: torch.Tensor, side: int) -> torch.Tensor:
    """Attention over one map (side, side, width), token by token, with relative positions."""
    places = [(i, j) for i in range(side) for j in range(side)]
    size = x.shape[2] // layer.heads
    output = torch.zeros_like(x)
    for head in range(layer.heads):
        q, k, v = (
            {
                (i, j): layer.qkv.weight[part * x.shape[2] + head * size :][:size] @ x[i, j]
                + layer.qkv.bias[part * x.shape[2] + head * size :][:size]
                for i, j in places
            }
            for part in range(3)
        )
        for i, j in places:
            logits = torch.stack(
                [
                    q[i, j] @ k[m, n] / size**0.5
                    + q[i, j] @ layer.rel_pos_h[i - m + side - 1]
                    + q[i, j] @ layer.rel_pos_w[j - n + side - 1]
                    for m, n in places
                ]
            )
            weights = torch.exp(logits) / torch.exp(logits).sum()
            mixed = sum(weight * v[place] for weight, place in zip(weights, places, strict=True))
            output[i, j, head * size : (head + 1) * size] = mixed
    return torch.stack([layer.proj(row) for row in output])


def test_attention_in_windows_is_that_of_loops() -> None:
    """A map of 3 x 5 in windows of 2 x 2: six windows, the last ones padded with zeros."""
    torch.manual_seed(0)
    block = vit.Block(8, 2, 8, window=2, table_side=2, drop_path=0.0, eps=1e-6).double()
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.5)
    x = torch.randn(1, 3, 5, 8, dtype=torch.float64)
    padded = torch.zeros(4, 6, 8, dtype=torch.float64)
    padded[:3, :5] = block.norm1(x[0])
    expected = torch.zeros_like(padded)
    for top in (0, 2):
        for left in (0, 2, 4):
            window = padded[top : top + 2, left : left + 2]
            expected[top : top + 2, left : left + 2] = attention_by_loops(block.attn, window, 2)
    after = x[0] + expected[:3, :5]
    after = after + block.mlp(block.norm2(after))
    assert torch.allclose(block(x)[0], after, rtol=1e-12, atol=1e-12)


def test_relative_positions_of_another_size_are_interpolated() -> None:
    table = torch.tensor([[0.0], [3.0], [1.0], [7.0], [2.0]])  # for 3 positions
    places = (np.arange(7) + 0.5) * 5 / 7 - 0.5  # of the 7 distances of 4 positions, in the table
    longer = np.interp(places, np.arange(5), table[:, 0])
    found = vit.relative_positions(table, 4)[..., 0]
    for i in range(4):
        for k in range(4):
            assert found[i, k].item() == pytest.approx(longer[i - k + 3], abs=1e-6)


def cubic(values: np.ndarray, place: float) -> float:
    """Cubic convolution (Keys 1981) with PyTorch's parameter -0.75; the border values are repeated."""
    total = 0.0
    for neighbour in range(int(np.floor(place)) - 1, int(np.floor(place)) + 3):
        d = abs(place - neighbour)
        near, far = 1.25 * d**3 - 2.25 * d**2 + 1, -0.75 * (d**3 - 5 * d**2 + 8 * d - 4)
        total += (near if d <= 1 else far) * values[np.clip(neighbour, 0, len(values) - 1)]
    return total


def test_absolute_positions() -> None:
    """The class token's position is left out; a table that depends on the row alone is interpolated along rows."""
    values = np.random.default_rng(0).normal(size=6)
    rows = torch.tensor(values)[:, None].expand(6, 6).reshape(1, 36, 1)
    table = torch.cat([torch.full((1, 1, 1), 99.0, dtype=rows.dtype), rows], dim=1)
    assert vit.absolute_positions(table, (6, 6), class_position=True).flatten().equal(rows.flatten())
    found = vit.absolute_positions(table, (12, 9), class_position=True)[0, ..., 0]
    assert found.shape == (12, 9)
    expected = torch.tensor([cubic(values, (row + 0.5) / 2 - 0.5) for row in range(12)])
    assert torch.allclose(found, expected[:, None].expand(12, 9), atol=1e-12)
    assert vit.absolute_positions(rows, (6, 6), class_position=False).shape == (1, 6, 6, 1)


def test_a_dropped_branch_is_dropped_for_whole_images() -> None:
    block = vit.Block(8, 2, 8, window=0, table_side=None, drop_path=0.25, eps=1e-6)
    branch = torch.ones(400, 2, 2, 8)
    torch.manual_seed(0)
    found = block._drop_path(branch).flatten(1)
    assert (found == found[:, :1]).all()
    assert sorted(set(found[:, 0].tolist())) == pytest.approx([0, 4 / 3])
    assert 0.18 < (found[:, 0] == 0).float().mean() < 0.32
    assert block.eval()._drop_path(branch).equal(branch)
    rates = [each.drop for each in tiny.pyramid(drop_path=0.5).net.blocks]
    assert rates == pytest.approx([0, 0.25, 0.5])


def test_checkpointing_changes_no_gradient() -> None:
    found = []
    for again in (False, True):
        model = tiny.pyramid(checkpoint_blocks=again, drop_path=0.5)
        tiny.fill(model)
        torch.manual_seed(0)
        found.append(tiny.numbers(model, tiny.images()))
    assert found[0].keys() == found[1].keys()
    for name, pair in found[0].items():
        assert found[1][name] == pytest.approx(pair, rel=1e-12, abs=1e-12)


def test_relative_positions_begin_at_zero_and_change_nothing_then() -> None:
    torch.manual_seed(0)
    model = tiny.pyramid().eval()
    without = tiny.pyramid(relative_positions=False).eval()
    missing = without.load_state_dict(model.state_dict(), strict=False)
    assert all(".rel_pos_" in name for name in missing.unexpected_keys) and not missing.missing_keys
    assert all(p.abs().sum() == 0 for name, p in model.named_parameters() if ".rel_pos_" in name)
    for name, each in model(tiny.images()).items():
        assert torch.allclose(each, without(tiny.images())[name], atol=1e-12)


def test_layer_norm_over_channels() -> None:
    layer = get_norm("LN", 6)
    maps = torch.randn(2, 6, 3, 4)
    nn.init.normal_(layer.weight)
    nn.init.normal_(layer.bias)
    usual = nn.LayerNorm(6, eps=1e-6)
    usual.load_state_dict(layer.state_dict())
    expected = usual(maps.movedim(1, 3)).movedim(3, 1)
    assert torch.allclose(layer(maps), expected, atol=1e-5)
    assert layer(maps[:0]).shape == (0, 6, 3, 4)  # a head without proposals
    assert get_norm("", 6) is None and isinstance(get_norm("GN", 32), nn.GroupNorm)


def test_the_norm_is_added_next_to_blocked_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    """`sys.modules` has None for a module that must not be imported."""
    monkeypatch.setitem(sys.modules, "a_blocked_module", None)
    norms = {"BN": nn.BatchNorm2d}
    old = ModuleType("old")
    old.get_norm = lambda norm, channels: norms[norm](channels)
    channel_norm.add_to_detectron2(old)
    assert isinstance(old.get_norm("LN", 4), channel_norm.ChannelNorm)
    assert isinstance(old.get_norm("BN", 4), nn.BatchNorm2d)


@pytest.fixture(scope="module")
def demo():
    cfg = load_config(DEMO, ["MODEL.INIT", "random", "MODEL.DEVICE", "cpu", "SOLVER.LR_DECAY", "0.7",
                             "SOLVER.BACKBONE_LR_FACTOR", "0.5"])  # fmt: skip
    return cfg, build_model(cfg)


def test_images_are_padded_to_squares(demo) -> None:
    cfg, model = demo
    for sizes in ([(100, 60)], [(64, 96), (192, 20)]):
        batch = [{"image": torch.zeros(3, *size, dtype=torch.uint8)} for size in sizes]
        assert model.preprocess_image(batch).tensor.shape[2:] == (cfg.MODEL.VIT.IMAGE_SIZE,) * 2


def test_every_parameter_has_the_rate_and_the_decay_of_its_kind(demo) -> None:
    """Six blocks: the last is one step below the heads, patch embedding and positions are seven. Norms do not decay."""
    cfg, model = demo
    groups = build.build_optimizer(cfg, model).param_groups
    found = {id(p): (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}
    norm = {id(p) for m in model.modules() if isinstance(m, nn.LayerNorm) for p in m.parameters()}
    assert len(norm) == 6 * 2 * 2
    for name, parameter in model.named_parameters():
        steps = 0
        if name.startswith("backbone.net."):
            part = name.split(".")[2:]
            steps = 6 - int(part[1]) if part[0] == "blocks" else 7
        rate = 0.001 * (0.5 * 0.7**steps if steps else 1)
        decay = 0.0 if id(parameter) in norm or name == "backbone.net.pos_embed" else 0.05
        assert found.pop(id(parameter)) == pytest.approx((rate, decay)), name
    assert not found and groups[0]["lr"] == 0.001


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("MODEL.VIT.HEADS", "7", "192 channels"),
        ("MODEL.VIT.PATCH_SIZE", "14", "power of two"),
        ("MODEL.VIT.PRETRAIN_SIZE", "60", "multiple of MODEL.VIT.PATCH_SIZE 16"),
        ("MODEL.VIT.IMAGE_SIZE", "200", "multiple of 32"),
        ("MODEL.VIT.IMAGE_SIZE", "160", "INPUT.MAX_SIZE_TRAIN 192"),
        ("MODEL.VIT.GLOBAL_BLOCKS", "(2, 6)", "from 0 to 5"),
        ("MODEL.VIT.DROP_PATH", "1.0", "below 1"),
        ("MODEL.VIT.DEPTH", "0", "give 1 or more"),
        ("MODEL.BACKBONE.FREEZE_AT", "5", "only ResNets can be frozen"),
        ("INPUT.MAX_SIZE_TEST", "256", "MODEL.VIT.IMAGE_SIZE 192"),
        ("MODEL.VIT.WIDTH", "3", "give 4 or more"),
        ("MODEL.VIT.MLP_RATIO", "0", "above 0"),
        ("MODEL.VIT.NORM_EPS", "-1e-6", "above 0"),
        ("MODEL.VIT.PATCH_SIZE", "8", r"RPN\.IN_FEATURES .*the pyramid has p1, p2, p3, p4, p5"),
        ("MODEL.ROI_HEADS.IN_FEATURES", "['res4']", r"ROI_HEADS\.IN_FEATURES \['res4'\]"),
        ("MODEL.ROI_HEADS.NAME", "Res5ROIHeadsExtraNorm", "base_rcnn_vit"),
        ("MODEL.META_ARCHITECTURE", "RetinaNet", r"RETINANET\.IN_FEATURES"),
    ],
)
def test_impossible_values_are_refused(key: str, value: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        load_config(DEMO, ["MODEL.INIT", "random", key, value])
