"""One run per folder: a lock that dies with its process, and files that killed processes left behind."""

import errno
import multiprocessing
import os
import re
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing.context import ForkProcess
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest

from pretrain.common import distributed, files, run_folder
from pretrain.common.errors import UserError
from pretrain.common.files import write_atomic, write_bytes
from pretrain.common.run_folder import held, held_file, remove_leftovers, take_up
from tests.support import scripts

_FORK = multiprocessing.get_context("fork")


@contextmanager
def other_process(function: Callable[[Event], None]) -> Iterator[ForkProcess]:
    """Run `function` in another process until it has set its event; kill it by SIGKILL at the end."""
    ready = _FORK.Event()
    process = _FORK.Process(target=function, args=(ready,))
    process.start()
    try:
        assert ready.wait(20)
        yield process
    finally:
        kill(process)


def kill(process: ForkProcess) -> None:
    process.kill()
    process.join()


def _no_locks(handle: int) -> bool:
    raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))


def hold(folder: Path, ready: Event) -> None:
    with held(folder):
        if not os.fork():  # a loader's worker, which outlives a killed run for a moment
            time.sleep(1)
            os._exit(0)
        ready.set()
        time.sleep(60)


def test_the_second_run_is_refused_until_the_first_is_dead(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with other_process(partial(hold, run)) as process:
        for _ in range(2):  # to be refused does not take the lock away
            with pytest.raises(UserError) as refused, held(run):
                raise AssertionError
        line = str(refused.value)
        assert (
            f"OUTPUT_DIR {run} is in use by process {process.pid} on {socket.gethostname()} since 2" in line
        )
        assert "\n" not in line and str(run / ".lock") in line
        kill(process)
        assert (run / ".lock").exists()
        with held(run):
            assert f"process {os.getpid()} " in (run / ".lock").read_text()
    assert list(run.iterdir()) == []


def test_a_run_that_fails_at_once_leaves_no_folder_behind(tmp_path: Path) -> None:
    for folder in (tmp_path / "a" / "b", tmp_path):
        with pytest.raises(UserError, match="no images"), held(folder):
            raise UserError("no images")
    assert list(tmp_path.iterdir()) == []


def test_a_file_system_without_locks_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run_folder, "lock", _no_locks)
    with held(tmp_path), held(tmp_path):
        pass
    assert re.fullmatch(
        r"(note: \S+\.lock: No locks available: .* would not be noticed\n){2}", capsys.readouterr().out
    )


