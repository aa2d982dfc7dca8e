"""The project's scripts, each in a process of its own that has the libraries loaded already.

To import torch and detectron2 takes several seconds of a processor. A server imports them once and forks for each
script, so that hundreds of wrong command lines can be tested.
"""

import atexit
import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["transfer.d2_compat", "detectron2.engine", "torchvision", "cv2"])


def run_script(script: str, *arguments: str, timeout: float = 600) -> subprocess.CompletedProcess[str]:
    """Run a script of the project (`tools/x.py`) from the repository root, as a user would."""
    command = [script, *map(str, arguments)]
    with tempfile.TemporaryDirectory() as folder:
        files = [os.path.join(folder, name) for name in ("stdout", "stderr")]
        process = _SERVER.Process(target=_run, args=(command, dict(os.environ), files))
        process.start()
        process.join(timeout)
        if process.exitcode is None:
            process.kill()
            process.join()
            raise subprocess.TimeoutExpired(command, timeout)
        said = [Path(file).read_text(encoding="utf-8") for file in files]
        return subprocess.CompletedProcess(command, process.exitcode, *said)


def _run(command: list[str], environment: dict[str, str], files: list[str]) -> None:
    os.chdir(ROOT)
    os.environ.clear()
    os.environ.update(environment)
    for number, name in enumerate([os.devnull, *files]):
        file = os.open(name, os.O_RDWR | os.O_CREAT)
        os.dup2(file, number)
        os.close(file)
    script = ROOT / command[0]
    sys.argv = command
    sys.path.insert(0, str(script.parent))
    try:
        runpy.run_path(str(script), run_name="__main__")
    finally:
        atexit._run_exitfuncs()  # multiprocessing leaves them out
