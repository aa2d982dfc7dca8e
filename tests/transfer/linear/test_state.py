"""The saved state of a linear probe: taken up exactly, or refused in one line."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from pretrain.common.configs import digest_text
from pretrain.common.errors import UserError
from pretrain.tensor_files import checkpoint
from tests.support.fuzzing.hostile import ALIAS_BOMB, change
from transfer.linear import config
from transfer.linear import state as linear_state
from transfer.linear.classifiers import Classifiers
from transfer.linear.state import State

CPU = torch.device("cpu")
ORIGIN = {"--weights": "abc"}
PER_EPOCH = 2
Contents = dict[str, Any]


def configured(folder: Path, *rates: float) -> Any:
    cfg = config.defaults()
    cfg.OUTPUT_DIR, cfg.SWEEP, cfg.SOLVER.MAX_EPOCH, cfg.SOLVER.STEPS = str(folder), list(rates), 3, [1]
    return cfg


def new(cfg: Any) -> State:
    classifiers = Classifiers(3, 2, rates=config.rates(cfg), solver=cfg.SOLVER, seed=0, device=CPU)
    return State(classifiers, ORIGIN, 0, torch.zeros(len(classifiers.rates)))


def train(state: State, until: int) -> State:
    while state.iteration < until:
        features = torch.tensor([[1.0, 2, 3], [3, 1, state.iteration]])
        epoch = state.iteration // PER_EPOCH
        state.losses += state.classifiers.step(features, torch.tensor([0, 1]), epoch=epoch)
        state.iteration += 1
        if state.iteration % PER_EPOCH == 0:
            state.history += [
                {"iteration": state.iteration, "epoch": epoch + 1, "base_lr": rate, "lr": rate, "loss": 0.5,
                 "top1": 50.0, "top5": 100.0}
                for rate in state.classifiers.rates
            ]  # fmt: skip
    return state


def resume(cfg: Any, start: bool | Path = True) -> State:
    state, stored = new(cfg), linear_state.find(cfg, resume=start)
    assert stored
    linear_state.compare(stored, ORIGIN, cfg)
    linear_state.restore(state, stored, per_epoch=PER_EPOCH, epochs=cfg.SOLVER.MAX_EPOCH)
    return state


def same(one: State, other: State) -> bool:
    a, b = ([*s.classifiers.layers, *s.classifiers.optimizer.state.values()] for s in (one, other))
    pairs = zip(a, b, strict=True)
    tensors = [
        (x.weight, y.weight)
        if isinstance(x, torch.nn.Linear)
        else (x["momentum_buffer"], y["momentum_buffer"])
        for x, y in pairs
    ]
    return all(torch.equal(x, y) for x, y in tensors) and torch.equal(one.losses, other.losses)


def test_a_resumed_state_is_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cfg = configured(tmp_path, 0.1, 1.0)
    whole, parts = train(new(cfg), 6), new(cfg)
    for iteration in (1, 2, 3):
        linear_state.save(train(parts, iteration), cfg)
        parts = resume(cfg)
    assert same(train(parts, 6), whole) and parts.history == whole.history
    assert "note:" not in capsys.readouterr().out


def test_settings_come_from_the_config(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cfg, path = configured(tmp_path, 0.1), tmp_path / "linear_last.pth"
    linear_state.save(train(new(cfg), 3), cfg)
    stored = checkpoint.load(path)
    stored["optimizer"]["param_groups"][0] |= {"momentum": 0.1, "weight_decay": 3.0, "lr": 5.0}
    checkpoint.save(path, stored)
    assert same(train(resume(cfg), 6), train(new(cfg), 6))
    (note,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("note:"))
    assert f"{path} was saved with lr 5.0 instead of 0.01" in note and note.endswith(
        "settings of this run are used"
    )
    assert "momentum 0.1 instead of 0.9, weight_decay 3.0 instead of 0.0" in note


LINES = "its `history` is not a list of 1 lines"
LINE = "its `history` holds a line that is not one of metrics.json"
HOSTILE: list[tuple[Callable[[Contents], Any], str]] = [
    (lambda _: [1], "it holds a list"),
    (change("config", 3), "its `config` is not a YAML mapping"),
    (change("config", ALIAS_BOMB), "its `config` is not a YAML mapping"),
    (change("config", "[1]"), "its `config` is not a YAML mapping"),
    (change("origin", [1]), "its `origin` is missing or not a dict of digests"),
    (change("origin", {"--weights": torch.ones(2)}), "its `origin` is missing or not a dict of digests"),
    (change("layers", 3), "its `layers` are not a list of 1 classifiers"),
    (change("layers", []), "its `layers` are not a list of 1 classifiers"),
    (change("layers/0", [1]), "its `layers, 0` is not a dict of tensors"),
    (change("layers/0", {}), "its `layers, 0` lacks weight"),
    (change("layers/0/x", torch.ones(1)), "its `layers, 0` holds 'x', which this run does not have"),
    (
        change("layers/0/weight", torch.ones(3, 2)),
        r"its weight is \[3, 2\] torch.float32; this run needs \[2, 3\]",
    ),
    (change("losses", [0.0]), "its losses is not a plain tensor"),
    (change("losses", torch.zeros(2)), r"its losses is \[2\]"),
    (change("optimizer", []), "its `optimizer` holds no state"),
    (change("optimizer/state/1/momentum_buffer", torch.ones(3)), r"its momentum_buffer is \[3\]"),
    (change("optimizer/state/1/momentum_buffer", torch.ones(2) / 0), "its momentum_buffer holds infinite"),
    *(
        (change("iteration", value), "its `iteration` is missing or not a number")
        for value in ("3", True, None)
    ),
    *(
        (change("iteration", value), f"its `iteration` is {value}, not between 0 and 6")
        for value in (-1, 10**9)
    ),
    (change("iteration", 5), "its `history` is not a list of 2 lines"),
    (change("seconds", "3"), "its `seconds` is missing or not a time"),
    (change("processes", -1), "its `processes` is -1, not between 1"),
    (change("history", 3), LINES),
    (change("history", []), LINES),
    (change("history/0", 3), LINE),
    (change("history/0/x", 3), LINE),
    (change("history/0/top1", [[[]]]), LINE),
    (change("history/0/top1", float("nan")), LINE),
    (change("history/0/iteration", None), LINE),
]


@pytest.mark.parametrize(("mutate", "message"), HOSTILE)
def test_a_state_that_no_run_would_write(
    tmp_path: Path, mutate: Callable[[Contents], Any], message: str
) -> None:
    cfg, path = configured(tmp_path), tmp_path / "linear_last.pth"
    linear_state.save(train(new(cfg), 3), cfg)
    checkpoint.save(path, mutate(checkpoint.load(path)))
    with pytest.raises(UserError, match=message) as error:
        resume(cfg)
    text = str(error.value)
    assert text.startswith(f"--resume: {path}: ") and text.isprintable() and "--resume FROM" in text


def test_a_classifier_that_diverged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It may be resumed with the others of a sweep, which train on, but not alone."""
    for rates in ([0.1, 1.0], [0.1]):
        cfg = configured(tmp_path, *rates)
        state = train(new(cfg), 3)
        torch.nn.init.constant_(state.classifiers.layers[0].weight, float("nan"))
        state.losses[0] = float("nan")
        linear_state.save(state, cfg)
        if len(rates) > 1:
            whole = train(state, 6)
            parts = train(resume(cfg), 6)
            assert "note: the classifier with learning rate 0.1 has diverged\n" in capsys.readouterr().out
            assert torch.equal(parts.classifiers.layers[1].weight, whole.classifiers.layers[1].weight)
    with pytest.raises(
        UserError, match=r"all classifiers became infinite or NaN: use a smaller SOLVER\.BASE_LR"
    ):
        resume(cfg)


