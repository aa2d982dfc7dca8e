"""No run is lost: kills, full disks, damaged checkpoints, values that are not finite."""

import contextlib
import json
import math
import os
import resource
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pretrain import config
from pretrain.common.errors import UserError
from pretrain.common.run_folder import remove_leftovers
from pretrain.data.folders import find_images
from pretrain.model import precision
from pretrain.tensor_files import checkpoint
from pretrain.train import checkpoints, loop, resume, start_notes
from pretrain.train.checkpoints import LAST, Progress
from pretrain.train.knn_monitor import Measured
from tests.support.fuzzing import hostile
from tests.support.fuzzing.hostile import ALIAS_BOMB, Trap
from tests.support.kills import kill_runs
from tests.support.pretrain_runs import MakeFolder, command, log_lines, overrides
from tests.support.pretrain_runs import pretrain as run

Contents = dict[str, Any]
EVERY_STEP = ["INPUT.SIZE", "32", "SOLVER.IMS_PER_BATCH", "16", "MODEL.BN_GROUP_SIZE", "8", "SOLVER.SAVE_MINUTES",
              "1e-6", "LOG.TENSORBOARD", "False"]  # fmt: skip

V3 = ["MOCO.MECHANISM", "mocov3", "MODEL.NORM", "SyncBN", "MODEL.HIDDEN", "32", "INPUT.AUG", "v3", "SOLVER.SCHEDULE",
      "warmup_cosine", "SOLVER.WARMUP_EPOCHS", "0.5"]  # fmt: skip
VIT = ["MODEL.ARCH", "vit", "MODEL.WIDTH", "1", "MODEL.VIT.WIDTH", "24", "MODEL.VIT.DEPTH", "2", "MODEL.VIT.HEADS",
       "3"]  # fmt: skip


class Killed(Exception):
    pass


def kill() -> None:
    raise Killed


@pytest.fixture(autouse=True, scope="module")
def float16_on_a_cpu() -> Iterator[None]:
    """It is refused for being slow; the images here are small enough."""
    decide = precision.decide

    def allow(setting: str, *arguments: Any, **options: Any) -> str:
        return "fp16 (SOLVER.AMP)" if setting == "fp16" else decide(setting, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(precision, "decide", allow)
        yield


@contextlib.contextmanager
def before_step(iteration: int, action: Callable[[], object]) -> Iterator[None]:
    """Call `action` before the step of this one-based iteration."""
    step = loop.train_step

    def deadly(*arguments: Any, **options: Any) -> torch.Tensor:
        if options["iteration"] == iteration - 1:
            action()
        return step(*arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "train_step", deadly)
        yield


# --- kills


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "kills"), [(1, 5), (2, 3)])
def test_killed_again_and_again(tmp_path: Path, processes: int, kills: int) -> None:
    """Real processes, SIGKILL at random moments: at any time, after any log line, in any call that saves."""
    seed = time.time_ns() % 1_000_000
    summary = kill_runs.kill_runs(tmp_path, kills=kills, processes=processes, seed=seed, images=40)
    assert sum(summary.kills.values()) >= kills
    assert not summary.different, f"seed {seed}: {summary}"


@pytest.mark.parametrize(
    "more",
    [
        ["MOCO.MECHANISM", "memorybank"],
        ["MOCO.MECHANISM", "endtoend"],
        ["SOLVER.AMP", "fp16"],
        ["SOLVER.SCHEDULE", "exponential", "SOLVER.GAMMA_PERIOD", "2", "DATA.NUM_WORKERS", "1"],
        [*V3, "SOLVER.OPTIMIZER", "lars"],
        [*V3, *VIT, "SOLVER.OPTIMIZER", "adamw", "SOLVER.CHUNK", "5"],
    ],
    ids=["memorybank", "endtoend", "fp16", "exponential", "mocov3", "mocov3 ViT"],
)
def test_every_kind_of_state_is_taken_up(image_folder: MakeFolder, tmp_path: Path, more: list[str]) -> None:
    """Three iterations an epoch; killed in the middle of the second, one step after the last save."""
    images, more = image_folder(50), [*EVERY_STEP, *more]
    whole = run(images, tmp_path / "whole", *more)
    with before_step(5, kill), pytest.raises(Killed):
        run(images, tmp_path / "parts", *more)
    assert checkpoint.load(tmp_path / "parts" / LAST)["iteration"] == 4
    parts = run(images, tmp_path / "parts", *more, resume=True)
    assert not list(kill_runs._unequal(whole, parts, where="checkpoint"))
    assert (whole["scaler"] is not None) == ("fp16" in more)
    if whole["scaler"]:
        assert whole["scaler"]["_growth_tracker"] + whole["scaler"]["scale"] != 65536


