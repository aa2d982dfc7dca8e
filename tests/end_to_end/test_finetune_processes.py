"""`tools/train_net.py` in two processes of one machine, and in one process of each of two machines."""

import json
import os
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from pretrain.common import distributed
from pretrain.common.errors import UserError
from tests.support import detection_data
from tests.support.scripts import ROOT, kill_script, start_script

TINY = [
    "MODEL.INIT", "random", *detection_data.TINY, *detection_data.NARROW,
    "SOLVER.MAX_ITER", "6", "SOLVER.STEPS", "(5,)", "SOLVER.CHECKPOINT_PERIOD", "1", "TEST.PICTURES", "0",
]  # fmt: skip


def _command(settings: list[str], output: Path, *flags: str) -> list[str]:
    return [
        "tools/train_net.py", "--config-file", "transfer/coco_R50_FPN.yaml", *flags, *settings,
        "OUTPUT_DIR", str(output),
    ]  # fmt: skip


class Run:
    """A started run; what it prints is in a file."""

    def __init__(self, log: Path, *arguments: Any, forks: bool = True) -> None:
        self.log = log
        self.process = start_script(_command(*arguments), log, log, forks=forks)

    def end(self, timeout: float = 300) -> tuple[int | None, str]:
        """Wait for the end. Return the exit status and what the run printed."""
        self.process.join(timeout)
        kill_script(self.process)
        return self.process.exitcode, self.log.read_text()


def _until_iteration(folder: Path, iteration: int) -> None:
    for _ in range(30000):
        if (folder / "metrics.json").exists() and f'"iteration": {iteration}' in (
            folder / "metrics.json"
        ).read_text():
            return
        time.sleep(0.01)
    pytest.fail(f"iteration {iteration} did not come")


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "model_final.pth", weights_only=True)["model"]


def _equal(first: Path, second: Path) -> bool:
    a, b = _weights(first), _weights(second)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return [*TINY, *detection_data.tiny_run(tmp_path_factory.mktemp("data"))]


@pytest.fixture(scope="module")
def two(data: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run in two processes, which are fresh ones, as for a user."""
    folder = tmp_path_factory.mktemp("two")
    status, out = Run(folder / "log", data, folder, "--num-gpus", "2", forks=False).end()
    assert status == 0, out
    assert out.count("iteration 6/6") == 1
    assert json.loads((folder / "results.json").read_text())["hardware"]["processes"] == 2
    return folder


@pytest.mark.slow
def test_killed_then_stopped_then_resumed(data, two: Path, tmp_path: Path) -> None:
    settings, output = [*data, "DATALOADER.NUM_WORKERS", "1"], tmp_path / "run"

    def start(log: str, *flags: str) -> Run:
        return Run(tmp_path / log, settings, output, "--num-gpus", "2", *flags)

    run = start("first")
    _until_iteration(output, 2)
    os.killpg(run.process.pid, signal.SIGKILL)
    run.end()
    run = start("second", "--resume")
    _until_iteration(output, 3)
    os.kill(run.process.pid, signal.SIGUSR1)  # to the parent alone
    status, out = run.end()
    assert status == 75, out
    assert "the same command with --resume continues" in out
    status, out = start("third", "--resume").end()
    assert status == 0, out
    assert _equal(two, output)


@pytest.mark.slow
def test_two_machines(data, two: Path, tmp_path: Path) -> None:
    url = f"tcp://127.0.0.1:{_free_port()}"
    flags = ("--num-machines", "2", "--dist-url", url, "--machine-rank")
    runs = [Run(tmp_path / str(rank), data, tmp_path / "run", *flags, str(rank)) for rank in (1, 0)]
    ends = [run.end() for run in runs]
    assert [status for status, _ in ends] == [0, 0], ends
    assert [out.count("iteration 6/6") for _, out in ends] == [0, 1]
    assert _equal(two, tmp_path / "run")


def test_port_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        for name, value in {
            "WORLD_SIZE": "2",
            "RANK": "0",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
        }.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(UserError, match=rf"--dist-url tcp://127\.0\.0\.1:{port}: the port is in use"):
            distributed.init_from_env(torch.device("cpu"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"machines": 2}, r"--dist-url auto is for one machine: give tcp://HOST:PORT of machine 0"),
        ({"machines": 2, "machine_rank": 2, "url": "tcp://a:1"}, "--machine-rank 2"),
        ({"machines": 0}, "--num-machines 0"),
        ({"url": "host:29500"}, r"--dist-url host:29500: give auto, or tcp://HOST:PORT"),
        ({"url": "tcp://host:99999"}, r"--dist-url tcp://host:99999: give auto"),
    ],
)
def test_addresses_that_cannot_be(options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        distributed.spawn(lambda: None, 1, **options)


def test_slurm_template_is_a_shell_script() -> None:
    script = ROOT / "tools/slurm/job.sbatch"
    assert subprocess.run(["bash", "-n", script], check=False).returncode == 0
    alone = subprocess.run(["bash", script], capture_output=True, text=True, check=False)
    assert alone.returncode == 2 and "usage" in alone.stderr
