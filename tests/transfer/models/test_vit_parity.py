"""Our ViT and feature pyramid against those of detectron2's main branch: outputs, gradients, learning rates.

v0.6 has none, so this runs only with a checkout of main (`make test-d2-main`).
"""

import sys
from functools import partial
from types import ModuleType

import pytest
import torch
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from torch import nn

from tests.support.vit import tiny
from tests.transfer.models.test_vit import FIXTURE
from transfer.config.load import load_config
from transfer.models.learning_rates import factor, steps_below

theirs = pytest.importorskip("detectron2.modeling.backbone.vit")


class DropPath(nn.Module):
    """Stands for timm's: skips whole samples, and scales the others."""

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return x
        kept = x.new_empty(len(x), *[1] * (x.ndim - 1)).bernoulli_(1 - self.probability)
        return x * kept / (1 - self.probability)


class Mlp(nn.Module):
    """Stands for timm's."""

    def __init__(self, in_features: int, hidden_features: int, act_layer: type[nn.Module]) -> None:
        super().__init__()
        self.fc1, self.act = nn.Linear(in_features, hidden_features), act_layer()
        self.fc2 = nn.Linear(hidden_features, in_features)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.act(self.fc1(x)))


@pytest.fixture
def pyramid(monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    """detectron2's; where timm is not installed, the two layers above stand for its."""
    try:
        import timm.models.layers  # noqa: F401
    except ImportError:
        layers = ModuleType("timm.models.layers")
        layers.DropPath, layers.Mlp = DropPath, Mlp
        for name in ("timm", "timm.models"):
            monkeypatch.setitem(sys.modules, name, ModuleType(name))
        monkeypatch.setitem(sys.modules, "timm.models.layers", layers)
    net = theirs.ViT(
        img_size=tiny.IMAGE_SIZE,
        embed_dim=tiny.SHAPE["width"],
        depth=tiny.SHAPE["depth"],
        num_heads=tiny.SHAPE["heads"],
        drop_path_rate=0.5,
        norm_layer=partial(nn.LayerNorm, eps=tiny.EPS),
        use_rel_pos=True,
        window_size=tiny.WINDOW,
        window_block_indexes=[0, 2],
        pretrain_img_size=tiny.PRETRAIN_SIZE,
        out_feature="last_feat",
    )
    model: nn.Module = theirs.SimpleFeaturePyramid(
        net,
        "last_feat",
        tiny.CHANNELS,
        (4.0, 2.0, 1.0, 0.5),
        top_block=LastLevelMaxPool(),
        norm="LN",
        square_pad=tiny.IMAGE_SIZE,
    ).double()
    tiny.fill(model)
    return model


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("size", [(96, 96), (64, 128)])  # the second interpolates relative positions
def test_outputs_and_gradients(pyramid: nn.Module, size: tuple[int, int], training: bool) -> None:
    ours = tiny.pyramid(drop_path=0.5)
    ours.load_state_dict(pyramid.state_dict())
    found = []
    for model in (ours, pyramid):
        model.train(training)
        torch.manual_seed(1)  # drop path
        maps = model(tiny.images(*size))
        sum((each**2).sum() for each in maps.values()).backward()
        found.append({**maps, **{name: parameter.grad for name, parameter in model.named_parameters()}})
    assert found[0].keys() == found[1].keys()
    for name, value in found[0].items():
        assert torch.allclose(value, found[1][name], rtol=0, atol=1e-6 * found[1][name].abs().max().item()), (
            name
        )
    assert ours.output_shape() == pyramid.output_shape()


def test_the_fixture_is_that_of_detectron2(pyramid: nn.Module) -> None:
    found = tiny.numbers(pyramid.eval(), tiny.images())
    assert found.keys() == FIXTURE.keys()
    for name, pair in FIXTURE.items():
        assert found[name] == pytest.approx(pair, rel=1e-6, abs=1e-9), name


def test_rates_are_those_of_its_rule(pyramid: nn.Module) -> None:
    overrides = ["MODEL.INIT", "random", "MODEL.VIT.DEPTH", "3", "MODEL.VIT.GLOBAL_BLOCKS", "(2,)"]
    cfg = load_config("transfer/coco_ViTB_SFP_25ep.yaml", overrides)
    names = [f"backbone.{name}" for name, _ in pyramid.named_parameters()] + ["roi_heads.box_head.fc1.weight"]
    for name in names:
        expected = theirs.get_vit_lr_decay_rate(name, lr_decay_rate=0.7, num_layers=3)
        assert factor(cfg, steps_below(name, 3)) == pytest.approx(expected)