def test_momenta_of_another_kind_of_device(image_folder: MakeFolder, tmp_path: Path) -> None:
    """A GPU's lie channels last in memory, and in the file; the fused step goes through memory as it comes."""
    images = image_folder(50)
    whole = run(images, tmp_path / "whole", *EVERY_STEP, "SOLVER.MAX_ITER", "4")
    parts = run(images, tmp_path / "parts", *EVERY_STEP, "SOLVER.MAX_ITER", "2")
    for state in momenta(parts).values():
        if state["momentum_buffer"].dim() == 4:
            state["momentum_buffer"] = state["momentum_buffer"].contiguous(memory_format=torch.channels_last)
    checkpoint.save(tmp_path / "parts" / LAST, parts)
    parts = run(images, tmp_path / "parts", *EVERY_STEP, "SOLVER.MAX_ITER", "4", resume=True)
    assert not list(kill_runs._unequal(whole, parts, where="checkpoint"))


def test_saves_inside_an_epoch(image_folder: MakeFolder, tmp_path: Path) -> None:
    images = image_folder(50)  # three iterations an epoch
    for minutes, saved in (("1e-6", 4), ("0", 3), ("60", 3)):
        with before_step(5, kill), pytest.raises(Killed):
            run(images, tmp_path / minutes, *EVERY_STEP, "SOLVER.SAVE_MINUTES", minutes)
        assert checkpoint.load(tmp_path / minutes / LAST)["iteration"] == saved


def test_knn_that_was_missed_is_measured_after_resuming(image_folder: MakeFolder, tmp_path: Path) -> None:
    images, output = image_folder(10, classes=("a", "b")), tmp_path / "run"
    more = [*EVERY_STEP, "KNN.PERIOD", "1", "SOLVER.MAX_EPOCH", "2"]
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr("pretrain.train.knn_monitor.Probe.measure", lambda *_, **__: Measured(10.0, 1.0, 8))
        with before_step(
            2, lambda: patch.setattr("pretrain.train.knn_monitor.Probe.measure", lambda *_, **__: kill())
        ):
            run(images, output, *more)
    for _ in range(2):  # once is enough
        run(images, output, *more, resume=True)
        assert [line["iteration"] for line in log_lines(output) if "knn" in line] == [0, 1, 2]


# --- files


def tiny_state(folder: Path, *more: str) -> tuple[Any, nn.Module, torch.optim.Optimizer]:
    cfg = config.load("pretrain/moco_v2_R50.yaml", overrides(folder, folder / "run", *more))
    model = nn.Linear(2, 2)
    return cfg, model, torch.optim.SGD(model.parameters(), lr=1.0)


@pytest.mark.parametrize(
    ("keep", "stay"), [("2", [4, 8, 9, 10]), ("1", [4, 8, 10]), ("0", list(range(1, 11)))]
)
def test_checkpoints_that_stay(tmp_path: Path, keep: str, stay: list[int]) -> None:
    settings = ["SOLVER.KEEP_LAST", keep, "SOLVER.CHECKPOINT_PERIOD", "4", "SOLVER.MAX_EPOCH", "10"]
    cfg, model, optimizer = tiny_state(tmp_path, *settings)
    for iteration in range(2, 21, 2):
        checkpoints.save(tmp_path, model, optimizer, Progress(iteration, 2, 4, "off"), cfg=cfg)
    assert [checkpoints.number(path) + 1 for path in checkpoints.numbered(tmp_path)] == stay
    newest = tmp_path / "checkpoint_0009.pth.tar"
    content = newest.read_bytes()
    assert (tmp_path / LAST).read_bytes() == content
    (tmp_path / LAST).write_bytes(b"as `cp` does")
    assert newest.read_bytes() == content


def test_leftovers_of_a_kill_are_removed(tmp_path: Path) -> None:
    names = [
        f".{LAST}.abcd1234",
        f".{LAST.replace('.', '.2.', 1)}.k_1",
        ".checkpoint_0003.pth.tar.x1",
        ".config.yaml.k",
        ".metrics.json.k",
    ]
    stay = [".hidden", ".mine.txt", *(f"checkpoint_000{n}.pth.tar" for n in range(4)), LAST]
    for name in [*names, *stay]:
        (tmp_path / name).touch()
    remove_leftovers(tmp_path, checkpoints.is_ours)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(stay)


