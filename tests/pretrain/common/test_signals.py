"""Processes that end with the one that started them, however that ends."""

import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch.distributed as td

from pretrain.common import distributed, launcher
from pretrain.common.errors import UserError
from pretrain.common.signals import stop_groups
from tests.support.scripts import ROOT

# A launcher that serves an address as torchrun does, and starts one process; without torch, to be quick.
LAUNCHER = """
import os, socket, subprocess, sys, time
server = socket.create_server(("127.0.0.1", 0))
own = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1",
       "MASTER_PORT": str(server.getsockname()[1]), "TORCHELASTIC_RUN_ID": "none",
       "TORCHELASTIC_USE_AGENT_STORE": "True"}
command = [sys.executable, "-c", sys.argv[1], *sys.argv[2:]]
subprocess.Popen(command, env={**os.environ, **own}, start_new_session=True).wait()
"""
TRAIN = """
import os, sys, time
from pathlib import Path
from pretrain.common import launcher, signals
signals._GRACE = 0.5
signals._LOOK = 0.1
folder = Path(sys.argv[1])
launcher.join()
with signals.Signals() as asked:
    (folder / "pid").write_text(str(os.getpid()))
    (folder / "pid").rename(folder / "training")
    while not asked.requested or HANGS:
        time.sleep(0.02)
(folder / "saved").touch()
time.sleep(0.1)
"""
START = """
import sys, time
from pathlib import Path
folder = Path(sys.argv[1])
import os
(folder / "pid").write_text(str(os.getpid()))
(folder / "pid").rename(folder / "training")
while not (folder / "go").exists():
    time.sleep(0.02)
from pretrain.common import errors, launcher
errors.run_tool(lambda: launcher.join() and time.sleep(60), processes=True)
"""


def until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def is_alive(process: int) -> bool:
    try:  # of an orphan, only /proc shows whether it is a zombie that its new parent has not looked at
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def launch(folder: Path, program: str, signal_number: int) -> int:
    """Start a program by a launcher, end the launcher by a signal, and return the program's process id."""
    command = [sys.executable, "-c", LAUNCHER, textwrap.dedent(program), str(folder)]
    with open(folder / "output", "wb") as output:
        process = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=output)
    until((folder / "training").exists)
    process.send_signal(signal_number)
    assert process.wait() == -signal_number
    return int((folder / "training").read_text())


needs_proc = pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="looks at processes in /proc")


@needs_proc
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGUSR1])
def test_a_process_whose_launcher_ended_saves_and_ends(tmp_path: Path, number: int) -> None:
    child = launch(tmp_path, TRAIN.replace("HANGS", "False"), number)
    until(lambda: not is_alive(child))
    assert (tmp_path / "saved").exists()


@needs_proc
def test_a_process_that_hangs_is_ended_all_the_same(tmp_path: Path) -> None:
    child = launch(tmp_path, TRAIN.replace("HANGS", "True"), signal.SIGKILL)
    until(lambda: not is_alive(child))
    assert not (tmp_path / "saved").exists()


@needs_proc
def test_a_process_whose_launcher_died_before_it_looked(tmp_path: Path) -> None:
    child = launch(tmp_path, START, signal.SIGKILL)
    (tmp_path / "go").touch()
    until(lambda: not is_alive(child))
    line = (tmp_path / "output").read_text()
    assert (
        line.startswith("error: torchrun has ended: nothing answers at 127.0.0.1:") and line.count("\n") == 1
    )


def test_a_process_does_not_end_while_its_launcher_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    watched = []
    monkeypatch.setattr(launcher, "end_with_the_parent", lambda parent, save: watched.append((parent, save)))
    with socket.create_server(("127.0.0.1", 0)) as server:
        own = {"RANK": 1, "WORLD_SIZE": 2, "LOCAL_RANK": 1, "MASTER_ADDR": "127.0.0.1",
               "MASTER_PORT": server.getsockname()[1], "TORCHELASTIC_RUN_ID": "none",
               "TORCHELASTIC_USE_AGENT_STORE": "True"}  # fmt: skip
        for name, value in own.items():
            monkeypatch.setenv(name, str(value))
        assert launcher.join() == 2
        monkeypatch.delenv("TORCHELASTIC_RUN_ID")  # started by hand or by another launcher
        assert launcher.join() == 2
    assert watched == [(os.getppid(), True)]


def test_the_others_are_waited_for_with_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "_START", distributed.timedelta(milliseconds=100))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    for name, value in {"RANK": 0, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}.items():
        monkeypatch.setenv(name, str(value))
    with pytest.raises(UserError, match=f"^the other processes did not arrive at 127.0.0.1:{port} within "):
        distributed.init_from_env(distributed.pick_device("cpu"))
    assert not td.is_initialized()
    store = td.HashStore()
    store.set("here/2", "")
    with pytest.raises(UserError, match=r"^process 0, 3 did not arrive at a:1 within .* minutes"):
        distributed._wait_for_all(store, 1, 4, "a:1")


def test_the_number_of_a_command_that_has_ended_is_not_signalled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hours after its end, the number can be that of another program's group."""
    command = [sys.executable, "-S", "-c", "import time; print(1, flush=True); time.sleep(60)"]
    ended = subprocess.Popen([sys.executable, "-S", "-c", ""], start_new_session=True)
    ended.wait()
    running = subprocess.Popen(command, start_new_session=True, stdout=subprocess.PIPE)
    assert running.stdout is not None
    running.stdout.readline()
    signalled: list[int] = []
    killpg = os.killpg

    def note(group: int, number: int) -> None:
        signalled.append(group)
        killpg(group, number)

    monkeypatch.setattr(os, "killpg", note)
    stop_groups([ended, running])
    running.stdout.close()
    assert running.returncode is not None
    assert set(signalled) == {running.pid}
