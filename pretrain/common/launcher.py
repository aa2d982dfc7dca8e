"""How many processes torchrun, srun or mpirun started, read from the environment. torch is not imported here."""

import os
import re
import socket
import sys
from pathlib import Path

from pretrain.common.errors import UserError
from pretrain.common.signals import end_with_the_parent

_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
_NO_STEP = 0xFFFFFFF0  # from here on SLURM numbers the batch script, the interactive shell and the like
_SEPARATE = "set WORLD_SIZE=1 if each process has work of its own"

by_srun = False  # whether `join` took the rank of this process from SLURM


def join(*, srun: bool = True) -> int:
    """Return the number of processes of this run, after checking the variables that describe them.

    For a task of srun, set the variables that torchrun would set. WORLD_SIZE=1 means one process under any launcher.

    Args:
        srun: False if the program's own flags connect the machines, and srun only starts it on each of them.
    Raises:
        UserError: variables of torchrun are missing or contradict each other, SLURM's do not describe a process group,
            or mpirun started several processes.
    """
    if _text("RANK") or _text("WORLD_SIZE"):
        processes = _check_torchrun()
        if _text("TORCHELASTIC_RUN_ID"):
            _end_with_torchrun()
        return processes
    if not srun:
        return 1
    _refuse_mpirun("OMPI_COMM_WORLD_SIZE")  # before SLURM's variables: mpirun starts its daemons by srun
    tasks = _tasks()
    if tasks > 1:
        _join_step(tasks)
    else:
        _refuse_mpirun("PMI_SIZE")  # after them: srun --mpi=pmi2 sets it too
    return tasks


def refuse_several() -> None:
    """Raise `UserError` if a launcher started several processes of a program that works in one."""
    if _text("WORLD_SIZE") == "1":
        return
    mpirun = max(_number("OMPI_COMM_WORLD_SIZE", 1), _number("PMI_SIZE", 1))
    torchrun = _number("WORLD_SIZE", 1) if _text("RANK") else 1
    for name, count in (("torchrun", torchrun), ("srun", _tasks()), ("mpirun", mpirun)):
        if count > 1:
            raise UserError(
                f"{_program()} works in one process, and {name} started {count}: start it once, or {_SEPARATE}"
            )


def check_restarts(resume: bool | Path) -> None:
    """Raise `UserError` if torchrun may start this command again (`--max-restarts`), which would not continue the run.

    When a process ends with an error, torchrun ends the others and starts the same command again. Only with `--resume`
    it then continues from the last state. Without, the folder would hold a run; `--resume FROM` would go back to FROM.

    On several machines it is refused too: they count restarts separately, and would not find each other again.

    Args:
        resume: of the command line: whether, or from which file.
    """
    restarts = _number("TORCHELASTIC_MAX_RESTARTS", 0)
    if restarts < 1:
        return
    if _number("GROUP_WORLD_SIZE", 1) > 1:
        raise UserError(
            f"torchrun --max-restarts {restarts} on several machines is not supported: leave it out, and start the "
            "same command again with --resume on each"
        )
    if resume is True:
        return
    if resume:
        raise UserError(
            f"--resume {resume}: torchrun --max-restarts {restarts} would go back to this file in each restart: leave "
            "out --max-restarts, or copy the file to the name of the last state in a new OUTPUT_DIR and give --resume "
            "alone"
        )
    raise UserError(
        f"torchrun --max-restarts {restarts} starts this same command again if a process ends with an error: add "
        "--resume, with which it continues from the last state (and a new run starts from scratch)"
    )


def attempt() -> int:
    """Return how often torchrun has started this run again (`--max-restarts`)."""
    return _number("TORCHELASTIC_RESTART_COUNT", 0)


