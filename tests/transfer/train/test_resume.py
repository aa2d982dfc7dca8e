"""A run that is killed, stopped or interrupted and resumed ends with the weights of an undisturbed one, bit for bit."""

import contextlib
import json
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pretrain.common import signals
from pretrain.common.errors import UserError
from pretrain.tensor_files import checkpoint
from tests.support import detection_data
from transfer.config.load import load_config
from transfer.models import build
from transfer.train import loop, step
from transfer.train import run as train_run
from transfer.train import state as train_state
from transfer.train.state import State, restore

TINY = [
    "MODEL.INIT", "random", *detection_data.TINY, *detection_data.NARROW,
    "SOLVER.MAX_ITER", "6", "SOLVER.STEPS", "(5,)", "SOLVER.CHECKPOINT_PERIOD", "2", "TEST.PICTURES", "0",
]  # fmt: skip
# everything that has a state or a turn of its own
BUSY = [
    "DATALOADER.NUM_WORKERS", "1", "DATALOADER.SAMPLER_TRAIN", "RepeatFactorTrainingSampler",
    "DATALOADER.REPEAT_THRESHOLD", "1.0", "SOLVER.AMP.ENABLED", "True", "SOLVER.AMP.DTYPE", "float16",
    "TEST.EVAL_PERIOD", "3", "TEST.KEEP_BEST", "bbox/AP",
]  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return [*TINY, *detection_data.tiny_run(tmp_path_factory.mktemp("data"))]


@pytest.fixture(scope="module")
def whole(data: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run without `BUSY`."""
    folder = tmp_path_factory.mktemp("whole")
    train_run.run(_load(data, folder))
    return folder


@pytest.fixture(autouse=True)
def float16_without_float16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scaled losses in float32: a CPU takes half a minute for an iteration in float16."""
    monkeypatch.setattr(build, "check_amp", lambda cfg: None)
    monkeypatch.setattr(step, "autocast", lambda cfg: contextlib.nullcontext())


def _load(settings: list[str], output: Path, *more: str):
    return load_config("transfer/coco_R50_FPN.yaml", [*settings, "OUTPUT_DIR", str(output), *more])


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "model_final.pth", weights_only=True)["model"]


def _equal(first: Path, second: Path) -> bool:
    a, b = _weights(first), _weights(second)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def _lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]


def _points(folder: Path, tag: str) -> list[tuple[int, float]]:
    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    return [(event.step, event.value) for event in events.Scalars(tag)]