def test_files_that_were_to_stay_are_removed_by_a_later_save_only(
    image_folder: MakeFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """KEEP_LAST is not given when a run is resumed; first for a finished run."""
    images, output = image_folder(20), tmp_path / "run"  # one iteration an epoch
    less = [*EVERY_STEP, "SOLVER.CHECKPOINT_PERIOD", "9", "SOLVER.KEEP_LAST", "1"]
    run(images, output, *less, "SOLVER.KEEP_LAST", "0")
    capsys.readouterr()
    run(images, output, *less, resume=True)
    assert (
        "note: SOLVER.KEEP_LAST was 0 and is 1: which numbered files are kept changes from now on"
        in capsys.readouterr().out
    )
    assert [checkpoints.number(path) for path in checkpoints.numbered(output)] == [0, 1, 2]
    run(images, output, *less, "SOLVER.MAX_EPOCH", "4", resume=True)
    assert [checkpoints.number(path) for path in checkpoints.numbered(output)] == [3]


def test_a_kill_right_after_the_end_is_made_up_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `checkpoint_last` says is finished has nothing left to remove."""
    cfg, model, optimizer = tiny_state(tmp_path, "SOLVER.KEEP_LAST", "1", "SOLVER.CHECKPOINT_PERIOD", "9")
    checkpoints.save(tmp_path, model, optimizer, Progress(2, 2, 4, "off"), cfg=cfg)
    monkeypatch.setattr(checkpoints, "copy", lambda *_: kill())
    with pytest.raises(Killed):
        checkpoints.save(tmp_path, model, optimizer, Progress(4, 2, 4, "off"), cfg=cfg)
    assert checkpoint.load(tmp_path / LAST)["iteration"] == 2
    assert [checkpoints.number(path) for path in checkpoints.numbered(tmp_path)] == [1]


@contextlib.contextmanager
def disk_full_before_step(iteration: int) -> Iterator[Callable[[], None]]:
    """From then on no file may grow above 50 kB; a checkpoint has some 2 MB. The yielded function lifts the limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def lift() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    with before_step(iteration, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))):
        try:
            yield lift
        finally:
            lift()


def test_a_full_disk_stops_a_run(image_folder: MakeFolder, tmp_path: Path) -> None:
    images, output = image_folder(50), tmp_path / "run"
    with disk_full_before_step(5), pytest.raises(UserError) as error:
        run(images, output, *EVERY_STEP)
    text = str(error.value)
    assert (
        f"{output / LAST}: cannot be written: File too large; iteration 4 is saved" in text
        and "\n" not in text
    )
    assert checkpoint.load(output / LAST)["iteration"] == 4
    assert not list(output.glob(".*"))
    assert run(images, output, *EVERY_STEP, resume=True)["iteration"] == 9