def test_a_state_of_another_folder(tmp_path: Path) -> None:
    cfg = configured(tmp_path / "one")
    linear_state.save(train(new(cfg), 3), cfg)
    other = configured(tmp_path / "two")
    assert linear_state.find(other, resume=True) is None
    state = resume(other, tmp_path / "one" / linear_state.LAST)
    assert state.iteration == 3 and json.dumps(state.history)


def test_a_state_from_before_the_younger_keys(tmp_path: Path) -> None:
    """It is resumed at their defaults only; a state that has one of them is not resumed at another value."""
    cfg = configured(tmp_path, 0.1)
    linear_state.save(train(new(cfg), 2), cfg)
    path, old = tmp_path / linear_state.LAST, yaml.safe_load(digest_text(cfg))
    del old["MODEL"]["VIT"], old["SOLVER"]["SCHEDULE"]
    checkpoint.save(path, {**checkpoint.load(path), "config": yaml.safe_dump(old)})
    assert resume(cfg).iteration == 2
    other = cfg.clone()
    other.SOLVER.SCHEDULE = "cosine"
    with pytest.raises(UserError, match=r"SOLVER\.SCHEDULE is cosine and was None"):
        resume(other)
    linear_state.save(train(new(other), 2), other)
    with pytest.raises(UserError, match=r"SOLVER\.SCHEDULE is step and was cosine"):
        resume(cfg)


def test_younger_keys_at_their_defaults_are_not_in_the_digest() -> None:
    cfg = config.defaults()
    keys = config.of_numbers(cfg)
    assert "SOLVER.STEPS" in keys and "OUTPUT_DIR" not in keys
    assert not any(key.startswith(("MODEL.VIT", "SOLVER.SCHEDULE")) for key in keys)
    cfg.MODEL.VIT.DEPTH, cfg.SOLVER.SCHEDULE = 6, "cosine"
    changed = config.of_numbers(cfg)
    assert changed["MODEL.VIT.DEPTH"] == 6 and changed["MODEL.VIT.WIDTH"] == 768
    assert changed["SOLVER.SCHEDULE"] == "cosine"
