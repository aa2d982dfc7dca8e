"""A state that a run resumes from: taken up exactly, or refused in one line."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pretrain.common.errors import UserError
from pretrain.tensor_files import checkpoint, states
from pretrain.tensor_files.states import Stored

Contents = dict[str, Any]
NAN = float("nan")
Make = Callable[[nn.Module], torch.optim.Optimizer]
OPTIMIZERS: dict[str, Make] = {
    "SGD": lambda model: torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01),
    "AdamW": lambda model: torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.01),
}


def stored(contents: Contents) -> Stored:
    return Stored(Path("last.pth"), contents, "tools/a.py", "do this")


def refused(call: Callable[[], object]) -> str:
    with pytest.raises(UserError) as error:
        call()
    text = str(error.value)
    start, end = "--resume: last.pth: ", "another version of tools/a.py; do this"
    assert text.startswith(start) and text.endswith(end) and text.isprintable() and len(text) < 500
    return text.removeprefix(start).partition(": the file is damaged")[0]


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        (model(torch.arange(6.0).view(2, 3)) ** 2).sum().backward()
        optimizer.step()


def trained(kind: str, steps: int = 2) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    optimizer = OPTIMIZERS[kind](model)
    train(model, optimizer, steps)
    return model, optimizer


def state_of(kind: str) -> Contents:
    return {"optimizer": trained(kind)[1].state_dict()}


# --- numbers


@pytest.mark.parametrize(
    ("value", "what"),
    [
        (10**9, "its `iteration` is 1000000000, not between 0 and 6"),
        (-1, "its `iteration` is -1, not between 0 and 6"),
        (10**4000, "its `iteration` is an integer of 13288 bits, not between 0 and 6"),
        *((value, "its `iteration` is missing or not a number") for value in (True, "3", 3.0, None, [3])),
        (torch.tensor(3), "its `iteration` is missing or not a number"),
    ],
)
def test_iterations(value: Any, what: str) -> None:
    assert refused(lambda: stored({"iteration": value}).count("iteration", high=6)) == what
    assert stored({"iteration": 6}).count("iteration", high=6) == 6


def test_seconds() -> None:
    assert stored({"seconds": 3}).seconds() == 3
    for value in (NAN, float("inf"), -1.0, True, "3", 10**400, None, torch.tensor(1.0)):
        assert refused(stored({"seconds": value}).seconds) == "its `seconds` is missing or not a time"


def test_digests() -> None:
    assert stored({"data": {"a": "1", "b": None}}).digests("data") == {"a": "1", "b": None}
    for value in (None, ["a"], {"a": 1}, {1: "a"}, {"a": torch.ones(2)}):
        assert "`data` is missing" in refused(lambda value=value: stored({"data": value}).digests("data"))


# --- tensors


@pytest.mark.parametrize(
    ("value", "what"),
    [
        (None, "its `model` is not a dict of tensors"),
        ([1], "its `model` is not a dict of tensors"),
        ({1: torch.ones(2)}, "its `model` is not a dict of tensors"),
        ({}, "its `model` lacks w"),
        ({"w": 1}, "its w is not a plain tensor"),
        ({"w": torch.ones(2).to_sparse()}, "its w is not a plain tensor"),
        ({"w": torch.ones(3)}, "its w is [3] torch.float32; this run needs [2] torch.float32"),
        ({"w": torch.ones(2).half()}, "its w is [2] torch.float16; this run needs [2] torch.float32"),
        ({"w": torch.tensor([1, NAN])}, "its w holds infinite values or NaN"),
        (
            {"w": torch.ones(2), "\x1b[2J" * 99: 1},
            f"its `model` holds '{('x1b[2J' * 99).replace('x', chr(92) + 'x')[:75]}...', which this run does not have",
        ),
    ],
)
def test_tensors(value: Any, what: str) -> None:
    own = {"w": torch.zeros(2)}
    assert refused(lambda: stored({}).tensors("model", value, own)) == what


def test_tensors_that_may_have_diverged() -> None:
    value, own = {"w": torch.tensor([1, NAN])}, {"w": torch.zeros(2)}
    assert stored({}).tensors("layer", value, own, finite=False) is value


# --- optimizers


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_two_and_three_steps_are_five(tmp_path: Path, kind: str) -> None:
    whole, _ = trained(kind, 5)
    model, optimizer = trained(kind, 2)
    checkpoint.save(tmp_path / "last.pth", {"optimizer": optimizer.state_dict()})
    resumed = OPTIMIZERS[kind](model)
    states.load(tmp_path / "last.pth", tool="", advice="").restore_optimizer(resumed, iteration=2)
    train(model, resumed, 3)
    assert torch.equal(model.weight, whole.weight) and torch.equal(model.bias, whole.bias)


def change(path: str, value: Any) -> Callable[[Contents], None]:
    """Set an entry, by its keys with slashes between them; delete it if the value is `...`."""

    def apply(contents: Contents) -> None:
        node: Any = contents
        *parents, leaf = (int(key) if key.isdigit() else key for key in path.split("/"))
        for key in parents:
            node = node[key]
        if value is ...:
            del node[leaf]
        else:
            node[leaf] = value

    return apply


GROUPS = "its `optimizer` does not hold 1 group(s) of settings"
HOSTILE: list[tuple[str, Callable[[Contents], None], str]] = [
    ("SGD", change("optimizer", []), "its `optimizer` holds no state"),
    ("SGD", change("optimizer/state", [1]), "its `optimizer` holds no state"),
    ("SGD", change("optimizer/state/0", [1]), "its `optimizer` holds no state"),
    ("SGD", change("optimizer/state", {}), "its `optimizer` has 0 momenta for 2 parameters"),
    ("SGD", change("optimizer/state/1", ...), "its `optimizer` has 1 momenta for 2 parameters"),
    ("SGD", change("optimizer/state/7", {"x": 1}), "its `optimizer` has 3 momenta for 2 parameters"),
    ("SGD", change("optimizer/param_groups", {}), GROUPS),
    ("SGD", change("optimizer/param_groups", []), GROUPS),
    ("SGD", change("optimizer/param_groups", [3]), GROUPS),
    ("SGD", change("optimizer/state/0/x", 3), "its `optimizer, parameter 0` holds 'x', which this run does not have"),
    (
        "SGD", change("optimizer/state/0/momentum_buffer", torch.ones(3, 2)),
        "its momentum_buffer is [3, 2] torch.float32; this run needs [2, 3] torch.float32",
    ),
    (
        "SGD", change("optimizer/state/1/momentum_buffer", torch.tensor([0, NAN])),
        "its momentum_buffer holds infinite values or NaN",
    ),
    ("AdamW", change("optimizer/state/1/exp_avg", ...), "its `optimizer, parameter 1` lacks exp_avg"),
    (
        "AdamW", change("optimizer/state/1/exp_avg_sq", torch.ones(5)),
        "its exp_avg_sq is [5] torch.float32; this run needs [2] torch.float32",
    ),
    (
        "AdamW", change("optimizer/state/0/exp_avg", torch.full((2, 3), float("inf"))),
        "its exp_avg holds infinite values or NaN",
    ),
    ("AdamW", change("optimizer/state/0/step", 2), "its step is not a plain tensor"),
    (
        "AdamW", change("optimizer/state/0/step", torch.tensor(-1e6)),
        "its `step` of parameter 0 is -1e+06, not between 1 and 2",
    ),
    (
        "AdamW", change("optimizer/state/1/step", torch.tensor(3.0)),
        "its `step` of parameter 1 is 3, not between 1 and 2",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "mutate", "what"), HOSTILE)
def test_momenta_that_no_run_would_write(kind: str, mutate: Callable[[Contents], None], what: str) -> None:
    contents, (_, optimizer) = state_of(kind), trained(kind, 0)
    mutate(contents)
    assert refused(lambda: stored(contents).restore_optimizer(optimizer, iteration=2)) == what
    assert not optimizer.state_dict()["state"]


def test_no_momenta_yet() -> None:
    """Before the first step, if a scaler skipped the first steps, and without momentum."""
    _, optimizer = trained("SGD", 0)
    contents: Contents = {"optimizer": optimizer.state_dict()}
    stored(contents).restore_optimizer(optimizer, iteration=0)
    stored({**contents, "scaler": {}}).restore_optimizer(optimizer, iteration=3)
    plain = torch.optim.SGD(nn.Linear(3, 2).parameters(), lr=0.1)
    none = {"state": {0: {"momentum_buffer": None}, 1: {}}, "param_groups": [{}]}
    stored({"optimizer": none}).restore_optimizer(plain, iteration=3)
    assert not optimizer.state_dict()["state"] and not plain.state_dict()["state"]


def test_settings_come_from_the_run(capsys: pytest.CaptureFixture[str]) -> None:
    contents, (_, optimizer) = state_of("SGD"), trained("SGD", 0)
    stored(contents).restore_optimizer(optimizer, iteration=2)
    stored(contents).note_settings(optimizer)
    assert capsys.readouterr().out == ""
    contents["optimizer"]["param_groups"][0] |= {
        "lr": 7.0,
        "momentum": "\x1b[2J",
        "maximize": torch.ones(2),
        "x": 1,
    }
    contents["optimizer"]["param_groups"][0] |= {"weight_decay": 10**400, "foreach": True}
    state = stored(contents)
    state.restore_optimizer(optimizer, iteration=2)
    state.note_settings(optimizer)
    assert capsys.readouterr().out == (
        "note: --resume: last.pth was saved with lr 7.0 instead of 0.1, momentum '\\x1b[2J' instead of 0.9, "
        "weight_decay an integer of 1329 bits instead of 0.01, ...: the settings of this run are used\n"
    )
    (group,) = optimizer.param_groups
    assert (group["lr"], group["momentum"], group["maximize"], group["weight_decay"]) == (
        0.1,
        0.9,
        False,
        0.01,
    )
    assert "x" not in group


def test_scalers() -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    good = {"scale": 8.0, "_growth_tracker": 5, "growth_factor": -3.0}
    stored({"scaler": good}).restore_scaler(scaler)
    restored = scaler.state_dict()
    assert (restored["scale"], restored["_growth_tracker"], restored["growth_factor"]) == (8.0, 5, 2.0)
    for bad in (
        3,
        [],
        {"scale": NAN},
        {**good, "scale": True},
        {**good, "_growth_tracker": -1},
        {"scale": 1.0},
    ):
        assert "its `scaler` has no" in refused(
            lambda bad=bad: stored({"scaler": bad}).restore_scaler(scaler)
        )


# --- files


def test_files_that_hold_no_state(tmp_path: Path) -> None:
    torch.save([1], tmp_path / "list.pth")
    (tmp_path / "text.pth").write_text("<html>")
    for name, what in (
        ("list", "it holds a list: the file is damaged"),
        ("text", "not a "),
        ("none", "no such"),
    ):
        path = tmp_path / f"{name}.pth"
        with pytest.raises(UserError, match=rf"^--resume: {path}: {what}.*; do this$"):
            states.load(path, tool="", advice="do this")
