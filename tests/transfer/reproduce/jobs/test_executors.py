"""Where jobs run: a GPU has one job at a time, whichever program starts it, and SLURM's queue has each job once."""

import argparse
import contextlib
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from pretrain.common.errors import UserError
from tests.support.graph_jobs import diamond, is_alive, python, runs, until
from tests.support.scripts import ROOT
from transfer.reproduce import command, progress
from transfer.reproduce.arguments import parse
from transfer.reproduce.jobs import scheduler, worker
from transfer.reproduce.jobs.job import Job
from transfer.reproduce.jobs.local import Local, locks_folder, visible_gpus
from transfer.reproduce.jobs.slurm import Slurm, slurm_parameters
from transfer.reproduce.plan.options import Options

SEEN = "(f / 'gpus').write_text(os.environ['CUDA_VISIBLE_DEVICES'])"


@pytest.mark.parametrize(
    ("variable", "count", "expected"),
    [
        (None, 2, ["0", "1"]),
        ("4,5", 2, ["4", "5"]),
        ("GPU-8932f937,GPU-0b1c", 2, ["GPU-8932f937", "GPU-0b1c"]),
        ("4,-1,5", 1, ["4"]),  # CUDA stops at the first unknown GPU
        ("", 0, []),
    ],
)
def test_gpus_are_named_as_the_variable_names_them(
    monkeypatch: pytest.MonkeyPatch, variable: str | None, count: int, expected: list[str]
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: count)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if variable is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", variable)
    assert visible_gpus() == expected


def test_gpus_are_dealt_out(tmp_path: Path) -> None:
    local = Local(["4", "5", "6", "7"], each=2, locks=tmp_path / "locks")
    jobs = [python(name, SEEN) for name in "abc"]
    assert scheduler.run(jobs, tmp_path, local, wait=0.05) == {}
    seen = {(job.folder(tmp_path) / "gpus").read_text() for job in jobs}
    assert seen <= {"4,5", "6,7"} and len(local.free) == 2
    with pytest.raises(UserError, match="--num-gpus 8: this machine has 4"):
        Local(["0", "1", "2", "3"], each=8)
    assert len(Local([]).free) == 1


def test_lock_files_are_opened_without_following_links_or_emptying(tmp_path: Path) -> None:
    folder, victim = tmp_path / "locks", tmp_path / "victim"
    folder.mkdir(mode=0o700)
    victim.write_text("precious")
    (folder / "0").symlink_to(victim)
    os.link(victim, folder / "1")
    with contextlib.ExitStack() as stack:
        with pytest.raises(UserError, match="locks/0: this lock file cannot be opened"):
            Local(["0"], locks=folder)._lock(("0",), stack)
        assert Local(["1"], locks=folder)._lock(("1",), stack)
    assert victim.read_text() == "precious"


def test_lock_files_lie_where_only_the_user_can_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime, temporary = tmp_path / "runtime", tmp_path / "tmp"
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(temporary))
    shared = temporary / f"reproduce-gpus-{os.getuid()}"
    for value in ("", "runtime", str(runtime)):  # unset, relative, and a folder that does not exist
        monkeypatch.setenv("XDG_RUNTIME_DIR", value)
        assert locks_folder() == shared
    runtime.mkdir()
    for mode, expected in ((0o755, shared), (0o700, runtime / "reproduce-gpus")):
        runtime.chmod(mode)
        assert locks_folder() == expected
    for make in (lambda: shared.symlink_to(runtime), lambda: shared.mkdir(), lambda: shared.chmod(0o770)):
        temporary.mkdir(exist_ok=True)
        make()
        with contextlib.ExitStack() as stack, pytest.raises(UserError, match="need a folder of yours"):
            Local(["0"], locks=shared)._lock(("0",), stack)
        if shared.is_symlink():
            shared.unlink()
    shared.chmod(0o700)
    with contextlib.ExitStack() as stack:
        assert Local(["0"], locks=shared)._lock(("0",), stack)
        assert stat.S_IMODE((shared / "0").stat().st_mode) == 0o600


