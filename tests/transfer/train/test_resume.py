"""A run that is killed, stopped or interrupted and resumed ends with the weights of an undisturbed one, bit for bit."""

import contextlib
import errno
import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from detectron2.solver import build_lr_scheduler
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pretrain.common import signals
from pretrain.common.errors import UserError
from pretrain.tensor_files import checkpoint
from tests.support import detection_data
from tests.support.fuzzing.hostile import change
from transfer.config.load import load_config
from transfer.models import build
from transfer.train import evaluation, loop, step
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
    for other in (["SEED", "1"], ["SOLVER.BASE_LR", "0.5"]):
        with pytest.raises(UserError, match=r"--resume: [\w.]+ is .* and was "):
            train_run.run(_load(data, cut, *more, *other), resume=True)
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


def _state(cfg, *, scaler: torch.amp.GradScaler | None = None, steps: int = 0) -> State:
    """The state of a model with three weights after some steps."""
    torch.manual_seed(0)
    model = torch.nn.Linear(2, 1)
    optimizer = build.build_optimizer(cfg, model)
    state = State(model, optimizer, build_lr_scheduler(cfg, optimizer), scaler, {"train": "abc"})
    for _ in range(steps):
        _step(state)
    return state


def _step(state: State) -> None:
    state.optimizer.zero_grad()
    state.model(torch.tensor([[1.0, state.iteration]])).sum().backward()
    state.optimizer.step()
    state.scheduler.step()
    state.iteration += 1


def test_scale_of_float16_losses_is_restored(data, tmp_path: Path) -> None:
    cfg = _load(data, tmp_path)
    states = []
    for scale in (2.0**7, 2.0**16):
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        scaler.scale(torch.ones(()))  # makes the scale
        states.append(_state(cfg, scaler=scaler))
    train_state.save(states[0], cfg)
    restore(states[1], cfg)
    assert states[1].scaler.state_dict() == states[0].scaler.state_dict()


def test_last_good_file_outlives_weights_that_are_not_finite(data, tmp_path: Path) -> None:
    cfg = _load(data, tmp_path)
    state = _state(cfg, steps=3)
    train_state.save(state, cfg)
    good = (tmp_path / "model_last.pth").read_bytes()
    torch.nn.init.constant_(state.model.weight, float("inf"))
    with pytest.raises(UserError, match=r"iteration 3 .*the last good state is .*model_last\.pth"):
        train_state.save(state, cfg)
    assert (tmp_path / "model_last.pth").read_bytes() == good


@pytest.mark.parametrize("optimizer", ["SGD", "AdamW"])
def test_rates_and_momenta_of_a_resumed_run(
    data, tmp_path: Path, capsys: pytest.CaptureFixture[str], optimizer: str
) -> None:
    """In the warm-up and across a step of the schedule, the resumed state is that of an undisturbed run."""
    cfg = _load(data, tmp_path, "SOLVER.OPTIMIZER", optimizer, "SOLVER.WARMUP_ITERS", "3")
    whole, parts = _state(cfg, steps=6), _state(cfg, steps=2)
    for iteration in (2, 5):
        while parts.iteration < iteration:
            _step(parts)
        train_state.save(parts, cfg)
        parts = _state(cfg)
        restore(parts, cfg)
        assert parts.iteration == iteration
    _step(parts)
    assert torch.equal(parts.model.weight, whole.model.weight)
    assert parts.optimizer.param_groups[0]["lr"] == whole.optimizer.param_groups[0]["lr"]
    assert "note:" not in capsys.readouterr().out


