"""Stopping the commands that a program has started."""

import os
import subprocess
import sys

import pytest

from pretrain.common.signals import stop_groups


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
