"""The graph of jobs: no job is lost or runs twice, whatever dies and however many programs use the folder."""

import io
import itertools
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest

from pretrain.common.console import say
from pretrain.common.errors import UserError
from pretrain.common.signals import STOPPED
from tests.support.graph_jobs import diamond, is_alive, python, runs, until
from transfer.reproduce import progress
from transfer.reproduce.jobs import lock, scheduler, worker
from transfer.reproduce.jobs.job import Job, in_order
from transfer.reproduce.jobs.local import Local
from transfer.reproduce.jobs.lock import Lock, holder

ROOT = Path(__file__).resolve().parents[4]


def run(jobs: list[Job], root: Path, *, places: int = 2) -> dict[str, str]:
    return scheduler.run(jobs, root, Local([], jobs=places), wait=0.05)


def test_keys_hold_everything_that_a_result_depends_on() -> None:
    a = python("a", "")
    assert a.key == python("a", "").key
    assert a.key != python("a", "", settings="lr 0.1").key != python("a", "", settings="lr 0.2").key
    assert python("b", "", a).key != python("b", "", python("a", "", settings="other")).key
    plain, eight = (Job("a", (launcher, "tool.py"), "", "product") for launcher in ("python", "torchrun"))
    assert plain.key == eight.key


def test_order() -> None:
    jobs = diamond()
    assert [job.name for job in in_order([jobs[3], jobs[1]])] == ["a", "b", "c", "d"]


def test_everything_runs_once_and_in_order(tmp_path: Path) -> None:
    jobs = diamond()
    assert run([jobs[3]], tmp_path) == {}
    a, b, c, d = [worker.state(job.folder(tmp_path))["began"] for job in jobs]
    assert a < min(b, c) and max(b, c) < d
    assert run(jobs, tmp_path) == {}
    assert [runs(job, tmp_path) for job in jobs] == [1, 1, 1, 1]


def test_a_failed_job_is_tried_twice_and_left_behind(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a = python("a", "sys.exit('no memory')")
    b, c = python("b", "", a), python("c", "")
    failed = run([b, c], tmp_path)
    assert set(failed) == {a.key, b.key} and "no memory" in failed[a.key] and "needs a" in failed[b.key]
    assert runs(a, tmp_path) == 2 and runs(b, tmp_path) == 0 and runs(c, tmp_path) == 1
    assert "the table continues without it" in capsys.readouterr().out


def test_the_reason_of_a_failure_is_the_commands_own(tmp_path: Path) -> None:
    """torchrun prints its own report after it, which ends with a line of =."""
    script = tmp_path / "x.py"
    torchrun = ("python", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script))
    said = "error: DATA.TRAIN: no such folder"
    for number, (code, expected) in enumerate(
        (
            (f"import sys; print({said!r}, file=sys.stderr); sys.exit(2)", said),
            ("raise ValueError('bad batch')", "ValueError: bad batch"),
        )
    ):
        script.write_text(code)
        job = Job(f"a{number}", torchrun, "", "product")
        worker.prepare(job, tmp_path)
        assert worker.work(job.folder(tmp_path)) == 1
        assert "ChildFailedError" in (job.folder(tmp_path) / worker.LOG).read_text()
        assert worker.reason(job.folder(tmp_path)).endswith(expected)


def test_an_earlier_attempts_error_is_not_the_reason(tmp_path: Path) -> None:
    job = python("a", "print('error: old' if len((f / 'ran').read_text()) == 1 else 'Killed'); sys.exit(1)")
    worker.prepare(job, tmp_path)
    for expected in ("error: old", "Killed"):
        worker.work(job.folder(tmp_path))
        assert worker.reason(job.folder(tmp_path)) == expected