def _start(run: Callable[[], None]) -> int:
    """Run in a process of its own, in a group with its loader workers: its id. A fork, because it starts at once."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        os.setpgid(0, 0)
        run()
        code = 0
    except SystemExit as request:
        code = int(str(request.code))
    finally:
        os._exit(code)


def _wait(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _until_iteration(folder: Path, iteration: int) -> None:
    for _ in range(3000):
        if (folder / "metrics.json").exists() and f'"iteration": {iteration}' in (
            folder / "metrics.json"
        ).read_text():
            return
        time.sleep(0.01)
    pytest.fail(f"iteration {iteration} did not come")


@pytest.mark.parametrize("more", [[], BUSY], ids=["plain", "busy"])
def test_interrupted_run_ends_bit_equal(
    data, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: list[str]
) -> None:
    cut = tmp_path / "cut"
    if more:
        whole = tmp_path / "whole"
        train_run.run(_load(data, whole, *more))
    one_step = loop.step

    def stop_at_the_sixth(cfg, model, batch, optimizer, iteration, **options):
        if iteration == 5:
            raise KeyboardInterrupt
        return one_step(cfg, model, batch, optimizer, iteration, **options)

    monkeypatch.setattr(loop, "step", stop_at_the_sixth)
    with pytest.raises(KeyboardInterrupt):
        train_run.run(_load(data, cut, *more))
    monkeypatch.setattr(loop, "step", one_step)
    with pytest.raises(UserError, match=r"holds a run.*--resume"):
        train_run.run(_load(data, cut, *more))
    for change in (["SEED", "1"], ["SOLVER.BASE_LR", "0.5"]):
        with pytest.raises(UserError, match=r"--resume: [\w.]+ is .* and was "):
            train_run.run(_load(data, cut, *more, *change), resume=True)
    train_run.run(_load(data, cut, *more), resume=True)
    assert _equal(whole, cut)
    timeless = [
        [
            {k: v for k, v in line.items() if k not in ("images_per_second", "data_wait")}
            for line in _lines(folder)
        ]
        for folder in (whole, cut)
    ]
    assert timeless[0] == timeless[1]
    assert [line["iteration"] for line in timeless[0] if "loss" in line] == [1, 2, 3, 4, 5, 6]
    assert [line["iteration"] for line in timeless[0] if "loss" not in line] == ([3, 6] if more else [6])
    assert _points(whole, "loss") == _points(cut, "loss")
    assert [step for step, _ in _points(cut, "loss")] == [1, 2, 3, 4, 5, 6]


def test_scale_of_float16_losses_is_restored(data, tmp_path: Path) -> None:
    cfg = _load(data, tmp_path)
    states = []
    for scale in (2.0**7, 2.0**16):
        model = torch.nn.Linear(1, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        scaler.scale(torch.ones(()))  # makes the scale
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
        states.append(State(model, optimizer, scheduler, scaler))
    train_state.save(states[0], cfg)
    restore(states[1], cfg)
    assert states[1].scaler.state_dict() == states[0].scaler.state_dict()


def test_last_good_file_outlives_weights_that_are_not_finite(data, tmp_path: Path) -> None:
    cfg = _load(data, tmp_path)
    model = torch.nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    state = State(model, optimizer, torch.optim.lr_scheduler.StepLR(optimizer, 1), None, iteration=3)
    train_state.save(state, cfg)
    good = (tmp_path / "model_last.pth").read_bytes()
    torch.nn.init.constant_(model.weight, float("inf"))
    with pytest.raises(UserError, match=r"iteration 3 .*the last good state is .*model_last\.pth"):
        train_state.save(state, cfg)
    assert (tmp_path / "model_last.pth").read_bytes() == good


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda stored: [1, 2], "was not written by"),
        (lambda stored: {**stored, "model": {"weight": torch.zeros(3)}}, "is damaged"),
        (lambda stored: {**stored, "optimizer": [stored]}, "is damaged"),
        (lambda stored: {**stored, "iteration": "three"}, "is damaged"),
        (lambda stored: {k: v for k, v in stored.items() if k != "processes"}, "is damaged"),
    ],
)
def test_a_damaged_file_is_one_line(data, tmp_path: Path, change: Callable, message: str) -> None:
    cfg = _load(data, tmp_path)
    model = torch.nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    state = State(model, optimizer, torch.optim.lr_scheduler.StepLR(optimizer, 1), None)
    train_state.save(state, cfg)
    path = tmp_path / "model_last.pth"
    checkpoint.save(path, change(checkpoint.load(path)))
    with pytest.raises(UserError, match=message) as caught:
        restore(state, cfg)
    assert "\n" not in str(caught.value) and "--resume" in str(caught.value)


def test_resume_on_other_data_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train = detection_data.write_coco(tmp_path / "train", images=4)
    settings = [*TINY, *detection_data.custom(train, train)]
    monkeypatch.setattr(loop.precise_bn, "update", lambda *_: pytest.fail("stop after training"))
    with pytest.raises(pytest.fail.Exception):
        train_run.run(_load(settings, tmp_path / "a"))
    content = json.loads(train[0].read_text())
    content["annotations"].pop()
    train[0].write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"trained on other data.*DATASETS\.TRAIN"):
        train_run.run(_load(settings, tmp_path / "a"), resume=True)


def test_best_weights_are_kept_and_survive_a_resume(
    data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = iter([20.0, None, 30.0, 25.0, 25.0])  # after iterations 2, 4 (undefined), 4 once more, and 6
    state = {}

    def evaluate(cfg, model):
        value = next(values)
        state[value] = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        if value is None:
            raise KeyboardInterrupt
        return {"custom_test": {"bbox": {"AP": value, "AP50": 99.0}}, "other": {"bbox": {"AP": 99.0}}}

    monkeypatch.setattr(train_run.evaluation, "evaluate", evaluate)
    cfg = _load(data, tmp_path / "a", "TEST.EVAL_PERIOD", "2", "TEST.KEEP_BEST", "bbox/AP")
    with pytest.raises(KeyboardInterrupt):
        train_run.run(cfg)
    train_run.run(cfg, resume=True)
    best = torch.load(tmp_path / "a/model_best.pth", weights_only=True)["model"]
    assert all(torch.equal(best[name], state[30.0][name]) for name in best)
    record = json.loads((tmp_path / "a/results.json").read_text())
    assert record["best"] == {"metric": "bbox/AP", "value": 30.0, "iteration": 4, "weights": "model_best.pth"}


@pytest.mark.slow
def test_killed_again_and_again(data, tmp_path: Path) -> None:
    settings = [*data, *BUSY, "SOLVER.CHECKPOINT_PERIOD", "1"]
    began = time.perf_counter()
    assert _wait(_start(lambda: train_run.run(_load(settings, tmp_path / "whole")))) == 0
    seconds = time.perf_counter() - began
    moment, kills = random.Random(time.time_ns()), 0
    for _ in range(4):
        child = _start(lambda: train_run.run(_load(settings, tmp_path / "cut"), resume=True))
        time.sleep(moment.uniform(0.2, 0.9) * seconds)
        os.killpg(child, signal.SIGKILL)
        kills += _wait(child) == -signal.SIGKILL
    assert kills
    train_run.run(_load(settings, tmp_path / "cut"), resume=True)
    assert _equal(tmp_path / "whole", tmp_path / "cut")


@pytest.mark.parametrize("call", [2, 4])
def test_killed_while_saving(
    data, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    """The machine stops when the new file is written but not yet in its place."""

    def run() -> None:
        calls = []

        def kill_at(path, contents):
            calls.append(path)
            if len(calls) == call:
                monkeypatch.setattr(os, "replace", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
            save(path, contents)

        save = checkpoint.save
        monkeypatch.setattr(checkpoint, "save", kill_at)
        train_run.run(_load(data, tmp_path / "cut"))

    # saved: after iterations 2, 4 and 6; and model_final
    child = _start(run)
    assert _wait(child) == -signal.SIGKILL
    assert list((tmp_path / "cut").glob(".model_*"))
    train_run.run(_load(data, tmp_path / "cut"), resume=True)
    assert _equal(whole, tmp_path / "cut")
    assert not list((tmp_path / "cut").glob(".model_*"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_scheduler_stops_a_run(data, whole: Path, tmp_path: Path, number: signal.Signals) -> None:
    """It signals every process of the job, loader workers too."""
    settings = [*data, "DATALOADER.NUM_WORKERS", "1", "SOLVER.CHECKPOINT_PERIOD", "1000"]
    child = _start(lambda: train_run.run(_load(settings, tmp_path / "cut")))
    _until_iteration(tmp_path / "cut", 2)
    os.killpg(child, number)
    assert _wait(child) == signals.STOPPED
    assert torch.load(tmp_path / "cut/model_last.pth", weights_only=True)["iteration"] in (2, 3, 4)
    train_run.run(_load(settings, tmp_path / "cut"), resume=True)
    assert _equal(whole, tmp_path / "cut")