def test_two_programs_with_fewer_jobs_than_gpus_share_them(tmp_path: Path) -> None:
    """`--jobs 2` is a number, not the first two GPUs."""
    wait = "\nwhile not (f.parent / 'go').exists(): time.sleep(0.05)"
    jobs = [python(name, SEEN + wait) for name in "abcde"]
    folders = [job.folder(tmp_path) for job in jobs]
    for job in jobs:
        worker.prepare(job, tmp_path)
    one, other = (Local(["0", "1", "2", "3"], jobs=2, locks=tmp_path / "locks") for _ in range(2))
    try:
        assert one.start(folders[:3]) == folders[:2] and other.start(folders[2:]) == folders[2:4]
        until(lambda: all((folder / "gpus").exists() for folder in folders[:4]))
        assert sorted((folder / "gpus").read_text() for folder in folders[:4]) == ["0", "1", "2", "3"]
    finally:
        (tmp_path / "go").touch()
    ended: list[tuple[Path, int]] = []
    until(lambda: len(ended.extend([*one.ended(), *other.ended()]) or ended) == 4)
    assert {status for _, status in ended} == {0}


def test_a_gpu_whose_job_outlived_its_program_is_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Program and worker are killed. The command still saves, and its GPU is not free before it has ended."""
    code = "import signal\nsignal.signal(signal.SIGTERM, lambda *_: (time.sleep(1.5), sys.exit(75)))\n"
    code += "(f / 'pids').write_text(f'{os.getppid()} {os.getpid()}')\ntime.sleep(60)"
    old, locks = python("old", code), tmp_path / "locks"
    worker.prepare(old, tmp_path)
    first = "import sys, time, pathlib; from transfer.reproduce.jobs.local import Local; p = pathlib.Path\n"
    first += "Local(['0', '1'], locks=p(sys.argv[1])).start([p(sys.argv[2])]); time.sleep(60)"
    program = subprocess.Popen([sys.executable, "-c", first, locks, old.folder(tmp_path)], cwd=ROOT)
    pids = old.folder(tmp_path) / "pids"
    until(lambda: pids.exists() and len(pids.read_text().split()) == 2)
    program.kill()
    program.wait()
    theirs, its = map(int, pids.read_text().split())
    jobs = [python(name, SEEN) for name in "abc"]
    try:
        assert scheduler.run(jobs, tmp_path, Local(["0", "1"], locks=locks), wait=0.05) == {}
        assert {(job.folder(tmp_path) / "gpus").read_text() for job in jobs} == {"1"}
        assert "GPU 0: in use by a job that this program did not start" in capsys.readouterr().out
        os.kill(theirs, signal.SIGKILL)
        late = Local(["0"], locks=locks)
        assert late.start([jobs[0].folder(tmp_path)]) == [] and is_alive(its)
        until(lambda: late.start([jobs[0].folder(tmp_path)]) != [])
        assert not is_alive(its)
        until(lambda: late.ended() != [])
    finally:
        for pid in (theirs, its):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def arguments(**given: Any) -> argparse.Namespace:
    return argparse.Namespace(
        **{"slurm": "", "num_gpus": 1, "jobs": 0, "smoke": False, "launcher": "", **given}
    )


def test_gpus_that_are_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    with pytest.raises(UserError, match="--num-gpus 8: this machine has no GPU"):
        command.executor(arguments(num_gpus=8))
    assert command.executor(arguments(num_gpus=2, smoke=True)) and command.executor(arguments())
    assert command.executor(arguments(num_gpus=8, launcher="srun torchrun"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--num-gpus", "0"], "--num-gpus 0: give 1 or more"),
        (["--jobs", "-2"], "--jobs -2: give 0 or more"),
        (["--launcher", '"x'], "--launcher"),
        (["--launcher", " "], "--launcher"),
        (["--seeds", "0,0"], "each seed once"),
        (["--seeds", ","], "write numbers"),
        (["--seeds", "7", "--trials", "3"], "leave --trials out"),
        (["--seeds", "0", "--trials", "0"], "--trials 0"),
    ],
)
def test_options_that_contradict(monkeypatch: pytest.MonkeyPatch, options: list[str], message: str) -> None:
    monkeypatch.setattr(sys, "argv", ["reproduce.py", "--table", "voc_C4", "--dry-run", *options])
    with pytest.raises(UserError, match=message) as caught:
        command.run(parse(None))
    assert "\n" not in str(caught.value)


def test_tables_of_other_protocols_have_folders_of_their_own() -> None:
    options = (
        Options(),
        Options(smoke=True),
        Options(schedule=0.1),
        Options(schedule=0.1, sweep=("SOLVER.BASE_LR", ("1", "2"))),
    )
    names = ["-".join(["voc_C4", *command._variant(given)]) for given in options]
    assert names == [
        "voc_C4",
        "voc_C4-smoke",
        "voc_C4-schedule0.1",
        "voc_C4-schedule0.1-sweep-SOLVER.BASE_LR",
    ]


def test_seeds() -> None:
    assert command._seeds("", None) == (0,) and command._seeds("", 3) == (0, 1, 2)
    assert command._seeds("7,9", 2) == command._seeds("7,9", None) == (7, 9)


def test_each_job_has_its_own_rendezvous(tmp_path: Path) -> None:
    launcher = ("torchrun", "--rdzv-id", "{id}", "--rdzv-endpoint", "host:{port}", "{other}")
    jobs = [Job(name, (*launcher, "tools/x.py", "{folder}", "NAME", "{id}"), "", "product") for name in "ab"]
    filled = [worker.command(job, tmp_path) for job in jobs]
    for job, parts in zip(jobs, filled, strict=True):
        assert parts[5:] == ["{other}", "tools/x.py", str(job.folder(tmp_path)), "NAME", "{id}"]
        assert 20000 <= int(parts[4].removeprefix("host:")) < 30000
    assert filled[0][2] != filled[1][2] and filled[0][4] != filled[1][4]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("partition=gpu", "add time=MINUTES"),
        ("time=24:00:00", "time=24:00:00: give the time limit in minutes"),
        ("time=60,foo", "--slurm foo: write K=V"),
        ("time=60,nodes=2", "--launcher"),
        ("time=60,tasks_per_node=8", "one node"),
    ],
)
def test_slurm_parameters_that_cannot_work(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        slurm_parameters(text, 8)


# A cluster of one machine. `sbatch` runs a script at once if the file `run` exists, else leaves it in the queue.
FAKE = {
    "sbatch": """#!/bin/bash
