"""The project's scripts, each in a process of its own that has the libraries loaded already.

To import torch and detectron2 takes several seconds of a processor. A server imports them once and forks for each
script, so that hundreds of wrong command lines can be tested.
"""

import atexit
import contextlib
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]
_PRELOADED = [
    "transfer.d2_compat",
    "detectron2.engine",
    "torchvision",
    "cv2",
    "pytest",
    "torch.utils.tensorboard",
]


def server() -> ForkServerContext:
    """Return the server, which starts with the first process that it is asked for."""
    context = multiprocessing.get_context("forkserver")
    # Again each time: d2_compat replaces the list when a test imports detectron2.
    context.set_forkserver_preload(_PRELOADED)
    return context


def run_script(script: str, *arguments: str, timeout: float = 600) -> subprocess.CompletedProcess[str]:
    """Run a script of the project (`tools/x.py`) from the repository root, as a user would."""
    command = [script, *map(str, arguments)]
    with tempfile.TemporaryDirectory() as folder:
        files = [os.path.join(folder, name) for name in ("stdout", "stderr")]
        process = start_script(command, *files)
        try:
            process.join(timeout)
        finally:
            timed_out = process.exitcode is None
            kill_script(process)
        if timed_out:
            raise subprocess.TimeoutExpired(command, timeout)
        outputs = [Path(file).read_text(encoding="utf-8") for file in files]
        return subprocess.CompletedProcess(command, process.exitcode, *outputs)


def start_script(
    command: Sequence[str],
    stdout: str | Path,
    stderr: str | Path,
    *,
    environment: dict[str, str] | None = None,
    forks: bool = False,
) -> ForkServerProcess:
    """Start a script in its own process group.

    Args:
        stdout: a file, or a terminal, which then becomes the one that sends SIGHUP when it is closed.
        stderr: a file, which may be the same one.
        environment: instead of this process's.
        forks: fork the processes that the script starts by `distributed.spawn`, which saves their imports too.
    """
    files = [str(stdout), str(stderr)]
    process = server().Process(target=_run, args=([*command], environment or dict(os.environ), files, forks))
    process.start()
    with contextlib.suppress(ProcessLookupError):
        while process.exitcode is None and os.getpgid(process.pid) != process.pid:
            time.sleep(0.002)
    return process


def kill_script(process: ForkServerProcess) -> None:
    """Kill a script and its loader workers by SIGKILL, unless it has ended."""
    if process.exitcode is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.join()


def spawn(
    function: Callable[..., None], args: tuple[Any, ...] = (), nprocs: int = 1, join: bool = True
) -> torch.multiprocessing.ProcessContext | None:
    """Replace `torch.multiprocessing.spawn` in the tests: the same processes, forked from the server."""
    arguments = (dict(os.environ), function, args)
    server()
    return torch.multiprocessing.start_processes(
        _in_environment, arguments, nprocs, join, start_method="forkserver"
    )


def _in_environment(
    index: int, environment: dict[str, str], function: Callable[..., None], args: tuple[Any, ...]
) -> None:
    os.environ.clear()
    os.environ.update(environment)
    function(index, *args)


def _run(command: list[str], environment: dict[str, str], files: list[str], forks: bool) -> None:
    os.setsid()
    # Both are ignored if the tests run in the background, SIGHUP under nohup.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    # Loader workers start as they do in a fresh interpreter, not as this process did.
    multiprocessing.set_start_method(multiprocessing.get_all_start_methods()[0], force=True)
    os.chdir(ROOT)
    os.environ.clear()
    os.environ.update(environment)
    if threads := environment.get("OMP_NUM_THREADS"):  # which torch read when the server loaded it
        torch.set_num_threads(int(threads))
    for number, name in enumerate([os.devnull, *files]):
        file = os.open(name, os.O_RDWR | os.O_CREAT | os.O_APPEND)
        os.dup2(file, number)
        os.close(file)
    if os.isatty(1):  # the streams that were inherited expect files
        sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
    if forks:
        torch.multiprocessing.spawn = partial(torch.multiprocessing.start_processes, start_method="fork")
    script = ROOT / command[0]
    sys.argv = command
    sys.path.insert(0, str(script.parent))
    try:
        runpy.run_path(str(script), run_name="__main__")
    finally:
        atexit._run_exitfuncs()  # multiprocessing leaves them out
