"""The terminal of a training run is closed: the state is saved, as after SIGTERM; under nohup the run continues."""

import fcntl
import json
import os
import pty
import select
import struct
import termios
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pretrain.common.signals import STOPPED
from pretrain.tensor_files import checkpoint
from tests.support import detection_data
from tests.support.pretrain_runs import SMALL, MakeFolder
from tests.support.scripts import kill_script, run_script, start_script

NOHUP = """
import runpy, signal, sys
signal.signal(signal.SIGHUP, signal.SIG_IGN)
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
Command = Callable[..., list[str]]


def lines(output: Path) -> int:
    path = output / "metrics.json"
    return len(path.read_text().splitlines()) if path.is_file() else 0


def hang_up(command: list[str], output: Path) -> tuple[int | None, str]:
    """Start a command in a terminal of its own and close that after two iterations. Return status and output."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    process = start_script(command, os.ttyname(slave), os.ttyname(slave))
    shown, end = b"", time.monotonic() + 300
    try:
        while lines(output) < 2:
            assert time.monotonic() < end and process.exitcode is None, shown.decode()
            if select.select([master], [], [], 0.02)[0]:
                shown += os.read(master, 65536)
        os.close(slave)
        os.close(master)  # as a terminal's window does: SIGHUP for all, and EIO for what they print
        process.join(300)
    finally:
        kill_script(process)
    return process.exitcode, shown.decode()


@pytest.fixture
def pretraining(image_folder: MakeFolder, tmp_path: Path) -> Command:
    images = image_folder(100)
    return lambda *more: [
        "tools/pretrain.py", "--config", "pretrain/moco_v2_R50.yaml", *SMALL, "INPUT.SIZE", "32",
        "DATA.NUM_WORKERS", "1", "SOLVER.SAVE_MINUTES", "0", "SOLVER.CHECKPOINT_PERIOD", "1000", "DATA.TRAIN",
        str(images), "OUTPUT_DIR", str(tmp_path / "run"), *more,
    ]  # fmt: skip


@pytest.fixture
def finetuning(tmp_path: Path) -> Command:
    data = detection_data.tiny_run(tmp_path / "data")
    return lambda *more: [
        "tools/train_net.py", "--config", "transfer/coco_R50_FPN.yaml", "MODEL.INIT", "random",
        *detection_data.TINY, *detection_data.NARROW, *data, "TEST.PICTURES", "0", "DATALOADER.NUM_WORKERS", "1",
        "SOLVER.CHECKPOINT_PERIOD", "100000", "OUTPUT_DIR", str(tmp_path / "run"), *more,
    ]  # fmt: skip


@pytest.mark.slow
def test_pretraining_is_saved_and_resumed(pretraining: Command, tmp_path: Path) -> None:
    output = tmp_path / "run"
    status, shown = hang_up(pretraining("SOLVER.MAX_EPOCH", "4000"), output)
    assert status == STOPPED and "%|" in shown
    saved = checkpoint.load(output / "checkpoint_last.pth.tar")["iteration"]
    assert saved == lines(output)
    done = run_script(*pretraining("SOLVER.MAX_EPOCH", "4000", "SOLVER.MAX_ITER", str(saved + 2), "--resume"))
    assert done.returncode == 0 and f"iteration {saved}\n" in done.stdout, done.stderr
    assert lines(output) == saved + 2


@pytest.mark.slow
def test_finetuning_is_saved_and_resumed(finetuning: Command, tmp_path: Path) -> None:
    output, length = tmp_path / "run", ("SOLVER.MAX_ITER", "30", "SOLVER.STEPS", "(20,)")
    status, shown = hang_up(finetuning(*length), output)
    assert status == STOPPED and "%|" in shown
    saved = torch.load(output / "model_last.pth", weights_only=True)["iteration"]
    assert saved == lines(output)
    done = run_script(*finetuning(*length, "--resume"))
    assert done.returncode == 0 and f"iteration {saved + 1}/30" in done.stdout, done.stderr
    assert json.loads((output / "results.json").read_text())["iterations"] == lines(output) - 1 == 30


@pytest.mark.slow
def test_under_nohup_a_run_continues_without_its_terminal(pretraining: Command, tmp_path: Path) -> None:
    (tmp_path / "nohup.py").write_text(NOHUP)
    command = [str(tmp_path / "nohup.py"), *pretraining("SOLVER.MAX_ITER", "9")]
    assert hang_up(command, tmp_path / "run")[0] == 0
    assert lines(tmp_path / "run") == 9
