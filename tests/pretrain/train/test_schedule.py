"""Learning rates of every schedule, as lists in closed form."""

import math

import pytest

from pretrain import config
from pretrain.train.schedule import learning_rate

PER_EPOCH = 5004  # iterations of 256 in ImageNet's 1.28 M images


def rates(name: str, *overrides: str) -> list[float]:
    """The rate at the first iteration of each epoch."""
    solver = config.load(f"pretrain/{name}.yaml", overrides).SOLVER
    return [learning_rate(solver, epoch, epoch * PER_EPOCH) for epoch in range(solver.MAX_EPOCH)]


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
    for epoch in (0, 7):
        first = [learning_rate(solver, epoch, period * 62_500) for period in range(20)]
        last = [learning_rate(solver, epoch, period * 62_500 + 62_499) for period in range(20)]
        assert first == last == pytest.approx(wanted)
    # 1.35 % of the first rate in the end
    assert learning_rate(solver, 0, 1_249_999) / 0.12 == pytest.approx(0.9**19)


def test_epochs_alone_move_cosine_and_steps() -> None:
    for name in ("moco_v1_R50", "moco_v2_R50"):
        solver = config.load(f"pretrain/{name}.yaml").SOLVER
        assert (
            len({learning_rate(solver, 130, 130 * PER_EPOCH + step) for step in (0, 1, PER_EPOCH - 1)}) == 1
        )
