"""Learning rates of every schedule, as lists in closed form."""

import math

import pytest

from pretrain import config
from pretrain.train.schedule import key_momentum, learning_rate

PER_EPOCH = 5004  # iterations of 256 in ImageNet's 1.28 M images


def rates(name: str, *overrides: str) -> list[float]:
    """The rate at the first iteration of each epoch."""
    solver = config.load(f"pretrain/{name}.yaml", overrides).SOLVER
    return [learning_rate(solver, epoch * PER_EPOCH, PER_EPOCH) for epoch in range(solver.MAX_EPOCH)]


@pytest.mark.parametrize(("name", "epochs"), [("moco_v2_R50", 200), ("moco_v2_R50_800ep", 800)])
def test_cosine(name: str, epochs: int) -> None:
    found = rates(name)
    assert len(found) == epochs and found[0] == 0.03 and found[epochs // 2] == pytest.approx(0.015)
    # cos(x) + 1 = 2 cos(x / 2) ** 2
    assert found == pytest.approx([0.03 * math.cos(math.pi * e / epochs / 2) ** 2 for e in range(epochs)])


def test_steps() -> None:
    assert rates("moco_v1_R50") == pytest.approx([0.03] * 120 + [0.003] * 40 + [0.0003] * 40)
    assert rates("moco_v1_R50", "SOLVER.STEPS", "[2]", "SOLVER.MAX_EPOCH", "4") == pytest.approx(
        [0.03, 0.03, 0.003, 0.003]
    )


def test_exponential_counts_iterations() -> None:
    """He et al. Sec. 4, IG-1B: x 0.9 after every 62.5k of the 1.25M iterations, 20 times; no part for epochs."""
    solver = config.load("pretrain/ig1b_style_R50.yaml").SOLVER
    assert (solver.MAX_ITER, solver.BASE_LR) == (1_250_000, 0.12)
    wanted = [0.12]
    while len(wanted) < 20:
        wanted.append(wanted[-1] * 0.9)
    for per_epoch in (7, 10_000_000):
        first = [learning_rate(solver, period * 62_500, per_epoch) for period in range(20)]
        last = [learning_rate(solver, period * 62_500 + 62_499, per_epoch) for period in range(20)]
        assert first == last == pytest.approx(wanted)
    # 1.35 % of the first rate in the end
    assert learning_rate(solver, 1_249_999, 1000) / 0.12 == pytest.approx(0.9**19)


def test_epochs_alone_move_cosine_and_steps() -> None:
    for name in ("moco_v1_R50", "moco_v2_R50"):
        solver = config.load(f"pretrain/{name}.yaml").SOLVER
        found = {learning_rate(solver, 130 * PER_EPOCH + step, PER_EPOCH) for step in (0, 1, PER_EPOCH - 1)}
        assert len(found) == 1


def test_warm_up_and_cosine_move_in_every_iteration() -> None:
    """MoCo v3's ViT: 40 epochs up to 2.4e-3, then half a cosine over 260 epochs; 312 iterations of 4096 in an epoch."""
    solver = config.load("pretrain/moco_v3_ViTB.yaml").SOLVER
    found = [learning_rate(solver, iteration, 312) for iteration in range(300 * 312)]
    assert found[0] == 0 and found[1] == pytest.approx(2.4e-3 / (40 * 312))
    assert found[20 * 312] == pytest.approx(1.2e-3) and max(found) == found[40 * 312] == 2.4e-3
    assert found[40 * 312 + 130 * 312] == pytest.approx(1.2e-3)
    rest = range(40 * 312, 300 * 312)
    wanted = [2.4e-3 * math.cos(math.pi / 2 * (i - 40 * 312) / (260 * 312)) ** 2 for i in rest]
    assert found[40 * 312 :] == pytest.approx(wanted)
    whole = config.load("pretrain/moco_v3_ViTB.yaml", ["SOLVER.MAX_EPOCH", "40"]).SOLVER
    assert [learning_rate(whole, i, 312) for i in range(0, 40 * 312, 999)] == found[: 40 * 312 : 999]


def test_momentum_rises_to_one_in_mocov3_alone() -> None:
    cfg = config.load("pretrain/moco_v3_R50_1000ep.yaml")
    found = [key_momentum(cfg, iteration, 312) for iteration in range(0, 1000 * 312 + 1, 312)]
    assert found[0] == pytest.approx(0.996) and found[500] == pytest.approx(0.998) and found[1000] == 1
    wanted = [1 - 0.004 * math.cos(math.pi / 2 * epoch / 1000) ** 2 for epoch in range(1001)]
    assert found == pytest.approx(wanted, rel=1e-12)
    v2 = config.load("pretrain/moco_v2_R50.yaml")
    assert {key_momentum(v2, iteration, 5004) for iteration in (0, 10_000, 1_000_000)} == {0.999}