def test_a_full_disk_may_be_passed_over(
    image_folder: MakeFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = image_folder(50)
    more = [*EVERY_STEP, "SOLVER.SAVE_ERRORS", "continue", "LOG.TENSORBOARD", "True"]
    with disk_full_before_step(5) as lift, before_step(7, lift):
        run(images, tmp_path / "run", *more)
    warnings = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning: ")]
    assert warnings.pop(0).startswith("warning: LOG.TENSORBOARD: cannot be written: File too large")
    assert len(warnings) == 2 and all("iteration 4 is saved; training continues" in line for line in warnings)
    assert checkpoint.load(tmp_path / "run" / LAST)["iteration"] == 9
    with disk_full_before_step(2), pytest.raises(UserError, match=r"cannot be written.*iteration 1 is saved"):
        run(images, tmp_path / "late", *more)  # the end without its state is an error


def test_a_place_that_cannot_be_written(image_folder: MakeFolder, tmp_path: Path) -> None:
    images, output = image_folder(20), tmp_path / "run"  # one iteration an epoch
    (output / "checkpoint_0001.pth.tar").mkdir(parents=True)
    with pytest.raises(UserError, match="holds a run: add --resume"):
        run(images, output, *EVERY_STEP)
    (output / "checkpoint_0001.pth.tar").rmdir()
    expected = pytest.raises(UserError, match=r"checkpoint_0001\.pth\.tar: cannot be written: Is a directory")
    with before_step(2, (output / "checkpoint_0001.pth.tar").mkdir), expected:
        run(images, output, *EVERY_STEP)
    assert checkpoint.load(output / LAST)["iteration"] == 1


@pytest.mark.parametrize("resume", [False, True])
def test_a_folder_that_cannot_be(image_folder: MakeFolder, tmp_path: Path, resume: bool) -> None:
    images, closed = image_folder(20), tmp_path / "closed"
    closed.mkdir(mode=0)
    outputs = [
        tmp_path / ("x" * 300),
        tmp_path / ("x" * 300) / "y",
        *([closed / "run"] if os.getuid() else []),
    ]
    for output in outputs:
        with pytest.raises(UserError, match=r"cannot be written: (File name too long|Permission denied)"):
            run(images, output, *EVERY_STEP, resume=resume)
    closed.rmdir()


def test_the_main_process_decides_when_to_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg, *_ = tiny_state(tmp_path, "SOLVER.SAVE_MINUTES", "2")
    one = checkpoints.Saver(cfg, saved=None)
    now = one.last
    monkeypatch.setattr(time, "monotonic", lambda: now + 119)
    assert not one.due()
    monkeypatch.setattr(time, "monotonic", lambda: now + 121)
    assert one.due()
    monkeypatch.setattr("pretrain.common.distributed.rank", lambda: 1)
    assert not one.due()


def test_too_many_broken_images_lose_no_step(image_folder: MakeFolder, tmp_path: Path) -> None:
    """The second of three iterations meets one, and it is one too many."""
    images, output = image_folder(50), tmp_path / "run"
    more = [*EVERY_STEP, "SOLVER.SAVE_MINUTES", "0"]
    files = find_images([str(images)], key="DATA.TRAIN")
    broken = Path(files[int(files.order(0, 0)[20])])
    content = broken.read_bytes()
    broken.write_bytes(b"no image")
    with pytest.raises(UserError, match=r"DATA\.MAX_BROKEN 0\.01: 1 of 50 images could not be read"):
        run(images, output, *more)
    assert checkpoint.load(output / LAST)["iteration"] == log_lines(output)[-1]["iteration"] == 2
    broken.write_bytes(content)
    assert run(images, output, *more, resume=True)["iteration"] == 9


# --- what may be resumed


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], Path]:
    """Settings and folder of a run with a few steps, whose float16 scaler has a state."""
    folder = tmp_path_factory.mktemp("stored")
    kill_runs._images(folder / "images", 20)
    settings = overrides(
        folder / "images", folder / "run", *EVERY_STEP, "SOLVER.AMP", "fp16", "SOLVER.MAX_ITER", "2"
    )
    loop.train(config.load("pretrain/moco_v2_R50.yaml", settings))
    return settings, folder / "run"


def go_on(settings: list[str], contents: Contents, folder: Path, **options: bool) -> None:
    checkpoint.save(folder / LAST, contents)
    more = ["OUTPUT_DIR", str(folder), "SOLVER.MAX_ITER", "3"]
    loop.train(config.load("pretrain/moco_v2_R50.yaml", [*settings, *more]), resume=True, **options)


def first_tensor(contents: Contents) -> tuple[Contents, str, torch.Tensor]:
    state = contents["state_dict"]
    return state, "module.encoder_q.conv1.weight", state["module.encoder_q.conv1.weight"]


def set_tensor(change: Callable[[torch.Tensor], Any]) -> Callable[[Contents], None]:
    def mutate(contents: Contents) -> None:
        state, name, value = first_tensor(contents)
        state[name] = change(value)

    return mutate


def momenta(contents: Contents) -> Contents:
    return contents["optimizer"]["state"]