n=$(($(ls "$QUEUE" | grep -c script) + 1)); cp "$1" "$QUEUE/script$n"; echo "Submitted batch job $n"
[ -e "$QUEUE/run" ] && (SLURM_JOB_ID=$n setsid bash "$1" > "$QUEUE/out$n" 2>&1 &)
exit 0""",
    "srun": """#!/bin/bash
while [[ "$1" == --* ]]; do [[ "$1" == --unbuffered ]] && shift || shift 2; done
exec "$@" """,
    "sacct": """#!/bin/bash
echo "JobID|State|NodeList"; for f in "$QUEUE"/script*; do n=${f##*script}; echo "$n|PENDING|"
for a in $(seq 0 9); do echo "${n}_$a|PENDING|"; done; done""",
    "scancel": "#!/bin/bash\nexit 0",
}


@pytest.fixture
def queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder with the submitted scripts."""
    pytest.importorskip("submitit")
    tools, queue = tmp_path / "bin", tmp_path / "queue"
    tools.mkdir()
    queue.mkdir()
    for name, text in FAKE.items():
        (tools / name).write_text(text)
        (tools / name).chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    monkeypatch.setenv("QUEUE", str(queue))
    return queue


def slurm(tmp_path: Path, text: str = "time=60,partition=gpu") -> Slurm:
    return Slurm(tmp_path / "logs", slurm_parameters(text, 2))


def submitted(queue: Path) -> list[str]:
    return [path.read_text() for path in sorted(queue.glob("script*"))]


def test_jobs_limits_what_is_submitted(tmp_path: Path, queue: Path) -> None:
    cluster = Slurm(tmp_path / "logs", slurm_parameters("time=60", 2), jobs=2)
    jobs = [python(f"finetune/{name}", "") for name in "abc"]
    with pytest.raises(Killed):
        scheduler.run(jobs, tmp_path / "runs", cluster, wait=0.01, tick=killed_after(3))
    (script,) = submitted(queue)
    assert "--array=0-1%" in script and len(cluster.running) == 2


def test_a_queue_that_is_nearly_full_gets_what_it_takes(tmp_path: Path, queue: Path) -> None:
    """The queue accepts two jobs at a time. The others are submitted later, and running jobs are still watched."""
    full = """#!/bin/bash
array=$(grep -o -- '--array=0-[0-9]*' "$1" | grep -o '[0-9]*$'); there=$(ls "$QUEUE" | grep -c script)
[ "$there" -gt 0 ] || [ "${array:-0}" -gt 1 ] && { echo QOSMaxSubmitJobPerUserLimit >&2; exit 1; }
"""
    sbatch = tmp_path / "bin" / "sbatch"
    sbatch.write_text(full + sbatch.read_text().partition("\n")[2])
    cluster, jobs = slurm(tmp_path), [python(f"finetune/{name}", "") for name in "abcde"]
    for job in jobs:
        worker.prepare(job, tmp_path)
    folders = [job.folder(tmp_path) for job in jobs]
    assert cluster.start(folders) == folders[:2]
    assert cluster.start(folders[2:]) == [] and cluster.not_before > time.monotonic()
    assert len(submitted(queue)) == 1 and set(cluster.running) == set(folders[:2])
    again = slurm(tmp_path)  # another program finds those, and the refused rest does not end it
    assert again.start(folders) == folders[:2]


def test_another_programs_queued_job_is_not_cancelled(tmp_path: Path, queue: Path) -> None:
    (tmp_path / "bin" / "scancel").write_text('#!/bin/bash\necho "$@" >> "$QUEUE/cancelled"')
    first, second = slurm(tmp_path), slurm(tmp_path)
    jobs = [python("finetune/a", ""), python("finetune/b", "")]
    for job in jobs:
        worker.prepare(job, tmp_path)
    folders = [job.folder(tmp_path) for job in jobs]
    first.start(folders[:1])
    assert second.start(folders) == folders
    second.stop()
    assert (queue / "cancelled").read_text().split() == ["2"]


class Killed(Exception):
    """Simulates SIGKILL: none of our code runs after it."""


def killed_after(looks: int) -> Any:
    left = [looks]

    def tick() -> None:
        left[0] -= 1
        if left[0] < 0:
            raise Killed

    return tick


def test_a_queued_job_is_found_again_and_not_submitted_twice(tmp_path: Path, queue: Path) -> None:
    jobs = [python("finetune/a", ""), python("finetune/b", "")]
    for _ in range(3):
        with pytest.raises(Killed):
            scheduler.run(jobs, tmp_path / "runs", slurm(tmp_path), wait=0.01, tick=killed_after(3))
    assert "waiting, submitted to SLURM as 1_0" in progress.status(jobs, tmp_path / "runs")[0]
    (script,) = submitted(queue)
    assert "--array=0-1%2" in script and "--time=60" in script and "--gpus-per-node=2" in script


def test_a_held_lock_submits_nothing(tmp_path: Path, queue: Path) -> None:
    job = python("finetune/a", "")
    job.folder(tmp_path).mkdir(parents=True)
    (job.folder(tmp_path) / worker.LOCK).write_text("node7 1 alive\n3")
    with pytest.raises(Killed):
        scheduler.run([job], tmp_path, slurm(tmp_path), wait=0.01, tick=killed_after(3))
    assert submitted(queue) == []
    os.utime(job.folder(tmp_path) / worker.LOCK, (time.time() - 1000,) * 2)
    with pytest.raises(Killed):
        scheduler.run([job], tmp_path, slurm(tmp_path), wait=0.01, tick=killed_after(3))
    assert len(submitted(queue)) == 1


def test_jobs_without_a_gpu_run_here_and_the_others_on_the_cluster(tmp_path: Path, queue: Path) -> None:
    (queue / "run").touch()
    convert = python("convert/a", "assert 'SLURM_JOB_ID' not in os.environ")
    train = python("finetune/a", "assert os.environ['SLURM_JOB_ID'] == '1'", convert)
    assert scheduler.run([train], tmp_path / "runs", slurm(tmp_path), wait=0.1) == {}
    assert len(submitted(queue)) == 1 and not (train.folder(tmp_path / "runs") / "slurm").exists()


def test_many_turns_are_allowed_for(tmp_path: Path, queue: Path) -> None:
    assert slurm(tmp_path).executor._executor.max_num_timeout >= 1000
    with pytest.raises(UserError, match="foo"):
        slurm(tmp_path, "time=60,foo=1")
    (tmp_path / "bin" / "sbatch").write_text("#!/bin/bash\necho 'invalid partition' >&2; exit 1")
    with pytest.raises(UserError, match=r"sbatch.*invalid partition"):
        scheduler.run([python("a", "")], tmp_path / "runs", slurm(tmp_path), wait=0.01)


def test_a_machine_without_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("submitit")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="no srun here"):
        slurm(tmp_path)