def test_a_full_disk_says_what_is_saved(data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = _load(data, tmp_path / "run")
    first, second = _state(cfg), _state(cfg, steps=1)

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    problem = f"{tmp_path}/run/{train_state.LAST}: cannot be written: No space left on device"
    with monkeypatch.context() as patch, pytest.raises(UserError) as error:
        patch.setattr(os, "fsync", full)
        train_state.save(first, cfg)
    assert str(error.value) == f"{problem}; no state was saved yet: free some space, then start again"
    train_state.save(first, cfg)
    before = (tmp_path / "run" / train_state.LAST).read_bytes()
    with monkeypatch.context() as patch, pytest.raises(UserError) as error:
        patch.setattr(os, "fsync", full)
        train_state.save(second, cfg)
    kept = f"the last saved state is {tmp_path}/run/{train_state.LAST}"
    assert str(error.value) == f"{problem}; {kept}: free some space, then continue with --resume"
    assert (tmp_path / "run" / train_state.LAST).read_bytes() == before
    assert [path.name for path in (tmp_path / "run").iterdir()] == [train_state.LAST]


def test_rates_come_from_the_config(data, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cfg = _load(data, tmp_path)
    own = _state(cfg, steps=3)
    train_state.save(own, cfg)
    path = tmp_path / "model_last.pth"
    stored = checkpoint.load(path)
    stored["optimizer"]["param_groups"][0] |= {"lr": 7.0, "momentum": 0.1}
    stored["scheduler"] |= {"base_lrs": [5.0], "step": "not a function", "_multiplier": 3}
    checkpoint.save(path, stored)
    state = _state(cfg)
    restore(state, cfg)
    assert state.optimizer.param_groups == [
        {**own.optimizer.param_groups[0], "params": list(state.model.parameters())}
    ]
    assert state.scheduler.base_lrs == own.scheduler.base_lrs and callable(state.scheduler.step)
    first, second = (line for line in capsys.readouterr().out.splitlines() if line.startswith("note:"))
    assert first.endswith(f"with initial rates [5.0] instead of [{cfg.SOLVER.BASE_LR}]: these are used")
    assert (
        f"{path} was saved with lr 7.0 instead of 0.0" in second and "momentum 0.1 instead of 0.9" in second
    )


BEST = {"metric": "bbox/AP", "value": 3.0, "iteration": 2, "weights": "model_best.pth"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda stored: [1, 2], "it holds a list"),
        (change("config_sha256", torch.ones(2)), "`config_sha256` is missing or not a string"),
        (change("data", ["a"]), "`data` is missing or not a dict of digests"),
        (change("model", [1]), "`model` is not a dict of tensors"),
        (change("model", {"weight": torch.zeros(3)}), "`model` lacks bias"),
        (change("model/weight", torch.zeros(3)), r"weight is \[3\] torch.float32; this run needs \[1, 2\]"),
        (change("model/weight", torch.full((1, 2), float("nan"))), "weight holds infinite values or NaN"),
        (change("optimizer", [1]), "`optimizer` holds no state"),
        (change("optimizer/state/0/momentum_buffer", torch.zeros(2)), r"momentum_buffer is \[2\]"),
        (change("optimizer/param_groups", []), "`optimizer` does not hold 1 group"),
        (change("scheduler", 3), "`scheduler` is not one of iteration 3"),
        (change("scheduler/last_epoch", 5), "`scheduler` is not one of iteration 3"),
        (change("scheduler/last_epoch", torch.ones(2)), "`scheduler` is not one of iteration 3"),
        (change("scheduler/base_lrs", ["x"]), "`scheduler` has no initial learning rates"),
        (change("scheduler/base_lrs", [float("nan")]), "`scheduler` has no initial learning rates"),
        *(
            (change("iteration", value), "`iteration` is missing or not a number")
            for value in ("3", True, None)
        ),
        *(
            (change("iteration", value), f"`iteration` is {value}, not between 0 and 6")
            for value in (-1, 10**9)
        ),
        (change("seconds", float("inf")), "`seconds` is missing or not a time"),
        (change("processes", 0), "`processes` is 0, not between 1"),
        (lambda stored: {k: v for k, v in stored.items() if k != "processes"}, "`processes` is missing"),
        *(
            (change("best", value), "`best` is not a record of a metric")
            for value in (
                3,
                [],
                {},
                {**BEST, "value": "x"},
                {**BEST, "weights": "/etc"},
                {**BEST, "iteration": 4},
            )
        ),
    ],
)
def test_a_damaged_file_is_one_line(data, tmp_path: Path, change: Callable, message: str) -> None:
    cfg = _load(data, tmp_path)
    train_state.save(_state(cfg, steps=3), cfg)
    path = tmp_path / "model_last.pth"
    checkpoint.save(path, change(checkpoint.load(path)))
    with pytest.raises(UserError, match=message) as caught:
        restore(_state(cfg), cfg)
    text = str(caught.value)
    assert text.isprintable() and text.startswith(f"--resume: {path}: ") and "--resume FROM" in text


def test_a_scaler_is_needed_for_float16(data, tmp_path: Path) -> None:
    cfg = _load(data, tmp_path)
    train_state.save(_state(cfg, steps=1), cfg)
    with pytest.raises(UserError, match="it lacks `scaler`"):
        restore(_state(cfg, scaler=torch.amp.GradScaler("cpu")), cfg)


