"""`tools/train_net.py` in two processes of one machine, and in one process of each of two machines."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from pretrain.common import distributed
from pretrain.common.errors import UserError
from tests.support import detection_data
from tests.support.scripts import ROOT

TINY = [
    "MODEL.INIT", "random", *detection_data.TINY, "MODEL.RESNETS.STEM_OUT_CHANNELS", "16",
    "MODEL.RESNETS.WIDTH_PER_GROUP", "16", "MODEL.RESNETS.RES2_OUT_CHANNELS", "64", "MODEL.FPN.OUT_CHANNELS", "16",
    "SOLVER.MAX_ITER", "6", "SOLVER.STEPS", "(5,)", "SOLVER.CHECKPOINT_PERIOD", "1", "TEST.PICTURES", "0",
]  # fmt: skip


def _start(settings: list[str], output: Path, *flags: str) -> subprocess.Popen[str]:
    command = [
        sys.executable, "tools/train_net.py", "--config-file", "transfer/coco_R50_FPN.yaml", *flags, *settings,
        "OUTPUT_DIR", str(output),
    ]  # fmt: skip
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


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
    """An undisturbed run in two processes."""
    folder = tmp_path_factory.mktemp("two")
    out, err = (run := _start(data, folder, "--num-gpus", "2")).communicate()
    assert run.returncode == 0, err
    assert out.count("iteration 6/6") == 1
    assert json.loads((folder / "results.json").read_text())["hardware"]["processes"] == 2
    return folder


@pytest.mark.slow
def test_killed_then_stopped_then_resumed(data, two: Path, tmp_path: Path) -> None:
    settings, flags = [*data, "DATALOADER.NUM_WORKERS", "1"], ("--num-gpus", "2")
    run = _start(settings, tmp_path, *flags)
    _until_iteration(tmp_path, 2)
    os.killpg(run.pid, signal.SIGKILL)
    run.communicate()
    run = _start(settings, tmp_path, *flags, "--resume")
    _until_iteration(tmp_path, 3)
    run.send_signal(signal.SIGUSR1)  # to the parent alone
    out, err = run.communicate()
    assert run.returncode == 75, err
    assert "the same command with --resume goes on" in out
    run = _start(settings, tmp_path, *flags, "--resume")
    _, err = run.communicate()
    assert run.returncode == 0, err
    assert _equal(two, tmp_path)


@pytest.mark.slow
def test_two_machines(data, two: Path, tmp_path: Path) -> None:
    url = f"tcp://127.0.0.1:{_free_port()}"
    flags = ("--num-machines", "2", "--dist-url", url, "--machine-rank")
    runs = [_start(data, tmp_path, *flags, str(rank)) for rank in (1, 0)]
    ends = [run.communicate() for run in runs]
    assert [run.returncode for run in runs] == [0, 0], ends
    assert [out.count("iteration 6/6") for out, _ in ends] == [0, 1]
    assert _equal(two, tmp_path)


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
