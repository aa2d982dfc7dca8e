"""A stage runs once, runs again when something that it depends on changes, and resumes after an interruption."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pretrain.common.errors import UserError
from tests.support.scripts import ROOT
from transfer.demo import stages
from transfer.demo.stages import Stage

SCRIPT = """
import sys
from pathlib import Path
log, output, source = map(Path, sys.argv[1:4])
log.open("a").write(" ".join(sys.argv[4:]) + ";")
text = source.read_text()
if text == "fail":
    sys.exit(3)
output.parent.mkdir(parents=True, exist_ok=True)
output.write_text(text)
"""


class Workshop:
    def __init__(self, folder: Path) -> None:
        self.folder, self.log, self.source = folder, folder / "log", folder / "source"
        (folder / "script.py").write_text(SCRIPT)
        self.source.write_text("one")

    def stage(self, name: str = "work", *flags: str, settings: str = "") -> Stage:
        output = self.folder / name / "out"
        command = (str(self.folder / "script.py"), str(self.log), str(output), str(self.source), *flags)
        return Stage(name, command, output, (self.source,), settings, resumable=True)

    def run(self, *stages_: Stage) -> list[bool]:
        return [
            record["cached"] for record in stages.run(stages_ or (self.stage(),), self.folder / "records")
        ]

    def calls(self) -> int:
        return self.log.read_text().count(";")


@pytest.fixture
def workshop(tmp_path: Path) -> Workshop:
    return Workshop(tmp_path)


def test_runs_once_and_again_after_a_change(workshop: Workshop) -> None:
    assert workshop.run() == [False]
    assert workshop.run() == [True]
    workshop.source.write_text("two")
    assert workshop.run() == [False]
    assert workshop.run(workshop.stage(settings="lr: 1")) == [False]
    assert workshop.run(workshop.stage("work", "--flag")) == [False]
    assert workshop.calls() == 4
    assert workshop.stage().output.read_text() == "two"


def test_lost_output_is_made_again(workshop: Workshop) -> None:
    workshop.run()
    workshop.stage().output.unlink()
    assert workshop.run() == [False]


def test_failure_names_the_stage_and_spares_the_others(workshop: Workshop) -> None:
    (workshop.folder / "good").mkdir()
    good = Workshop(workshop.folder / "good")
    workshop.source.write_text("fail")
    with pytest.raises(UserError, match=r"bad \(exit status 3\)"):
        workshop.run(workshop.stage("bad"), good.stage("fine"))
    assert good.stage("fine").output.exists()
    assert workshop.run(good.stage("fine")) == [True]


def test_same_work_is_resumed_and_changed_work_starts_clean(workshop: Workshop) -> None:
    workshop.source.write_text("fail")
    with pytest.raises(UserError):
        workshop.run()
    with pytest.raises(UserError):
        workshop.run()
    assert workshop.log.read_text() == ";--resume;"
    leftover = workshop.stage().output.parent / "leftover"
    leftover.parent.mkdir()
    leftover.write_text("of the failed run")
    workshop.source.write_text("new")
    workshop.run()
    assert workshop.log.read_text() == ";--resume;;"
    assert not leftover.exists()


def test_side_by_side_lines_carry_the_name_and_share_the_cores(
    workshop: Workshop, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    script = workshop.folder / "talk.py"
    script.write_text("import os; print('threads', os.environ['OMP_NUM_THREADS'])")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(stages.os, "sched_getaffinity", lambda _: set(range(6)), raising=False)
    pair = [Stage(name, (str(script),), script) for name in ("a", "b")]
    stages.run(pair, workshop.folder / "records")
    lines = capfd.readouterr().out.splitlines()
    assert "[a] threads 3" in lines
    assert "[b] threads 3" in lines


def test_lost_part_is_made_again(workshop: Workshop) -> None:
    whole = [True]
    stage = dataclasses.replace(workshop.stage(), is_whole=lambda: whole[0])
    assert workshop.run(stage) == [False]
    assert workshop.run(stage) == [True]
    whole[0] = False
    assert workshop.run(stage) == [False]


# A command that saves its state on SIGTERM and has a worker, as a training run has; its worker ignores SIGTERM.
TRAINING = """
import os, signal, subprocess, sys, time
from pathlib import Path
folder = Path(sys.argv[1])
ignore = lambda: signal.signal(signal.SIGTERM, signal.SIG_IGN)
worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(120)"], preexec_fn=ignore)
signal.signal(signal.SIGTERM, lambda *_: ((folder / "saved").touch(), sys.exit(75)))
(folder / "pids.new").write_text(f"{os.getpid()} {worker.pid}")
(folder / "pids.new").rename(folder / "pids")
time.sleep(120)
"""
DEMO = """
import sys
from pathlib import Path
from pretrain.common.errors import run_tool
from transfer.demo import stages
folders = [Path(name) for name in sys.argv[1:]]
script = str(folders[0].parent / "training.py")
pair = [stages.Stage(f"train-{f.name}", (script, str(f)), f / "out", resumable=True) for f in folders]
run_tool(lambda: stages.run(pair, folders[0].parent / "records"))
"""


def until(true: Callable[[], bool]) -> None:
    for _ in range(3000):
        if true():
            return
        time.sleep(0.01)
    raise AssertionError("still not")


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(
    sys.platform != "linux", reason="reads /proc, and only Linux reports the death of a parent"
)
@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGTERM, 75), (signal.SIGHUP, 75), (signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)],
)
def test_a_signal_to_the_demo_alone_ends_its_commands_too(
    tmp_path: Path, number: signal.Signals, status: int
) -> None:
    (tmp_path / "training.py").write_text(TRAINING)
    (tmp_path / "demo.py").write_text(DEMO)
    folders = [tmp_path / name for name in ("a", "b")]
    for folder in folders:
        folder.mkdir()
    demo = subprocess.Popen(
        [sys.executable, tmp_path / "demo.py", *folders], env={**os.environ, "PYTHONPATH": str(ROOT)},
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),  # ignored if the tests run under nohup
    )  # fmt: skip
    try:
        until(lambda: all((folder / "pids").exists() for folder in folders))
        pids = [int(pid) for folder in folders for pid in (folder / "pids").read_text().split()]
        assert all(map(is_alive, pids))
        demo.send_signal(number)
        assert demo.wait(30) == status
    finally:
        demo.kill()
        demo.wait()
    until(lambda: all((folder / "saved").exists() for folder in folders))
    if number != signal.SIGKILL:  # then only the commands get a signal; ours end their workers themselves
        assert not any(map(is_alive, pids))
    for pid in filter(is_alive, pids):
        os.kill(pid, signal.SIGKILL)
    records = [json.loads(path.read_text()) for path in (tmp_path / "records").glob("*.json")]
    assert [record["done"] for record in records] == [False, False]