def test_a_folder_that_cannot_be_made_is_left_to_the_run_to_report(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with held(tmp_path / "file" / "run"):
        pass
    with held(tmp_path / ("x" * 300)):
        pass


def test_what_the_holder_wrote_is_not_printed_as_it_is(tmp_path: Path) -> None:
    for text in ("\x1b[2J", "a\nb", "", "x" * 5000):
        (tmp_path / ".lock").write_text(text)
        assert len(run_folder.holder(tmp_path / ".lock")) <= 200
        assert run_folder.holder(tmp_path / ".lock").isprintable()


def _hold_in_two_processes(folder: str) -> None:
    distributed.init_from_env(distributed.pick_device("cpu"))
    with held(Path(folder)):
        names = os.listdir(folder)
        distributed.barrier()  # main removes the file at the end
        assert names == [".lock"]


def test_two_processes_of_one_run_share_the_lock_and_are_refused_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.multiprocessing.spawn", scripts.spawn)
    distributed.spawn(_hold_in_two_processes, 2, (str(tmp_path),))
    assert list(tmp_path.iterdir()) == []
    with held(tmp_path), pytest.raises(UserError, match=f"in use by process {os.getpid()} "):
        distributed.spawn(_hold_in_two_processes, 2, (str(tmp_path),))


def _stop_half_way(path: Path, ready: Event) -> None:
    def write(file: object) -> None:
        ready.set()
        time.sleep(60)

    write_atomic(path, write)


def _stop_before_the_rename(path: Path, ready: Event) -> None:
    opened = os.fdopen

    def stop(*arguments: object, **options: object) -> object:
        file = opened(*arguments, **options)  # type: ignore[call-overload]
        file.write(b"half")
        ready.set()
        time.sleep(60)
        return None

    files.os.fdopen = stop  # type: ignore[attr-defined]
    write_bytes(path, b"whole")


@pytest.mark.parametrize("function", [_stop_half_way, _stop_before_the_rename])
def test_a_file_is_left_over_only_once_its_writer_is_dead(
    tmp_path: Path, function: Callable[[Path, Event], None]
) -> None:
    with other_process(partial(function, tmp_path / "a.json")) as process:
        (temporary,) = tmp_path.iterdir()
        for name in ("a.json", "b.json"):
            remove_leftovers(tmp_path, name.__eq__)
        assert temporary.exists()
        kill(process)
        remove_leftovers(tmp_path, "b.json".__eq__)
        assert temporary.exists()
        remove_leftovers(tmp_path, "a.json".__eq__)
        assert not temporary.exists()


@pytest.mark.parametrize("shift", [-7200, 7200])
def test_without_locks_age_decides_in_either_direction(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shift: int
) -> None:
    """A clock that was set back must not keep a file for ever."""
    monkeypatch.setattr(files, "lock", _no_locks)
    old, young = tmp_path / ".a.json.1", tmp_path / ".a.json.2"
    for path in (old, young):
        path.touch()
    os.utime(old, (time.time() + shift,) * 2)
    remove_leftovers(tmp_path, "a.json".__eq__)
    assert list(tmp_path.iterdir()) == [young]


def test_a_temporary_file_that_was_taken_for_a_leftover_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process removes it between its creation and its lock."""
    lock, removed = files.lock, []

    def late(handle: int) -> bool:
        if not removed:
            removed.extend(tmp_path.iterdir())
            removed[0].unlink()
        return lock(handle)

    monkeypatch.setattr(files, "lock", late)
    write_atomic(tmp_path / "a", lambda file: file.write(b"1"))
    assert removed and (tmp_path / "a").read_bytes() == b"1" and len(list(tmp_path.iterdir())) == 1


def test_the_next_writer_of_a_file_uses_what_a_dead_one_left(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    with other_process(partial(_stop_before_the_rename, path)) as process:
        write_bytes(path, b"mine")  # while the other one lives
        assert path.read_bytes() == b"mine" and (tmp_path / ".a.json.tmp").exists()
        kill(process)
        assert len(list(tmp_path.iterdir())) == 2
        write_bytes(path, b"x")
    assert path.read_bytes() == b"x" and list(tmp_path.iterdir()) == [path]


def test_a_file_that_cannot_be_written_whole_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for locks in (True, False):
        with pytest.raises(ZeroDivisionError), files.replacing(tmp_path / "a") as file:
            file.write(b"half")
            _ = 1 / 0
        assert list(tmp_path.iterdir()) == []
        if locks:
            monkeypatch.setattr(files, "lock", _no_locks)
    write_bytes(tmp_path / "a", b"whole")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"whole"]


def _write_file(path: Path, ready: Event) -> None:
    with held_file(path):
        (path.parent / f".{path.name}.abcd_123").mkdir()
        ready.set()
        time.sleep(60)


def test_one_process_writes_a_file_and_the_next_removes_what_it_left(tmp_path: Path) -> None:
    stay = [".w.pkl.mine", ".w.abcd1234", ".v.pkl.abcd1234"]
    for name in stay:
        (tmp_path / name).mkdir()
    with other_process(partial(_write_file, tmp_path / "w.pkl")) as process:
        line = rf"w\.pkl is being written by process {process.pid} "
        with pytest.raises(UserError, match=line), held_file(tmp_path / "w.pkl"):
            raise AssertionError
        with held_file(tmp_path / "v.pkl"):
            pass
        kill(process)
        stay.remove(".v.pkl.abcd1234")
        assert (tmp_path / ".w.pkl.abcd_123").exists()
        with held_file(tmp_path / "w.pkl"):
            assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*stay, ".w.pkl.lock"])
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(stay)


def test_an_older_state_is_taken_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What the last state held is lost only if another file has it."""
    last, older, newer = (tmp_path / name for name in ("last.pth.tar", "0001.pth.tar", "0002.pth.tar"))
    older.write_bytes(b"older")
    newer.write_bytes(b"newer")

    def take() -> str:
        take_up(older, last, iteration=7, numbered=[older, newer])
        assert last.read_bytes() == b"older" and not last.samefile(older)
        return capsys.readouterr().out

    assert take().endswith(
        f"{last} is now a copy of {older}; lines of metrics.json after iteration 7 are dropped; "
        "numbered checkpoints of later epochs stay until the run reaches them\n"
    )
    last.write_bytes(b"newer")
    assert "kept" not in take()
    for number in (1, 2):
        last.write_bytes(b"other")
        assert f"; its former state is kept as last.{number}.pth.tar; " in take()
        assert (tmp_path / f"last.{number}.pth.tar").read_bytes() == b"other"
    take_up(last, last, iteration=7)
    assert capsys.readouterr().out == "" and len(list(tmp_path.iterdir())) == 5
