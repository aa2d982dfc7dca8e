"""The phases of a step: every moment belongs to one phase, and the steps are those of training."""

import re

import pytest
import torch

from pretrain import config
from pretrain.benchmark import step
from pretrain.benchmark.step import PHASES, Watch
from tests.support.scripts import run_script

TINY = [
    "MODEL.ARCH", "resnet18", "MODEL.WIDTH", "0.125", "MODEL.BN_GROUP_SIZE", "2", "SOLVER.IMS_PER_BATCH", "4",
    "MOCO.K", "16", "INPUT.SIZE", "32", "DATA.NUM_WORKERS", "0", "SOLVER.AMP", "off", "DEVICE", "cpu",
]  # fmt: skip


def test_every_moment_belongs_to_one_phase(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock is replaced by one that the test advances."""
    now = [0.0]
    monkeypatch.setattr(step.time, "perf_counter", lambda: now[0])

    def spend(seconds: float) -> None:
        now[0] += seconds

    watch = Watch(torch.device("cpu"))
    watch.read()
    spend(1)
    with watch.on("queue"):
        spend(10)
        watch.timed("forward k", spend)(100)
        watch.switch("backward")  # as the hook in the middle of a backward pass does
        spend(1000)
    spend(2)
    wanted = {"other": 3, "queue": 10, "forward k": 100, "backward": 1000}
    assert watch.read() == {phase: wanted.get(phase, 0) for phase in PHASES}
    spend(5)
    assert watch.read() == {phase: 5 if phase == "other" else 0 for phase in PHASES}


VIT = ["MODEL.NORM", "SyncBN", "MODEL.ARCH", "vit", "MODEL.WIDTH", "1", "MODEL.VIT.WIDTH", "24", "MODEL.VIT.DEPTH", "2",
       "MODEL.VIT.HEADS", "3", "MODEL.HIDDEN", "32", "SOLVER.CHUNK", "3"]  # fmt: skip


@pytest.mark.parametrize("mechanism", ["moco", "endtoend", "memorybank", "mocov3"])
def test_every_mechanism(mechanism: str, capsys: pytest.CaptureFixture[str]) -> None:
    backward, more = torch.Tensor.backward, VIT if mechanism == "mocov3" else []
    cfg = config.load("pretrain/moco_v2_R50.yaml", [*TINY, "MOCO.MECHANISM", mechanism, *more])
    report = step.run(cfg, iterations=2)
    assert torch.Tensor.backward is backward
    assert report.keys() == set(PHASES) and all(len(times) == 2 for times in report.values())
    nothing = {phase for phase, times in report.items() if not any(times)}
    assert nothing <= ({"forward k"} if mechanism == "memorybank" else set())
    assert min(report["backward"]) > 0
    out = capsys.readouterr().out
    assert re.search(r"everything but the encoders: \d+\.\d%\n$", out) and f", {mechanism}, " in out


def test_the_steps_are_those_of_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """The weights after the same steps are equal with and without the clock."""
    kept = []
    set_up = step.set_up
    monkeypatch.setattr(step, "set_up", lambda *a, **k: kept.append(set_up(*a, **k)) or kept[-1])
    cfg = config.load("pretrain/moco_v2_R50.yaml", TINY)
    step.run(cfg, iterations=2)
    monkeypatch.setattr(step, "measure", lambda run: _plain(run) or [dict.fromkeys(PHASES, 1.0)] * 9)
    step.run(cfg, iterations=2)
    timed, plain = (run.model for run in kept)
    for mine, theirs in zip(timed.parameters(), plain.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    assert torch.equal(timed.queue, plain.queue)


def _plain(run: step.Run) -> None:
    batches = step.make_train_loader(run.files, run.cfg, start=0, stop=run.total, device=run.device)
    for iteration, batch in enumerate(batches):
        views, images = step.loop.to_device(batch, run)
        step.loop.step(run, views, images, iteration)


@pytest.mark.slow
def test_command_line() -> None:
    done = run_script("tools/benchmark.py", "step", "--iterations", "1", *TINY)
    assert done.returncode == 0, done.stderr
    assert "everything but the encoders: " in done.stdout
    refused = run_script("tools/benchmark.py", "step", "--iterations", "0")
    assert refused.returncode == 2 and "--iterations" in refused.stderr