def test_jobs_through_submitit(tmp_path: Path) -> None:
    """With submitit's local executor, which runs the same pickled call in a separate process."""
    pytest.importorskip("submitit")
    local = Slurm(tmp_path / "logs", {}, cluster="local")
    bad = python("bad", "sys.exit('no memory')")
    jobs = [*diamond(), bad]
    failed = scheduler.run(jobs, tmp_path / "runs", local, wait=0.1)
    assert set(failed) == {bad.key} and "no memory" in failed[bad.key]
    assert [runs(job, tmp_path / "runs") for job in jobs] == [1, 1, 1, 1, 2]


def test_a_preempted_job_saves_and_goes_on(tmp_path: Path) -> None:
    """SLURM's warning reaches every process; submitit lets the tool save, and the next run finds the saved state."""
    pytest.importorskip("submitit")
    code = "import signal\nif (f / 'saved').exists(): (f / 'went on').touch()\nelse:\n"
    code += "    save = lambda *_: (time.sleep(0.5), (f / 'saved').touch(), sys.exit(75))\n"
    code += (
        "    signal.signal(signal.SIGTERM, save); (f / 'pids').write_text(f'{os.getppid()} {os.getpid()}.')\n"
    )
    code += "    time.sleep(60)"
    job, warned = python("a", code), [False]
    pids = job.folder(tmp_path) / "pids"

    def warn() -> None:
        if not warned[0] and pids.exists() and pids.read_text().endswith("."):
            warned[0] = True
            theirs, its = map(int, pids.read_text()[:-1].split())
            submitits = int(Path(f"/proc/{theirs}/stat").read_text().split()[3])
            for pid in (its, theirs, submitits):
                os.kill(pid, signal.SIGUSR2)

    local = Slurm(tmp_path / "logs", {}, cluster="local")
    assert scheduler.run([job], tmp_path, local, wait=0.1, tick=warn) == {}
    assert (job.folder(tmp_path) / "saved").exists() and (job.folder(tmp_path) / "went on").exists()
    assert runs(job, tmp_path) == 2
