"""Learning rates in closed form."""

import math

import pytest

from pretrain import config
from pretrain.schedule import learning_rate


def test_cosine() -> None:
    solver = config.load("pretrain/moco_v2_R50.yaml").SOLVER
    assert learning_rate(solver, 0) == 0.03
    assert learning_rate(solver, 100) == pytest.approx(0.015)
    assert learning_rate(solver, 150) == pytest.approx(0.03 * (1 - math.sqrt(0.5)) / 2)
    assert learning_rate(solver, 199) == pytest.approx(0.03 * math.sin(math.pi / 400) ** 2)


def test_steps() -> None:
    solver = config.load("pretrain/moco_v1_R50.yaml").SOLVER
    rates = [learning_rate(solver, epoch) for epoch in range(200)]
    assert rates[:120] == [0.03] * 120
    assert rates[120:160] == pytest.approx([0.003] * 40) and rates[160:] == pytest.approx([0.0003] * 40)
