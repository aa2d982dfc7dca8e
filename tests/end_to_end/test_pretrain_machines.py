"""Pre-training under signals, torchrun on one machine and on two, and the SLURM template."""

import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from pretrain.common import signals
from pretrain.tensor_files import checkpoint
from pretrain.train.checkpoints import LAST
from tests.support.kills import kill_runs
from tests.support.pretrain_runs import MakeFolder, log_lines, overrides
from tests.support.scripts import ROOT, kill_script, start_script

CONFIG = ["tools/pretrain.py", "--config", "pretrain/moco_v2_R50.yaml"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]
SMALLER = ["INPUT.SIZE", "32", "SOLVER.IMS_PER_BATCH", "16", "MODEL.BN_GROUP_SIZE", "8", "DATA.NUM_WORKERS", "1",
           "LOG.TENSORBOARD", "False", "SOLVER.CHECKPOINT_PERIOD", "1000"]  # fmt: skip
LONG = [*SMALLER, "SOLVER.MAX_EPOCH", "4000"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}

pytestmark = pytest.mark.slow


@contextmanager
def started(command: list[str], **environment: str) -> Iterator[subprocess.Popen[str]]:
    """A command in a process group of its own, of which nothing is left at the end."""
    run = subprocess.Popen(
        command, cwd=ROOT, env={**ENVIRONMENT, **environment}, text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        yield run
    finally:
        with suppress(ProcessLookupError):
            os.killpg(run.pid, signal.SIGKILL)
        run.communicate()


def wait_for(what: Callable[[], bool], has_ended: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 240
    while not what():
        assert time.monotonic() < deadline and not has_ended()
        time.sleep(0.02)


def lines_of(output: Path, least: int) -> Callable[[], bool]:
    return lambda: (output / "metrics.json").is_file() and len(log_lines(output)) >= least


def finish(*command: str, **environment: str) -> str:
    with started(list(command), **environment) as run:
        out, _ = run.communicate(timeout=300)
    assert run.returncode == 0, out
    return out


def two_processes(output: Path, arguments: list[str]) -> str:
    """Train to the end in two processes of one machine, started without torchrun. Return what they print."""
    kill_runs._session(output, arguments, 2, None, random.Random(0))
    return output.with_suffix(".output").read_text()


def last(output: Path) -> dict[str, Any]:
    return checkpoint.load(output / LAST)


def equal(first: Path, second: Path) -> bool:
    return not list(kill_runs._unequal(last(first), last(second), where="checkpoint"))


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, 130), (signal.SIGTERM, signals.STOPPED), (signal.SIGUSR1, signals.STOPPED)],
)
def test_a_signal_saves_the_state(
    image_folder: MakeFolder, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    """It comes to every process of the job, loader workers too; nothing has been saved before."""
    images, output, log = image_folder(100), tmp_path / "run", tmp_path / "log"
    arguments = overrides(images, output, *LONG, "SOLVER.SAVE_MINUTES", "0")
    process = start_script([*CONFIG, *arguments], log, log)
    try:
        wait_for(lines_of(output, 2), lambda: process.exitcode is not None)
        os.killpg(process.pid, number)
        process.join(180)
    finally:
        kill_script(process)
    out = log.read_text()
    assert process.exitcode == code and "--resume" in out and "Traceback" not in out, out
    assert last(output)["iteration"] == log_lines(output)[-1]["iteration"]


def test_torchrun_passes_a_signal_on(image_folder: MakeFolder, tmp_path: Path) -> None:
    """To torchrun alone. Both processes leave after the same step; then a stopped run ends as an undisturbed one."""
    images, output = image_folder(100), tmp_path / "run"
    launcher = [*TORCHRUN, "--standalone", "--nproc-per-node", "2", *CONFIG]
    with started([*launcher, *overrides(images, output, *LONG)]) as run:
        wait_for(lines_of(output, 2), lambda: run.poll() is not None)
        run.send_signal(signal.SIGTERM)
        out, _ = run.communicate(timeout=180)
    assert run.returncode != 0 and out.count("everything is saved") == 1, out
    saved = last(output)["iteration"]
    assert saved == log_lines(output)[-1]["iteration"]
    settings = [*LONG, "SOLVER.MAX_ITER", str(saved + 2)]
    out = two_processes(output, overrides(images, output, *settings))
    assert out.count("finished: ") == 1 and "2 process(es)" in out
    two_processes(tmp_path / "whole", overrides(images, tmp_path / "whole", *settings))
    assert equal(tmp_path / "whole", output)


def test_torchrun_restarts_a_run_whose_process_died(image_folder: MakeFolder, tmp_path: Path) -> None:
    """`--max-restarts` with `--resume`: the run continues from its last state, and ends as an undisturbed one.

    The process kills itself in the middle of an epoch, so that some steps are lost and repeated.
    """
    images, output, script = image_folder(100), tmp_path / "run", tmp_path / "once.py"
    script.write_text(
        f"""import os, runpy, signal, sys
sys.path.insert(0, {str(ROOT)!r})
if os.environ["TORCHELASTIC_RESTART_COUNT"] == "0" and os.environ["RANK"] == "1":
    from pretrain.train import loop
    step = loop.step
    def dies(run, views, images, iteration):
        if iteration == 8:  # an epoch has 6 iterations
            os.kill(os.getpid(), signal.SIGKILL)
        return step(run, views, images, iteration)
    loop.step = dies
sys.argv[0] = "tools/pretrain.py"
runpy.run_module("transfer.programs.pretrain", run_name="__main__")
"""
    )
    settings = [*SMALLER, "SOLVER.MAX_ITER", "14", "SOLVER.MAX_EPOCH", "3"]
    launcher = [
        *TORCHRUN,
        "--standalone",
        "--nproc-per-node",
        "2",
        "--max-restarts",
        "1",
        str(script),
        *CONFIG[1:],
    ]
    arguments = overrides(images, output, *settings)
    out = finish(*launcher, "--resume", *arguments)
    assert "--resume: no checkpoint in" in out and out.count("resuming from") == 1, out
    assert ", iteration 6" in out and out.count("finished: ") == 1, out
    two_processes(tmp_path / "whole", overrides(images, tmp_path / "whole", *settings))
    assert equal(tmp_path / "whole", output)


@pytest.fixture(scope="module")
def one_node(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Images, and the end of a run in two processes of one machine."""
    folder = tmp_path_factory.mktemp("one")
    images = kill_runs._images(folder / "images")
    two_processes(folder / "run", overrides(images, folder / "run", *SMALLER, "SOLVER.MAX_ITER", "5"))
    return images, folder / "run"


@pytest.mark.parametrize("rendezvous", ["static", "c10d"])
def test_two_machines(one_node: tuple[Path, Path], tmp_path: Path, rendezvous: str) -> None:
    """Two torchruns, as on two nodes, with one process each; as two processes on one node, to the bit."""
    (images, one), output = one_node, tmp_path / "nodes"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    if rendezvous == "static":
        address = ["--master-addr", "127.0.0.1", "--master-port", str(port)]
    else:
        address = ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{port}", "--rdzv-id", "7"]
    node = [*TORCHRUN, "--nnodes", "2", "--nproc-per-node", "1", *address]
    arguments = [*CONFIG, *overrides(images, output, *SMALLER, "SOLVER.MAX_ITER", "5")]
    with (
        started([*node, "--node-rank", "0", *arguments]) as first,
        started([*node, "--node-rank", "1", *arguments]) as second,
    ):
        outs = [run.communicate(timeout=240)[0] for run in (first, second)]
    assert (first.returncode, second.returncode) == (0, 0), outs
    assert sum(out.count("finished: ") for out in outs) == 1
    assert equal(one, output)


def test_tasks_of_srun_without_torchrun(one_node: tuple[Path, Path], tmp_path: Path) -> None:
    """`srun --ntasks 2 python tools/pretrain.py`: one run, bit-identical to that of two processes of torchrun."""
    (images, one), output = one_node, tmp_path / "tasks"
    arguments = [*CONFIG, *overrides(images, output, *SMALLER, "SOLVER.MAX_ITER", "5")]
    step = {**ENVIRONMENT, "SLURM_JOB_ID": str(os.getpid()), "SLURM_STEP_ID": "0", "SLURM_NNODES": "1",
            "SLURM_STEP_NUM_TASKS": "2", "SLURM_NTASKS": "2"}  # fmt: skip
    logs = [tmp_path / f"log{task}" for task in range(2)]
    tasks = []
    for task, log in enumerate(logs):
        own = step | {"SLURM_PROCID": str(task), "SLURM_LOCALID": str(task)}
        tasks.append(start_script(arguments, log, log, environment=own))
    try:
        for task in tasks:
            task.join(240)
    finally:
        for task in tasks:
            kill_script(task)
    outs = [log.read_text() for log in logs]
    assert [task.exitcode for task in tasks] == [0, 0], outs
    assert "2 process(es)" in outs[0] and "process(es)" not in outs[1]
    assert equal(one, output)


# What SLURM's commands do for one node: srun starts the task in a session of its own, scancel signals it.
FAKES = {
    "scontrol": 'case "$1" in show) echo 127.0.0.1;; *) echo "$@" >> "$FAKES/calls";; esac',
    "srun": 'while [[ $1 == --* ]]; do echo "$1" >> "$FAKES/options"; shift; done; echo $$ > "$FAKES/step"; '
    'echo "$@" >> "$FAKES/launched"; exec "$PYTHON" -m torch.distributed.run "${@:2}"',
    "scancel": 'echo "$@" >> "$FAKES/calls"; kill -TERM "$(cat "$FAKES/step")"',
}


def test_slurm_template_saves_and_queues_again(image_folder: MakeFolder, tmp_path: Path) -> None:
    images, output, fakes = image_folder(100), tmp_path / "run", tmp_path / "fakes"
    fakes.mkdir()
    for name, text in FAKES.items():
        (fakes / name).write_text(f"#!/bin/bash\n{text}\n")
        (fakes / name).chmod(0o755)
    environment = {"PATH": f"{fakes}:{os.environ['PATH']}", "FAKES": str(fakes), "PYTHON": sys.executable,
                   "SLURM_JOB_NODELIST": "n1", "SLURM_JOB_NUM_NODES": "1", "SLURM_GPUS_ON_NODE": "1",
                   "SLURM_JOB_ID": str(os.getpid()), "SLURM_CPUS_PER_TASK": "40"}  # fmt: skip
    job = ["bash", "tools/slurm/job.sbatch", *CONFIG]
    with started([*job, *overrides(images, output, *LONG)], **environment) as run:
        wait_for(lines_of(output, 2), lambda: run.poll() is not None)
        run.send_signal(signal.SIGUSR1)  # to the batch shell alone
        out, _ = run.communicate(timeout=180)
    assert run.returncode == 0 and "everything is saved" in out, out
    assert (fakes / "calls").read_text().split("\n")[1] == f"requeue {os.getpid()}"
    assert (fakes / "options").read_text() == "--kill-on-bad-exit=1\n--cpus-per-task=40\n"
    assert "torchrun --nnodes 1 --nproc-per-node 1 " in (fakes / "launched").read_text()
    saved = last(output)["iteration"]
    end = ["SOLVER.MAX_ITER", str(saved + 2)]
    assert "finished: " in finish(*job, *overrides(images, output, *LONG, *end), **environment)
    assert last(output)["iteration"] == saved + 2