MUTATIONS: dict[str, tuple[Callable[[Contents], object], str]] = {
    "no iteration": (lambda c: c.pop("iteration"), "`iteration` is missing"),
    "iteration a text": (lambda c: c.update(iteration="5"), "`iteration` is missing or not a number"),
    "iteration a bool": (lambda c: c.update(iteration=True), "`iteration` is missing or not a number"),
    "iteration negative": (lambda c: c.update(iteration=-1), "`iteration` is -1, not between 0 and"),
    "iteration huge": (lambda c: c.update(iteration=10**99), "`iteration` is an integer of 329 bits, not between"),
    "iteration after the end": (lambda c: c.update(iteration=10**9), "`iteration` is 1000000000, not between 0 and 3"),
    "images a tensor": (lambda c: c.update(images=torch.ones(2)), "`images` is missing or not a number"),
    "other epochs": (lambda c: c.update(iterations_per_epoch=7), "epochs have 7 iterations, not 1"),
    "digest a number": (lambda c: c.update(images_digest=3), "`images_digest` is not a string"),
    "no config": (lambda c: c.pop("config"), "`config` is not a YAML mapping"),
    "config of brackets": (lambda c: c.update(config="{a: " * 50_000), "`config` is not a YAML mapping"),
    "config that grows": (lambda c: c.update(config=ALIAS_BOMB), "`config` is not a YAML mapping"),
    "config a list": (lambda c: c.update(config="[1, 2]"), "`config` is not a YAML mapping"),
    "config broken": (lambda c: c.update(config="a: [1"), "`config` is not a YAML mapping"),
    "config nested": (lambda c: c.update(config="[" * 100_000), "`config` is not a YAML mapping"),
    "config with code": (
        lambda c: c.update(config="!!python/object/apply:os.system ['exit 3']"), "`config` is not a YAML mapping",
    ),
    "config of other types": (lambda c: c.update(config="MODEL: 3\nSEED: [1]\n"), "ARCH is resnet18 and was resnet50"),
    "no amp": (lambda c: c.pop("amp"), "`amp` is missing"),
    "amp unknown": (lambda c: c.update(amp="bf16\x1b[2J"), "`amp` is missing or unknown"),
    "no state": (lambda c: c.pop("state_dict"), "`state_dict` is not a dict"),
    "state a list": (lambda c: c.update(state_dict=[1]), "`state_dict` is not a dict"),
    "state by numbers": (lambda c: c.update(state_dict={1: torch.ones(1)}), "`state_dict` is not a dict"),
    "a weight missing": (lambda c: c["state_dict"].pop("module.queue"), "`state_dict` lacks queue"),
    "a weight too many": (lambda c: c["state_dict"].update(x=torch.ones(1)), "holds 'x', which"),
    "a weight a number": (set_tensor(lambda _: 3.5), "conv1.weight is not a plain tensor"),
    "a sparse weight": (set_tensor(lambda t: t.to_sparse()), "conv1.weight is not a plain tensor"),
    "a meta weight": (set_tensor(lambda t: t.to("meta")), "conv1.weight is not a plain tensor"),
    "another shape": (set_tensor(lambda t: t[1:]), r"conv1.weight is \[7, 3"),
    "another type": (set_tensor(lambda t: t.double()), "torch.float64; this run needs"),
    "NaN": (set_tensor(lambda t: t * float("nan")), "conv1.weight holds infinite values or NaN"),
    "pointer outside": (
        lambda c: c["state_dict"].update({"module.queue_ptr": torch.tensor([100])}), "pointer is outside the queue",
    ),
    "no optimizer": (lambda c: c.pop("optimizer"), "`optimizer` holds no state"),
    "optimizer a list": (lambda c: c.update(optimizer=[]), "`optimizer` holds no state"),
    "momenta numbers": (lambda c: momenta(c).update({0: 1}), "`optimizer` holds no state"),
    "a momentum missing": (lambda c: momenta(c).pop(3), r"\d+ momenta for \d+ parameters"),
    "a momentum of another shape": (
        lambda c: momenta(c).update({0: {"momentum_buffer": torch.ones(1)}}), r"momentum_buffer is \[1\]",
    ),
    "an infinite momentum": (
        lambda c: momenta(c)[0]["momentum_buffer"].fill_(float("inf")), "momentum_buffer holds infinite",
    ),
    "scaler a number": (lambda c: c.update(scaler=3), "`scaler` has no positive scale"),
    "scale NaN": (lambda c: c["scaler"].update(scale=float("nan")), "`scaler` has no positive scale"),
    "scaler without steps": (lambda c: c["scaler"].pop("_growth_tracker"), "`scaler` has no count"),
    "processes a text": (lambda c: c.update(processes="2"), "`processes` is missing or not a number"),
    "processes zero": (lambda c: c.update(processes=0), "`processes` is 0, not between 1"),
}  # fmt: skip


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_content_that_no_run_would_write(stored: tuple[list[str], Path], tmp_path: Path, name: str) -> None:
    settings, folder = stored
    contents, (mutate, message) = checkpoint.load(folder / LAST), MUTATIONS[name]
    mutate(contents)
    with pytest.raises(UserError, match=message) as error:
        go_on(settings, contents, tmp_path)
    assert "\n" not in str(error.value) and len(str(error.value)) < 400
    assert [path.name for path in tmp_path.iterdir()] == [LAST]  # nothing was written


def test_a_file_of_an_older_version_goes_on(stored: tuple[list[str], Path], tmp_path: Path) -> None:
    """It has no digest of the images; the next one has."""
    settings, folder = stored
    contents = checkpoint.load(folder / LAST)
    digest = contents.pop("images_digest")
    go_on(settings, contents, tmp_path)
    assert checkpoint.load(tmp_path / LAST)["images_digest"] == digest and len(digest) == 64