def test_what_cannot_be_started_for_a_while_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a full queue or disk, running jobs continue. Before the first job it counts as a mistake of the user."""
    monkeypatch.setattr(scheduler, "_LATER", 0.05)
    full = [False]

    class Full(Local):
        def start(self, folders: Sequence[Path]) -> list[Path]:
            if full[0]:
                full[0] = False
                raise UserError("--slurm: sbatch: QOSMaxSubmitJobPerUserLimit")
            full[0] = True
            return super().start(folders[:1])

    jobs = [python(name, "") for name in "abc"]
    assert scheduler.run(jobs, tmp_path, Full([], jobs=2), wait=0.01) == {}
    assert [runs(job, tmp_path) for job in jobs] == [1, 1, 1]
    assert "QOSMaxSubmitJobPerUserLimit; trying again" in capsys.readouterr().out
    full[0] = True
    with pytest.raises(UserError, match="QOSMax"):
        scheduler.run([python("d", "")], tmp_path, Full([]), wait=0.01)


def test_a_job_that_fails_once_succeeds(tmp_path: Path) -> None:
    a = python("a", "n = len((f / 'ran').read_text())\nif n == 1: sys.exit(3)")
    assert run([a], tmp_path) == {} and runs(a, tmp_path) == 2


def test_a_command_that_leaves_no_product_has_failed(tmp_path: Path) -> None:
    a = Job("a", ("python", "-c", "pass"), "", "product")
    assert "exit status 1" in run([a], tmp_path)[a.key]


def test_a_lock_that_is_released_while_it_is_being_taken_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It exists when a second process tries to create it, and no more when that process reads it."""
    first, second = Lock(tmp_path / "lock"), Lock(tmp_path / "lock")
    assert first.acquire()

    def create() -> bool:
        monkeypatch.undo()
        first.release()
        return False

    monkeypatch.setattr(second, "_create", create)
    start = time.monotonic()
    assert second.acquire() and time.monotonic() - start < lock.STALE / 10
    second.release()