def _end_with_torchrun() -> None:
    """End this process when torchrun ends, which cannot end it if it is killed. Raises `UserError` if it already was.

    It serves the address on its first machine before it starts any process, and while it lives, it is the parent.
    """
    end_with_the_parent(os.getppid(), save=True)
    if _text("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return
    host, port = _text("MASTER_ADDR"), _number("MASTER_PORT")
    try:
        socket.create_connection((host, port), timeout=10).close()
    except ConnectionRefusedError:
        raise UserError(f"torchrun has ended: nothing answers at {host}:{port}; start it again") from None
    except OSError:  # the process group reports it
        pass


def _check_torchrun() -> int:
    size, rank = _number("WORLD_SIZE", 0), _number("RANK", 0)
    if size == 1 and rank == 0:
        return 1
    first = "WORLD_SIZE" if _text("WORLD_SIZE") else "RANK"
    advice = f"{_launcher_advice()}, or unset {first}"
    missing = [name for name in _TORCHRUN if not _text(name)]
    if missing:
        raise UserError(
            f"{first} is {_text(first)}, but these variables are not set: {', '.join(missing)}; {advice}"
        )
    if not 0 <= rank < size:
        raise UserError(f"RANK {rank}, WORLD_SIZE {size}: ranks go from 0 to WORLD_SIZE - 1: {advice}")
    if _number("LOCAL_RANK") < 0:
        raise UserError(f"LOCAL_RANK {_text('LOCAL_RANK')}: ranks are not negative: {advice}")
    if not 0 < _number("MASTER_PORT") < 65536:
        raise UserError(f"MASTER_PORT {_text('MASTER_PORT')}: ports go from 1 to 65535: {advice}")
    return size


def _tasks() -> int:
    """Return the number of tasks of the srun that started this process; 1 in a batch script or without SLURM.

    SLURM_NTASKS alone says nothing: SLURM sets it for the batch script of a job too, which runs once.
    """
    if _text("SLURM_STEP_NUM_TASKS"):
        return max(_number("SLURM_STEP_NUM_TASKS"), 1)
    tasks, step = max(_number("SLURM_NTASKS", 1), 1), _text("SLURM_STEP_ID")
    if step.isdigit() and int(step) < _NO_STEP:
        return tasks
    if (
        tasks > 1 and _number("SLURM_PROCID", 0) > 0
    ):  # no batch script, and task 0 cannot know that it is none
        raise UserError(
            f"task {_text('SLURM_PROCID')} of SLURM_NTASKS {tasks}, but SLURM_STEP_NUM_TASKS is not set: "
            + _launcher_advice()
        )
    return 1


def _join_step(tasks: int) -> None:
    global by_srun
    rank, local = _number("SLURM_PROCID"), _number("SLURM_LOCALID")
    each, node = _tasks_of_a_node(tasks), _number("SLURM_NODEID", 0)
    if not 0 <= rank < tasks or rank != node * each + local:
        raise UserError(
            f"SLURM_PROCID {rank} of {tasks} tasks is SLURM_LOCALID {local} of SLURM_NODEID {node}: the tasks must be "
            f"numbered node by node: {_launcher_advice()}"
        )
    job, step = _number("SLURM_JOB_ID", 0), _number("SLURM_STEP_ID", 0)
    group = {
        "RANK": rank, "WORLD_SIZE": tasks, "LOCAL_RANK": local, "LOCAL_WORLD_SIZE": each,
        "MASTER_ADDR": _text("MASTER_ADDR") or ("127.0.0.1" if each == tasks else _first_host()),
        # A range from which systems do not assign ports by themselves; another port for each job and step.
        "MASTER_PORT": _text("MASTER_PORT") or 20000 + (31 * job + step) % 10000,
    }  # fmt: skip
    os.environ.update({name: str(value) for name, value in group.items()})
    _check_torchrun()
    by_srun = True
    if rank == 0:
        address = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        print(f"srun started {tasks} processes: process 0 waits for the others at {address}", flush=True)


def _tasks_of_a_node(tasks: int) -> int:
    """Return the number of tasks on each node. Raises `UserError` if the nodes differ."""
    nodes = next((_number(name) for name in ("SLURM_STEP_NUM_NODES", "SLURM_NNODES") if _text(name)), 1)
    each = re.fullmatch(r"(\d+)(\(x\d+\))?", _text("SLURM_STEP_TASKS_PER_NODE"))
    count = int(each[1]) if each else tasks // max(nodes, 1)
    if count * nodes != tasks:
        raise UserError(
            f"{tasks} tasks on {nodes} nodes: srun must start the same number on each: {_launcher_advice()}"
        )
    return count


def _first_host() -> str:
    """Return the first host of the step's node list: `gpu01` of `gpu[01-04,07],big1`."""
    nodes = _text("SLURM_STEP_NODELIST") or _text("SLURM_JOB_NODELIST")
    first = re.match(r"(?:[^,\[\]]|\[[^\]]*\])*", nodes)
    host = re.sub(r"\[(\d+)[^\]]*\]", r"\1", first[0] if first else "")
    try:
        socket.getaddrinfo(host or "?", None)
    except (OSError, UnicodeError):
        raise UserError(
            f"SLURM_STEP_NODELIST {nodes or 'is not set'}: the address of the first node is not known: set "
            f"MASTER_ADDR, or {_launcher_advice()}"
        ) from None
    return host


def _refuse_mpirun(name: str) -> None:
    count = _number(name, 1)
    if count > 1:
        raise UserError(
            f"mpirun started {count} processes ({name}), which would not know of each other: {_launcher_advice()}, or "
            + _SEPARATE
        )


def _launcher_advice() -> str:
    name = _program()
    program = f"tools/{name}" if name.endswith(".py") else f"--no-python {name}"  # a console command
    return f"start with torchrun --nproc-per-node N {program} ..."


def _program() -> str:
    return Path(sys.argv[0]).name


def _text(name: str) -> str:
    return os.environ.get(name, "").strip()


def _number(name: str, default: int | None = None) -> int:
    """Return a variable as an integer, or `default` if it is not set. Raises `UserError` naming it."""
    text = _text(name)
    if not text and default is not None:
        return default
    try:
        return int(text)
    except ValueError:
        value = f"{text!r} is not an integer" if text else "is not set"
        raise UserError(f"environment variable {name} {value}: {_launcher_advice()}") from None