def test_settings_in_the_file_are_not_believed(stored: tuple[list[str], Path], tmp_path: Path) -> None:
    settings, folder = stored
    contents = checkpoint.load(folder / LAST)
    contents["optimizer"]["param_groups"][0] |= {
        "maximize": True,
        "nesterov": True,
        "params": ["a"],
        "lr": -1.0,
    }
    go_on(settings, contents, tmp_path)
    (group,) = checkpoint.load(tmp_path / LAST)["optimizer"]["param_groups"]
    assert not group["maximize"] and not group["nesterov"] and group["lr"] > 0


@pytest.mark.parametrize("content", ["a list", "a trap", "half", "text", "nothing"])
def test_files_that_are_no_checkpoint(tmp_path: Path, content: str) -> None:
    last, ran = tmp_path / LAST, tmp_path / "ran"
    if content == "a list":
        torch.save([1], last)
    elif content == "a trap":
        torch.save({"iteration": Trap(f"touch {ran}"), "images": 1}, last)
    else:
        checkpoint.save(last, {"iteration": 1, "w": torch.ones(1000)})
        last.write_bytes({"half": last.read_bytes()[:2000], "text": b"<html>", "nothing": b""}[content])
    (tmp_path / "checkpoint_0007.pth.tar").touch()
    with pytest.raises(
        UserError, match=rf"{LAST}: .*; --resume .*checkpoint_0007\.pth\.tar resumes"
    ) as error:
        resume.find(tmp_path, resume=True)
    assert "\n" not in str(error.value) and not ran.exists()


def test_hostile_pickles(tmp_path: Path) -> None:
    for name, pickle in hostile.hostile_pickles(str(tmp_path / "ran")).items():
        (tmp_path / LAST).write_bytes(b"\x80\x02}" + hostile.text("iteration") + pickle + b"s.")
        with pytest.raises(UserError, match=LAST) as error:
            resume.find(tmp_path, resume=True)
        assert "\n" not in str(error.value) and not (tmp_path / "ran").exists(), name


def test_killed_between_the_first_numbered_file_and_the_last(
    stored: tuple[list[str], Path], tmp_path: Path
) -> None:
    _, folder = stored
    for number in (0, 1):
        (tmp_path / f"checkpoint_000{number}.pth.tar").write_bytes(
            (folder / f"checkpoint_000{number}.pth.tar").read_bytes()
        )
    found = resume.find(tmp_path, resume=True)
    assert found and found.path.name == "checkpoint_0001.pth.tar" and found.count("iteration") == 2