def test_two_programs_on_one_folder_do_not_repeat_a_job(tmp_path: Path) -> None:
    jobs = [python(f"{n}", "time.sleep(0.3)") for n in range(4)]
    end = python("end", "", *jobs)
    results: list[dict[str, str]] = []
    threads = [threading.Thread(target=lambda: results.append(run([end], tmp_path))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(180)
    assert results == [{}, {}]
    assert [runs(job, tmp_path) for job in (*jobs, end)] == [1] * 5


def start_worker(job: Job, root: Path, *, stale: float = 1.0) -> subprocess.Popen[bytes]:
    folder = job.folder(root)
    worker.prepare(job, root)
    code = "import sys, pathlib; from transfer.reproduce.jobs.worker import work; "
    code += f"sys.exit(work(pathlib.Path(sys.argv[1]), beat=0.1, stale={stale}))"
    return subprocess.Popen([sys.executable, "-c", code, str(folder)], cwd=ROOT)


@pytest.fixture
def alive() -> Iterator[list[subprocess.Popen[bytes]]]:
    processes: list[subprocess.Popen[bytes]] = []
    yield processes
    for process in processes:
        process.kill()
        process.wait()


def test_a_killed_worker_of_this_machine_is_not_waited_for(
    tmp_path: Path, alive: list[subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Except until its command, which SIGTERM asks to save, has ended."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    job = python(
        "a",
        "import signal\nif len((f / 'ran').read_text()) > 1: assert (f / 'saved').exists()\n"
        "else:\n"
        "  signal.signal(signal.SIGTERM, lambda *_: (time.sleep(1), (f / 'saved').touch(), sys.exit(75)))\n"
        "  (f / 'ready').touch()\n  time.sleep(60)",
    )
    folder = job.folder(tmp_path)
    alive.append(first := start_worker(job, tmp_path, stale=1000.0))
    until((folder / "ready").exists)
    assert not lock._has_ended(holder(folder / worker.LOCK))
    first.kill()
    first.wait()
    assert holder(folder / worker.LOCK) and not (folder / "saved").exists()
    alive.append(second := start_worker(job, tmp_path, stale=1000.0))
    assert second.wait(60) == 0 and worker.is_done(folder, "product") and runs(job, tmp_path) == 2
    assert not list(tmp_path.glob("reproduce-lock-*"))


def test_a_sign_of_another_machine_says_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder for temporary files may be on a network disk, whose locks each machine may keep to itself."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    unique = "0" * 32
    (tmp_path / f"reproduce-lock-{unique}").touch()
    assert lock._has_ended(f"{socket.gethostname()} 1 {unique}")
    assert not lock._has_ended(f"not-{socket.gethostname()} 1 {unique}")


def test_a_sign_that_cannot_be_removed_does_not_keep_the_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As that of another user, whose file it stays; a folder stands for it."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    unique, path = "0" * 32, tmp_path / "lock"
    path.write_text(f"{socket.gethostname()} 1 {unique}\n7")
    (tmp_path / f"reproduce-lock-{unique}").mkdir()
    mine = Lock(path, beat=0.05, stale=0.2)
    assert mine.acquire() and holder(path) == mine.token
    mine.release()
    assert [each.name for each in tmp_path.iterdir()] == [f"reproduce-lock-{unique}"]


def test_the_sign_of_life_stays_until_the_lock_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a process that has opened the sign before would take a released lock for a dead one's."""
    held, there = Lock(tmp_path / "lock"), []
    assert held.acquire()
    hide = held._hide_locally
    monkeypatch.setattr(held, "_hide_locally", lambda: (there.append(held.path.exists()), hide()))
    held.release()
    assert there == [False] and held._sign is None


def test_a_killed_worker_is_taken_over(tmp_path: Path, alive: list[subprocess.Popen[bytes]]) -> None:
    job = python(
        "a", "(f / 'pid').write_text(str(os.getpid()))\nif len((f / 'ran').read_text()) == 1: time.sleep(60)"
    )
    alive.append(first := start_worker(job, tmp_path))
    folder = job.folder(tmp_path)
    until(lambda: (folder / "pid").exists() and bool((folder / "pid").read_text()))
    child = int((folder / "pid").read_text())
    first.kill()
    first.wait()
    until(lambda: not is_alive(child))  # no process continues in the folder without the lock
    assert holder(folder / worker.LOCK) and not worker.is_done(folder, "product")
    alive.append(second := start_worker(job, tmp_path))
    assert second.wait(60) == 0 and worker.is_done(folder, "product") and runs(job, tmp_path) == 2
    assert not holder(folder / worker.LOCK)


def test_a_living_worker_is_left_alone(tmp_path: Path, alive: list[subprocess.Popen[bytes]]) -> None:
    job = python("a", "while not (f / 'go').exists(): time.sleep(0.1)")
    alive += [start_worker(job, tmp_path)]
    until(lambda: bool(holder(job.folder(tmp_path) / worker.LOCK)))
    alive += [start_worker(job, tmp_path)]
    assert alive[1].wait(60) == worker.TAKEN
    (job.folder(tmp_path) / "go").touch()
    assert alive[0].wait(30) == 0 and runs(job, tmp_path) == 1


def test_a_signal_lets_the_command_save(tmp_path: Path, alive: list[subprocess.Popen[bytes]]) -> None:
    code = "import signal\nsignal.signal(signal.SIGTERM, lambda *_: ((f / 'saved').touch(), sys.exit(75)))\n"
    job = python("a", code + "(f / 'ready').touch()\ntime.sleep(60)")
    alive.append(process := start_worker(job, tmp_path))
    folder = job.folder(tmp_path)
    until((folder / "ready").exists)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == STOPPED and (folder / "saved").exists()
    assert worker.state(folder)["state"] == "stopped" and not holder(folder / worker.LOCK)


def test_one_of_many_takes_a_dead_lock_over(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    path.write_text("somewhere 1 dead\n7")
    locks = [Lock(path, beat=0.1, stale=0.5) for _ in range(8)]
    taken: list[bool] = []
    threads = [threading.Thread(target=lambda lock=lock: taken.append(lock.acquire())) for lock in locks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(taken) == 1
    (winner,) = [
        lock for lock, name in zip(locks, [lock.token for lock in locks], strict=True) if holder(path) == name
    ]
    winner.release()
    assert not path.exists() and list(tmp_path.iterdir()) == []


def test_who_lost_the_lock_notices(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    lock = Lock(path, beat=0.05, stale=0.5)
    assert lock.acquire()
    path.write_text("another 2 one\n0")
    assert lock.lost.wait(5)
    lock.release()
    assert holder(path) == "another 2 one"
    halted = Lock(tmp_path / "other", beat=60)  # suspended while another takes over
    assert halted.acquire() and halted.is_ours()
    halted.path.write_text("another 2 one\n0")
    assert not halted.is_ours()
    halted.release()
    assert holder(halted.path) == "another 2 one"


def test_ctrl_c_ends_children(tmp_path: Path) -> None:
    job = python("a", "(f / 'pid').write_text(str(os.getpid()))\ntime.sleep(60)")
    local = Local([], jobs=1)

    def interrupt() -> None:
        if (job.folder(tmp_path) / "pid").exists():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        scheduler.run([job], tmp_path, local, wait=0.05, tick=interrupt)
    until(lambda: not is_alive(int((job.folder(tmp_path) / "pid").read_text())))
    assert worker.state(job.folder(tmp_path))["state"] == "stopped" and os.name == "posix"


def test_sigterm_ends_children(tmp_path: Path) -> None:
    job = python("a", "(f / 'pid').write_text(str(os.getpid()))\ntime.sleep(60)")
    asked = []

    def terminate() -> None:
        if not asked and (job.folder(tmp_path) / "pid").exists():
            asked.append(os.kill(os.getpid(), signal.SIGTERM))

    with pytest.raises(SystemExit, match="75"):
        scheduler.run([job], tmp_path, Local([], jobs=1), wait=0.05, tick=terminate)
    until(lambda: not is_alive(int((job.folder(tmp_path) / "pid").read_text())))
    assert worker.state(job.folder(tmp_path))["state"] == "stopped"


def test_a_claim_whose_maker_died_does_not_block(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    path.write_text("somewhere 1 dead\n7")
    (tmp_path / "lock.claim-000").touch()
    lock = Lock(path, beat=0.05, stale=0.3)
    assert lock.acquire() and [p.name for p in tmp_path.iterdir()] == ["lock"]
    lock.release()


def test_a_lock_outlives_a_full_disk_but_not_for_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full, write = threading.Event(), Path.write_text

    def failing(self: Path, text: str) -> int:
        if full.is_set() and "lock" in self.name:
            raise OSError(28, "No space left on device")
        return write(self, text)

    monkeypatch.setattr(Path, "write_text", failing)
    held = Lock(tmp_path / "lock", beat=0.02, stale=8.0)
    assert held.acquire()
    full.set()
    time.sleep(0.2)
    full.clear()
    before = (tmp_path / "lock").read_text()
    until(lambda: (tmp_path / "lock").read_text() != before)  # its heartbeats continue
    assert not held.lost.is_set()
    full.set()
    assert held.lost.wait(held.stale)  # before another process may take it over
    held.release()
    assert (tmp_path / "lock").exists()


def test_silence(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    assert lock.silence(path) is None
    path.write_text("node 1 token\n0")
    now = lock.silence(path)
    os.utime(path, (time.time() - 300,) * 2)
    later = lock.silence(path)
    os.utime(
        path, (time.time() + 300,) * 2
    )  # the clock was set back: no process may wait for that time to come
    ahead = lock.silence(path)
    assert now is not None and now < 30 and later is not None and 270 < later < 330
    assert ahead is not None and 270 < ahead < 330
    assert list(tmp_path.iterdir()) == [path]


def test_status_of_a_job_whose_worker_was_killed(tmp_path: Path) -> None:
    job = python("a", "")
    folder = job.folder(tmp_path)
    folder.mkdir()
    (folder / worker.LOCK).write_text("node 1 token\n0")
    note = {"state": "running", "host": "node", "began": time.time() - 400, "seconds": 0}
    worker._write(folder / worker.STATE, note)
    assert "running for 6:4" in progress.status([job], tmp_path)[0]
    os.utime(folder / worker.LOCK, (time.time() - 300,) * 2)
    assert "no sign of life for 30" in progress.status([job], tmp_path)[0]


def test_a_watch_shows_a_bar_on_a_terminal_and_a_line_a_minute_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    running, waiting = python("a", ""), python("b", "")
    folder = running.folder(tmp_path)
    folder.mkdir()
    (folder / worker.LOCK).write_text("node 1 token\n0")
    note = {"state": "running", "host": "node", "began": time.time(), "seconds": 0}
    worker._write(folder / worker.STATE, note)
    shown = []
    for is_terminal in (True, False):
        stream, now = io.StringIO(), itertools.count(0.0, 7.0)  # seven seconds between two looks at the clock
        monkeypatch.setattr(stream, "isatty", lambda is_terminal=is_terminal: is_terminal)
        monkeypatch.setattr("sys.stdout", stream)
        monkeypatch.setenv("COLUMNS", "90")
        with monkeypatch.context() as patch:
            clock = SimpleNamespace(monotonic=lambda now=now: next(now), time=time.time)
            patch.setattr(progress, "time", clock)
            with progress.Watch([running, waiting], tmp_path) as watch:
                for _ in range(9):
                    watch.look()
                say("above")  # which draws a bar again
        shown.append(stream.getvalue())
    assert "| 0/2  jobs  a: running for 0:0" in shown[0] and "[0/2]" not in shown[0]
    line, above = shown[1].splitlines()
    assert line.startswith("[0/2] a: running for 0:0") and above == "above"


@pytest.mark.parametrize(
    "line", ["\xff", "[" * 100_000, '{"bbox/AP": 1' + "0" * 400 + "}", '{"bbox/AP": "x"}', "[1]", ""]
)
def test_status_of_a_job_with_a_damaged_log(tmp_path: Path, line: str) -> None:
    job = python("a", "")
    folder = job.folder(tmp_path)
    folder.mkdir()
    (folder / worker.LOCK).write_text("node 1 token\n0")
    worker._write(
        folder / worker.STATE, {"state": "running", "host": "n", "began": time.time(), "seconds": 0}
    )
    (folder / "metrics.json").write_bytes(line.encode("latin-1") + b"\n")
    assert "running for" in progress.status([job], tmp_path)[0]
    (folder / "metrics.json").write_text(
        '{"iteration": 7, "bbox/AP": 31.25, "bbox/AP50": 50.0}\n{"loss": 1.0}\n'
    )
    assert "iteration 7: bbox AP 31.2" in progress.status([job], tmp_path)[0]


def test_what_only_finished_jobs_need_is_not_made_again(tmp_path: Path) -> None:
    a, b, c, d = diamond()
    assert run([d], tmp_path) == {}
    for job in (a, b):
        job.output(tmp_path).unlink()
    assert run([d], tmp_path) == {} and runs(a, tmp_path) == runs(b, tmp_path) == 1
    e = python("e", "", b)  # it needs b, and b needs a
    assert run([d, e], tmp_path) == {}
    assert [runs(job, tmp_path) for job in (a, b, c, d, e)] == [2, 2, 1, 1, 1]


class Pretended:
    """An executor whose jobs survive the scheduler, and end one check after they have started."""

    def __init__(self, root: Path, starts: list[str]) -> None:
        self.root, self.starts, self.running = root, starts, []

    def start(self, folders: Sequence[Path]) -> list[Path]:
        begun = list(folders[: 2 - len(self.running)])
        for folder in begun:
            self.starts.append(folder.name)
            (folder / worker.LOCK).write_text("node 1 token\n0")
        self.running += begun
        return begun

    def ended(self) -> list[tuple[Path, int]]:
        ended, self.running = self.running, []
        for folder in ended:
            finish(folder)
        return [(folder, 0) for folder in ended]

    def stop(self) -> None:
        pass


def finish(folder: Path) -> None:
    (folder / "product").touch()
    worker._write(folder / worker.STATE, {"state": "done", "seconds": 1})
    (folder / worker.LOCK).unlink()


@pytest.mark.parametrize("finishes", [False, True])
@pytest.mark.parametrize("change", range(6))
def test_a_scheduler_killed_at_any_change_loses_and_repeats_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: int, finishes: bool
) -> None:
    monkeypatch.setattr(scheduler, "_ELSEWHERE", 0.01)
    jobs, starts, looks = diamond(), [], [0]

    def kill() -> None:
        looks[0] += 1
        if looks[0] > change:
            raise InterruptedError

    first = Pretended(tmp_path, starts)
    try:
        scheduler.run([jobs[3]], tmp_path, first, wait=0, tick=kill)
    except InterruptedError:
        if finishes:  # before the next start
            first.ended()

    def later() -> None:  # while the next scheduler waits for them
        first.ended()

    assert scheduler.run([jobs[3]], tmp_path, Pretended(tmp_path, starts), wait=0.001, tick=later) == {}
    assert sorted(starts) == sorted(job.folder(tmp_path).name for job in jobs)