def test_an_older_state_of_this_or_another_folder(
    data, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It becomes the last state; what the folder holds of a later iteration stays under other names."""
    cfg, backup = _load(data, tmp_path / "run"), tmp_path / "backup"
    old = _state(cfg, steps=2)
    old.best = BEST
    for state in (old, _state(cfg, steps=4)):
        train_state.save(state, cfg)
        if state is old:
            backup.write_bytes((tmp_path / "run/model_last.pth").read_bytes())
    newer = (tmp_path / "run/model_last.pth").read_bytes()
    (tmp_path / "run/model_best.pth").write_bytes(b"best")
    state = _state(cfg)
    restore(state, cfg, backup)
    assert (state.iteration, state.best) == (2, None)
    printed = capsys.readouterr().out
    assert "its former state is kept as model_last.1.pth; lines of metrics.json after iteration 2 " in printed
    assert (
        "note: TEST.KEEP_BEST chooses among the tests from iteration 2 on; model_best.pth is kept as"
        in printed
    )
    contents = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    assert contents == {
        "model_last.pth": contents["model_last.pth"],
        "model_last.1.pth": newer,
        "model_best.1.pth": b"best",
    }
    state = _state(cfg)
    restore(state, cfg, True)  # the same command without FROM continues from there
    assert (state.iteration, state.best) == (2, None)


def test_a_finished_run_is_not_begun_again_from_a_file(data, tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text("{}")
    with pytest.raises(UserError, match="holds a finished run: name another OUTPUT_DIR"):
        train_run.run(_load(data, tmp_path), resume=tmp_path / "old.pth")


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


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, signals.INTERRUPTED), (signal.SIGTERM, signals.STOPPED)]
)
def test_a_run_stops_after_the_current_iteration(
    data,
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    number: signal.Signals,
    status: int,
) -> None:
    cfg, one_step = _load([*data, "SOLVER.CHECKPOINT_PERIOD", "1000"], tmp_path), loop.step

    def signalled(cfg, model, batch, optimizer, iteration, **options):
        if iteration == 2:
            os.kill(os.getpid(), number)
        return one_step(cfg, model, batch, optimizer, iteration, **options)

    monkeypatch.setattr(loop, "step", signalled)
    with pytest.raises(SystemExit, match=str(status)):
        train_run.run(cfg)
    last = tmp_path / "model_last.pth"
    assert checkpoint.load(last)["iteration"] == 3
    printed = capsys.readouterr().out.splitlines()
    assert printed[-1] == (
        f"stopped at iteration 3; everything is saved in {last}: the same command with --resume continues"
    )
    monkeypatch.setattr(loop, "step", one_step)
    train_run.run(cfg, resume=True)
    assert _equal(whole, tmp_path)


@pytest.mark.parametrize(("period", "iteration"), [(2, 2), (0, 6)], ids=["on the way", "at the end"])
def test_a_stop_during_a_test(
    data, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, period: int, iteration: int
) -> None:
    """It comes to every process of the job, while workers load the test's images; no library prints a traceback."""
    output, log, inference = tmp_path / "cut", tmp_path / "log", evaluation.inference_on_dataset
    cfg = _load([*data, "DATALOADER.NUM_WORKERS", "1", "TEST.EVAL_PERIOD", str(period)], output)

    def signalled(model, loader, evaluator):
        processed = model.forward

        def forward(images):
            # from a third process: the main one may end its workers
            subprocess.run(
                ["kill", "-s", "TERM", "--", f"-{os.getpgid(0)}"], check=True, start_new_session=True
            )
            time.sleep(0.5)  # enough for a worker that the signal ends to do so
            model.forward = processed
            return processed(images)

        model.forward = forward
        return inference(model, loader, evaluator)

    def run() -> None:
        monkeypatch.setattr(evaluation, "inference_on_dataset", signalled)
        with open(log, "w", buffering=1) as file, redirect_stdout(file), redirect_stderr(file):
            train_run.run(cfg)

    assert _wait(_start(run)) == signals.STOPPED, log.read_text()
    assert torch.load(output / "model_last.pth", weights_only=True)["iteration"] == iteration
    last, printed = output / "model_last.pth", log.read_text()
    assert "Traceback" not in printed and "error" not in printed
    assert printed.count("--resume") == 1 and f"everything is saved in {last}: the same command" in printed
    train_run.run(cfg, resume=True)
    assert (output / "results.json").exists()
    assert period or _equal(
        whole, output
    )  # PreciseBN before a test adds to the batches that a batch norm counts


def test_a_state_is_saved_by_the_clock(
    data, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An iteration takes ten minutes: after every other one, 15 minutes have passed. Saving changes no result."""
    cfg = _load([*data, "SOLVER.CHECKPOINT_PERIOD", "1000"], tmp_path)
    saved, now = [], [0.0]
    one_step, save = loop.step, loop.save

    def slow(*arguments, **options):
        now[0] += 600
        return one_step(*arguments, **options)

    def note(state, cfg):
        saved.append(state.iteration)
        save(state, cfg)

    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(loop, "step", slow)
    monkeypatch.setattr(loop, "save", note)
    train_run.run(cfg)
    assert saved == [2, 4, 6, 6]  # the last one at the end
    assert _equal(whole, tmp_path)