def test_other_processes(
    stored: tuple[list[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings, folder = stored
    contents = checkpoint.load(folder / LAST)
    assert contents["processes"] == 1
    contents["processes"] = 2
    with pytest.raises(UserError, match=r"had 2 process\(es\) and has 1 now: .*add --other-processes"):
        go_on(settings, contents, tmp_path)
    capsys.readouterr()
    go_on(settings, contents, tmp_path, other_processes=True)
    assert capsys.readouterr().out.count("not be bit-identical") == 1
    assert checkpoint.load(tmp_path / LAST)["processes"] == 1


def test_the_flag_reaches_the_run(image_folder: MakeFolder, tmp_path: Path) -> None:
    images, output = image_folder(20), tmp_path / "run"
    contents = run(images, output, *EVERY_STEP, "SOLVER.MAX_ITER", "1")
    checkpoint.save(output / LAST, {**contents, "processes": 3})
    settings = overrides(images, output, *EVERY_STEP, "SOLVER.MAX_ITER", "2")
    assert command(*settings, "--resume").returncode == 2
    done = command(*settings, "--resume", "--other-processes")
    assert done.returncode == 0 and done.stdout.count("had 3 process(es) and has 1 now") == 1, done.stderr


# --- resuming from another checkpoint than the last


def test_from_an_older_checkpoint(
    image_folder: MakeFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Newer checkpoints stay until the run reaches them, though KEEP_LAST would not keep them, and so does the last."""
    images, output = image_folder(40), tmp_path / "run"  # two iterations an epoch
    more = [*EVERY_STEP, "SOLVER.MAX_EPOCH", "4", "SOLVER.CHECKPOINT_PERIOD", "9", "SOLVER.KEEP_LAST", "3"]
    whole = run(images, tmp_path / "whole", *more)
    with before_step(8, kill), pytest.raises(Killed):
        run(images, output, *more)
    files = {path.name: path.read_bytes() for path in checkpoints.numbered(output)}
    last = (output / LAST).read_bytes()
    assert list(files) == [f"checkpoint_000{n}.pth.tar" for n in range(3)]
    capsys.readouterr()
    more[-1] = "1"
    with before_step(4, kill), pytest.raises(Killed):
        run(images, output, *more, resume=output / "checkpoint_0000.pth.tar")
    printed = capsys.readouterr().out
    assert f"resuming from {output / 'checkpoint_0000.pth.tar'}, iteration 2" in printed
    assert (
        "its former state is kept as checkpoint_last.1.pth.tar; lines of metrics.json after iteration 2"
        in printed
    )
    assert {path.name: path.read_bytes() for path in checkpoints.numbered(output)} == files
    assert (output / "checkpoint_last.1.pth.tar").read_bytes() == last
    assert checkpoint.load(output / LAST)["iteration"] == 3
    assert [line["iteration"] for line in log_lines(output)] == [1, 2, 3]
    parts = run(images, output, *more, resume=True)
    assert not list(kill_runs._unequal(whole, parts, where="checkpoint"))
    assert [checkpoints.number(path) for path in checkpoints.numbered(output)] == [3]


def test_from_another_folder_and_past_a_damaged_file(
    stored: tuple[list[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings, folder = stored
    whole = loop_on(settings, tmp_path / "whole", resume=folder / LAST)
    assert whole["iteration"] == 3 and "resuming from" in capsys.readouterr().out
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / LAST).write_bytes(b"damaged")
    with pytest.raises(UserError, match="name another OUTPUT_DIR to start from scratch"):
        loop_on(settings, tmp_path / "run", resume=True)
    parts = loop_on(settings, tmp_path / "run", resume=folder / "checkpoint_0001.pth.tar")
    assert not list(kill_runs._unequal(whole, parts, where="checkpoint"))
    assert (tmp_path / "run" / "checkpoint_last.1.pth.tar").read_bytes() == b"damaged"


def loop_on(settings: list[str], folder: Path, *, resume: bool | Path) -> Contents:
    more = ["OUTPUT_DIR", str(folder), "SOLVER.MAX_ITER", "3"]
    loop.train(config.load("pretrain/moco_v2_R50.yaml", [*settings, *more]), resume=resume)
    return checkpoint.load(folder / LAST)


def test_a_file_that_cannot_be_resumed_from_changes_nothing(
    stored: tuple[list[str], Path], tmp_path: Path
) -> None:
    settings, folder = stored
    contents = checkpoint.load(folder / LAST)
    set_tensor(lambda t: t * float("nan"))(contents)
    checkpoint.save(tmp_path / "bad.pth", contents)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / LAST).write_bytes(b"last")
    with pytest.raises(UserError, match=r"bad\.pth: its .*conv1\.weight holds infinite"):
        loop_on(settings, tmp_path / "run", resume=tmp_path / "bad.pth")
    assert [path.name for path in (tmp_path / "run").iterdir()] == [LAST]
    assert (tmp_path / "run" / LAST).read_bytes() == b"last"


def test_a_missing_file_is_one_line_at_once(tmp_path: Path) -> None:
    done = command(*overrides(tmp_path, tmp_path / "run"), "--resume", "none.pth.tar")
    assert done.returncode == 2 and done.stderr.startswith("error: --resume none.pth.tar: no such file; ")
    assert done.stderr.count("\n") == 1 and not (tmp_path / "run").exists()


def test_rates_come_from_the_config(
    stored: tuple[list[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A changed key is noted by its name; what only the state says otherwise, as such."""
    settings, folder = stored
    contents = checkpoint.load(folder / LAST)
    capsys.readouterr()
    go_on(settings, contents, tmp_path)
    assert "note: --resume" not in capsys.readouterr().out
    contents["optimizer"]["param_groups"][0]["lr"] *= 2
    go_on(settings, contents, tmp_path)
    (note,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("note: --resume"))
    assert note.endswith(" instead of 0.0075: the settings of this run are used")
    rates = [line["lr"] for line in log_lines(tmp_path) if "lr" in line]
    assert rates[-1] == pytest.approx(0.01 * (1 + math.cos(math.pi * 2 / 3)) / 2)
    go_on([*settings, "SOLVER.BASE_LR", "0.02"], contents, tmp_path)
    printed = capsys.readouterr().out
    assert "note: SOLVER.BASE_LR was 0.01 and is 0.02: the result will differ" in printed
    assert "note: --resume" not in printed


# --- values that are not finite


def test_a_weight_that_is_not_finite_is_never_saved(tmp_path: Path) -> None:
    cfg, model, optimizer = tiny_state(tmp_path)
    checkpoints.save(tmp_path, model, optimizer, Progress(1, 2, 4, "off"), cfg=cfg)
    good = (tmp_path / LAST).read_bytes()
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    with torch.no_grad():
        model.bias.fill_(float("nan"))
    with pytest.raises(
        UserError, match=rf"^bias became infinite or NaN by iteration 3; .*{LAST}; try a smaller"
    ):
        checkpoints.save(tmp_path, model, optimizer, Progress(3, 2, 4, "off"), cfg=cfg)
    assert (tmp_path / LAST).read_bytes() == good


def test_the_first_bad_layer_is_named(image_folder: MakeFolder, tmp_path: Path) -> None:
    """A weight breaks between two steps."""
    images, output, held = image_folder(50), tmp_path / "run", []
    save = checkpoints.save

    def hold(folder: Path, model: nn.Module, *arguments: Any, **options: Any) -> None:
        held.append(model)
        save(folder, model, *arguments, **options)

    def damage() -> None:
        with torch.no_grad():
            held[-1].encoder_q.layer2[0].conv1.weight[0, 0, 0, 0] = float("nan")

    with pytest.MonkeyPatch.context() as patch, before_step(5, damage):
        patch.setattr(checkpoints, "save", hold)
        with pytest.raises(
            UserError, match=r"by iteration 5, first of all encoder_q\.layer2\.0\.conv1\.weight; "
        ):
            run(images, output, *EVERY_STEP)
    assert checkpoint.load(output / LAST)["iteration"] == 4


@pytest.mark.parametrize("log_period", ["1", "20"])
def test_a_gpu_run_is_looked_at_when_it_logs_or_saves(
    image_folder: MakeFolder, tmp_path: Path, log_period: str
) -> None:
    """On a GPU `train_step` does not look at the loss."""
    images, output, step = image_folder(50), tmp_path / "run", loop.train_step

    def blind(*arguments: Any, **options: Any) -> torch.Tensor:
        metrics = step(*arguments, **options)
        return metrics * float("nan") if options["iteration"] == 4 else metrics

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "train_step", blind)
        with pytest.raises(UserError, match=r"by iteration 5, while the outputs of all layers are finite; "):
            run(images, output, *EVERY_STEP, "SOLVER.LOG_PERIOD", log_period)
    assert checkpoint.load(output / LAST)["iteration"] == 4


# --- several GPUs


@pytest.mark.parametrize(
    ("kind", "gpus", "expected"), [("cuda", 8, True), ("cuda", 1, False), ("cpu", 8, False)]
)
def test_a_machine_with_unused_gpus(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], kind: str, gpus: int, expected: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr("sys.argv", ["tools/pretrain.py", "--config", "a b.yaml"])
    cfg = config.load("pretrain/moco_v2_R50.yaml")
    start_notes.say_start(cfg, images=1000, per_epoch=3, total=9, device=torch.device(kind), amp="off")
    line = "torchrun --nproc-per-node 8 tools/pretrain.py --config 'a b.yaml'"
    assert (line in capsys.readouterr().out) == expected


@pytest.mark.parametrize(
    ("kind", "native", "setting", "expected"),
    [
        ("cuda", True, "off", True),
        ("cuda", False, "off", False),
        ("cuda", True, "auto", False),
        ("cpu", True, "off", False),
    ],
)
def test_a_gpu_that_is_faster_in_bf16(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], kind: str, native: bool, setting: str,
    expected: bool,
) -> None:  # fmt: skip
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *, including_emulation: native)
    cfg = config.load("pretrain/moco_v2_R50.yaml", ["SOLVER.AMP", setting])
    start_notes.say_start(cfg, images=1000, per_epoch=3, total=9, device=torch.device(kind), amp="off")
    notes = [line for line in capsys.readouterr().out.splitlines() if "faster" in line]
    assert len(notes) == expected and all("SOLVER.AMP auto" in note for note in notes)


def test_log_lines_are_whole(image_folder: MakeFolder, tmp_path: Path) -> None:
    """Killed again and again in one process: each iteration is in the log once."""
    images, output = image_folder(50), tmp_path / "run"
    for iteration in (2, 5, 6):
        with before_step(iteration, kill), pytest.raises(Killed):
            run(images, output, *EVERY_STEP, resume=True)
        with open(output / "metrics.json", "a", encoding="utf-8") as file:
            file.write(json.dumps({"iteration": iteration, "loss": 99})[:20])
    run(images, output, *EVERY_STEP, resume=True)
    assert [line["iteration"] for line in log_lines(output)] == list(range(1, 10))
