"""Alarms on log lines made by hand, their figures in closed form: nothing is trained here."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from pretrain import config
from pretrain.train import alarms
from pretrain.train.alarms import Alarms
from pretrain.train.step import spread

EPOCH, TOTAL, IMAGES = 100, 20_000, 25_600  # early lasts a tenth of the run, 2000 iterations; patience 500
QUEUE = 64  # iterations to fill 16384 keys


def _alarms(*overrides: Any) -> Alarms:
    cfg = config.defaults()
    cfg.merge_from_list(["MOCO.K", 256 * QUEUE, *overrides])
    return Alarms(cfg, per_epoch=EPOCH, total=TOTAL, images=IMAGES)


def _raised(watch: Alarms, iterations: range, **values: float) -> list[tuple[int, str]]:
    line = {"loss": 5.0, "accuracy": 0.5, "in_batch_accuracy": 0.6, "feature_std": 0.9, **values}
    return [(i, name) for i in iterations for name, _ in watch.see({"iteration": i, **line})]


def test_a_leak_is_told_by_the_second_line_without_noise_in_the_queue() -> None:
    # the line of iteration 80 is about 61 to 80, and the queue is full after 64
    assert _raised(_alarms(), range(20, 2000, 20), accuracy=0.99) == [(120, "leak")]
    assert _raised(_alarms(), range(20, 2000, 20), accuracy=0.94) == []


def test_accuracy_may_be_high_later() -> None:
    watch = _alarms()
    assert _raised(watch, range(20, QUEUE + 2000, 20)) == []
    assert _raised(watch, range(QUEUE + 2016, TOTAL, 20), accuracy=0.99) == []


def test_one_easy_line_is_no_leak() -> None:
    watch = _alarms()
    for start in range(100, 1900, 40):
        assert _raised(watch, range(start, start + 20, 20), accuracy=0.99) == []
        assert _raised(watch, range(start + 20, start + 40, 20), accuracy=0.5) == []


@pytest.mark.parametrize(
    ("overrides", "advice"),
    [
        (["MODEL.NORM", "BN"], "set MODEL.NORM ShuffleBN and MOCO.SHUFFLE True"),
        (["MOCO.SHUFFLE", False], "set MODEL.NORM ShuffleBN and MOCO.SHUFFLE True"),
        (["MODEL.NORM", "SyncBN"], "a larger batch, or MODEL.NORM ShuffleBN"),
        (["MOCO.M", 0.5], "a MOCO.M above 0.5"),
        (["MOCO.MECHANISM", "endtoend"], "use a larger batch"),
        (["MOCO.MECHANISM", "mocov3", "MODEL.NORM", "SyncBN"], "use a larger batch"),
    ],
)
def test_a_leak_comes_with_advice_that_fits_the_settings(overrides: list[Any], advice: str) -> None:
    watch = _alarms(*overrides)
    sentences = [
        text
        for i in range(100, 300, 20)
        for _, text in watch.see(
            {"iteration": i, "loss": 1.0, "accuracy": 0.97, "in_batch_accuracy": 0.25, "feature_std": 0.9}
        )
    ]
    assert len(sentences) == 1 and advice in sentences[0]
    assert "97.0 %" in sentences[0] and "25.0 %" in sentences[0] and "\n" not in sentences[0]


def test_a_collapse_is_told_once() -> None:
    watch = _alarms()
    assert _raised(watch, range(20, 400, 20), feature_std=0.5) == []
    assert _raised(watch, range(400, 4000, 20), feature_std=0.01) == [(900, "collapse")]
    assert _raised(_alarms(), range(100, 600, 20), feature_std=0.01) == []  # a start that it may still leave


def test_a_loss_that_stays_at_chance_is_told_after_a_while() -> None:
    chance = math.log(256 * QUEUE + 1)
    assert _raised(_alarms(), range(100, 4000, 20), loss=chance * 1.005) == [(620, "flat loss")]
    assert _raised(_alarms(), range(100, 4000, 20), loss=chance * 0.98) == []
    watch = _alarms()  # one better line in between: the count starts again
    assert _raised(watch, range(100, 600, 20), loss=chance) == []
    assert _raised(watch, range(600, 620, 20), loss=chance * 0.9) == []
    assert _raised(watch, range(620, 4000, 20), loss=chance) == [(1120, "flat loss")]


@pytest.mark.parametrize(
    ("per_epoch", "total", "patience"),
    [
        (5004, 200 * 5004, 25_000),  # ImageNet: five epochs, nearly
        (976_562, 1_250_000, 25_000),  # a stream of a billion images
        (5004, 3 * 5004, 3 * 5004 // 10),  # three epochs: a tenth of the run
        (64, 8 * 64, 500),  # a demo: it may look dead at first
    ],
    ids=["ImageNet", "IG-1B", "short", "small"],
)
def test_a_run_of_any_length_is_told_that_it_stands_still(per_epoch: int, total: int, patience: int) -> None:
    cfg = config.defaults()
    for name, values in (("collapse", {"feature_std": 0.01}), ("flat loss", {"loss": math.log(65537)})):
        watch = Alarms(cfg, per_epoch=per_epoch, total=total, images=256 * per_epoch)
        watch.previous = watch.young
        first = min(total // 2, 300)
        assert _raised(watch, range(first, first + patience, 1), **values) == []
        assert _raised(watch, range(first + patience, first + patience + 2), **values) == [
            (first + patience, name)
        ]


@pytest.mark.parametrize(
    ("mechanism", "negatives", "young"),
    [
        ("moco", 256 * QUEUE, QUEUE),
        ("endtoend", 255, 0),
        ("memorybank", 256 * QUEUE - 0.64, EPOCH),
        ("mocov3", 255, 0),
    ],
)
def test_chance_is_the_loss_of_equal_logits(mechanism: str, negatives: float, young: int) -> None:
    """A memory bank's 16384 draws among 25600 images hit the query's own 0.64 times in the mean."""
    watch = _alarms("MOCO.MECHANISM", mechanism)
    logits = torch.zeros(1, 1 + round(negatives))
    # MoCo v3 adds the losses of both views and multiplies by twice the temperature, here 0.2.
    factor = 0.8 if mechanism == "mocov3" else 1
    assert watch.chance == pytest.approx(factor * F.cross_entropy(logits, torch.tensor([0])).item(), rel=1e-5)
    assert watch.young == young


def test_a_queue_that_the_batch_does_not_divide_is_full_after_the_last_partial_batch() -> None:
    cfg = config.defaults()
    cfg.merge_from_list(["MOCO.K", 1000, "SOLVER.IMS_PER_BATCH", 64])
    assert alarms.young_steps(cfg, per_epoch=5) == 16


def test_spread_of_unit_vectors() -> None:
    def of(vectors: torch.Tensor) -> float:
        return spread(torch.stack([vectors.mean(0), vectors.square().mean(0)])).item()

    torch.manual_seed(0)
    even = F.normalize(torch.randn(20_000, 128), dim=1)
    assert of(even) == pytest.approx(1, abs=0.01)
    assert of(even[:1].repeat(50, 1)) == pytest.approx(0, abs=1e-3)
    axes = torch.eye(16)  # each of 16 axes once: every coordinate has variance 1/16 - 1/256
    assert of(axes) == pytest.approx(4 * math.sqrt(1 / 16 - 1 / 256))
    near = F.normalize(even + 20 * even[0], dim=1)
    assert of(near) < alarms.COLLAPSED < of(F.normalize(even + even[0], dim=1))
    assert of(even) == pytest.approx(math.sqrt(128) * even.std(0, correction=0).mean().item(), rel=1e-3)
