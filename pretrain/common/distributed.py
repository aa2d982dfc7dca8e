"""Process groups: the same script runs as one or several processes, on CPUs (gloo) or GPUs (NCCL)."""

import functools
import hashlib
import multiprocessing
import os
import re
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from types import FrameType
from typing import cast

import torch
import torch.distributed as td
import torch.multiprocessing as mp

from pretrain.common import launcher
from pretrain.common.errors import UserError, escape_what_cannot_be_printed, message
from pretrain.common.signals import end_with_the_parent, stopping

_PATIENCE = timedelta(hours=4)  # the other processes wait while one evaluates
_START = timedelta(minutes=10)  # the first processes wait for the last ones, which read the data first
_OWN_GPU = ("SLURM_GPUS_PER_TASK", "SLURM_NTASKS_PER_GPU", "SLURM_GPU_BIND")  # set by srun's options


def world_size() -> int:
    """Return the number of processes; 1 without a process group."""
    return td.get_world_size() if td.is_available() and td.is_initialized() else 1


def rank() -> int:
    """Return the index of this process among all processes; 0 without a process group."""
    return td.get_rank() if td.is_available() and td.is_initialized() else 0


def is_main() -> bool:
    """Return whether this is the process that prints and writes files (rank 0)."""
    return rank() == 0


def barrier() -> None:
    """Wait until every process has reached this call."""
    if world_size() > 1:
        td.barrier(device_ids=[torch.cuda.current_device()] if td.get_backend() == "nccl" else None)


def any_process(*flags: bool) -> list[bool]:
    """Return the logical OR of each flag over all processes; every process waits for all others.

    The flags are exchanged between CPUs in less than a millisecond, without waiting for a GPU.
    """
    if world_size() == 1:
        return list(flags)
    combined = torch.tensor(flags, dtype=torch.uint8)
    td.all_reduce(combined, td.ReduceOp.MAX, group=_cpu_group())
    return [bool(flag) for flag in combined]


@functools.cache
def _cpu_group() -> td.ProcessGroup | None:
    """Return a group for CPU tensors, which NCCL cannot handle; None if the default group handles them."""
    if td.get_backend() != "nccl":
        return None
    return cast(td.ProcessGroup, td.new_group(backend="gloo", timeout=_PATIENCE))


def pick_device(wanted: str) -> torch.device:
    """Return the device for `auto` (this process's GPU if there is one, else the CPU), `cpu` or `cuda`.

    Raises `UserError` if `cuda` is given and PyTorch sees no GPU.
    """
    local_rank = int(os.environ.get("LOCAL_RANK") or 0)
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    if wanted == "cuda":
        if not torch.cuda.is_available():
            raise UserError("DEVICE cuda: PyTorch sees no GPU here; use DEVICE cpu or auto")
        # srun can show each task its own GPU only, which then is number 0.
        own = any(os.environ.get(name) for name in _OWN_GPU) and torch.cuda.device_count() == 1
        if launcher.by_srun and own:
            local_rank = 0
        if local_rank >= torch.cuda.device_count():
            raise UserError(
                f"{local_rank + 1} processes on a machine with {torch.cuda.device_count()} GPU(s): "
                "start at most one process per GPU"
            )
        torch.cuda.set_device(local_rank)
        return torch.device("cuda", local_rank)
    if wanted == "cpu":
        return torch.device("cpu")
    raise UserError(f"DEVICE {wanted}: choose auto, cpu or cuda")


def init_from_env(device: torch.device) -> None:
    """Join the process group that torchrun (or `spawn`, or `launcher.join`) describes in the environment, if any.

    Raises `UserError` if the address cannot be used, if processes are missing after ten minutes, and in every process
    if srun started them with different arguments.
    """
    if int(os.environ.get("WORLD_SIZE") or 1) == 1 or td.is_initialized():
        return
    backend = "nccl" if device.type == "cuda" else "gloo"
    address = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
    try:
        store, own, processes = next(td.rendezvous("env://", timeout=_START))
        if (
            attempt := launcher.attempt()
        ):  # torchrun keeps its store, which holds the keys of the processes before
            store = td.PrefixStore(f"attempt {attempt}", store)
        _wait_for_all(store, own, processes, address)
        store.set_timeout(_PATIENCE)
        td.init_process_group(backend, store=store, rank=own, world_size=processes, timeout=_PATIENCE)
    except td.DistStoreError:  # this process serves the address, and too few have connected
        raise _late("the other processes", address) from None
    except td.DistNetworkError as error:
        if "EADDRINUSE" in str(error) or "address already in use" in str(error):
            reason = "the port is in use"
        else:
            reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"--dist-url tcp://{address}: {reason}: choose another port or host, the same on every machine "
            "(torchrun: --master-port, --master-addr; srun: MASTER_PORT, MASTER_ADDR)"
        ) from None
    if launcher.by_srun:
        _compare_arguments(device)


def _wait_for_all(store: td.Store, own: int, processes: int, address: str) -> None:
    """Wait until every process has called this. Raises `UserError` naming those that have not within `_START`."""
    store.set(f"here/{own}", "")
    try:
        store.wait([f"here/{other}" for other in range(processes)], _START)
    except td.DistStoreError:
        missing = [str(other) for other in range(processes) if not store.check([f"here/{other}"])]
        names = ", ".join(missing[:8]) + (", ..." if len(missing) > 8 else "")
        raise _late(f"process {names}", address) from None


def _late(missing: str, address: str) -> UserError:
    return UserError(
        f"{missing} did not arrive at {address} within {_START.total_seconds() / 60:g} minutes: look for an error on "
        "that machine, and start all processes again"
    )


def _compare_arguments(device: torch.device) -> None:
    """Raise `UserError` if the processes are separate runs, such as one for each seed: they would train one model."""
    digest = hashlib.sha256("\0".join(sys.argv).encode(errors="surrogateescape")).hexdigest()
    own = torch.tensor([[int(digest[:15], 16)]], device=device)
    if len(all_gather_interleaved(own).unique(dim=0)) > 1:
        raise UserError(
            "srun started processes with different arguments, which would train one model together: give all the same "
            "arguments, or set WORLD_SIZE=1 in each for separate runs"
        )


def shutdown() -> None:
    """Leave the process group, if any."""
    if td.is_available() and td.is_initialized():
        _cpu_group.cache_clear()
        td.destroy_process_group()


def spawn(
    worker: Callable[..., None],
    processes: int,
    args: tuple = (),
    *,
    machines: int = 1,
    machine_rank: int = 0,
    url: str = "auto",
) -> None:
    """Run `worker(*args)` in `processes` processes on this machine, with the environment that torchrun would set.

    A single process runs in place. The `UserError` of a worker is raised here, once; if a worker exits with a status,
    this process exits with it too. The signals of `signals.stopping` and Ctrl-C are forwarded to the workers, so that
    they can save; a second Ctrl-C ends all of them at once.

    Args:
        processes: number of processes on each machine.
        machines: number of machines; each calls this with a different `machine_rank`, counted from 0.
        url: `tcp://HOST:PORT` of machine 0, or `auto` for a free port of this machine if it is the only one.
    Raises:
        KeyboardInterrupt: after Ctrl-C, once the workers have ended.
    """
    host, port = _address(url, machines=machines, machine_rank=machine_rank)
    if processes * machines == 1:
        worker(*args)
        return
    environment = {"WORLD_SIZE": processes * machines, "LOCAL_WORLD_SIZE": processes, "MASTER_ADDR": host,
                   "MASTER_PORT": port}  # fmt: skip
    first = machine_rank * processes
    context = mp.spawn(_spawned, args=(worker, first, environment, args), nprocs=processes, join=False)
    try:
        with _forwarded_signals(context.pids()) as interrupted:
            while not context.join(grace_period=10):
                pass
        if interrupted:  # torch lets a process that Ctrl-C ends exit with 0
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        for process in context.processes:
            process.kill()  # or the interpreter would wait for them at its exit
        raise
    except mp.ProcessRaisedException as error:
        if f"{UserError.__module__}.{UserError.__qualname__}: " in str(error):
            raise UserError(message(error)) from None
        raise
    except mp.ProcessExitedException as error:  # the code given to sys.exit, or minus the signal's number
        raise SystemExit(error.exit_code if error.exit_code > 0 else 128 - error.exit_code) from None


def _address(url: str, *, machines: int, machine_rank: int) -> tuple[str, int]:
    if machines < 1 or not 0 <= machine_rank < machines:
        raise UserError(
            f"--num-machines {machines} --machine-rank {machine_rank}: ranks go from 0 to machines - 1"
        )
    if url == "auto":
        if machines > 1:
            raise UserError("--dist-url auto is for one machine: give tcp://HOST:PORT of machine 0")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            return "127.0.0.1", free.getsockname()[1]
    match = re.fullmatch(r"tcp://(.+):(\d+)", url)
    if not match or int(match[2]) > 65535:
        raise UserError(f"--dist-url {url}: give auto, or tcp://HOST:PORT of machine 0")
    return match[1].strip("[]"), int(match[2])


@contextmanager
def _forwarded_signals(pids: list[int]) -> Iterator[list[int]]:
    """Forward what a scheduler or a closing terminal sends to this process, and Ctrl-C, to its workers.

    Yield a list that is empty until Ctrl-C comes.
    """
    interrupted: list[int] = []

    def send(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            interrupted.append(number)
            if len(interrupted) > 1:
                raise KeyboardInterrupt
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    previous = {}
    if threading.current_thread() is threading.main_thread():  # handlers can only be set in it
        previous = {number: signal.signal(number, send) for number in (*stopping(), signal.SIGINT)}
    try:
        yield interrupted
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _spawned(
    local_rank: int, worker: Callable[..., None], first: int, environment: dict, args: tuple
) -> None:
    # This process was spawned, but its loader workers must use the platform's default start method, as under torchrun.
    multiprocessing.set_start_method(multiprocessing.get_all_start_methods()[0], force=True)
    escape_what_cannot_be_printed()
    end_with_the_parent(os.getppid())
    own = {"RANK": first + local_rank, "LOCAL_RANK": local_rank}
    os.environ.update({name: str(value) for name, value in {**environment, **own}.items()})
    worker(*args)
    # Not after an error: NCCL would wait for the other processes, and the error would never be reported.
    shutdown()


def all_gather_interleaved(local: torch.Tensor) -> torch.Tensor:
    """Gather a total batch whose image i is on process i mod W.

    Args:
        local: (N, ...), the same shape on every process. Gradients are not propagated.
    Returns:
        (W * N, ...) in the order of the total batch.
    """
    processes = world_size()
    if processes == 1:
        return local
    parts = [torch.empty_like(local, memory_format=torch.contiguous_format) for _ in range(processes)]
    td.all_gather(parts, local.contiguous())
    return torch.stack(parts, dim=1).flatten(0, 1)


def local_part(total: torch.Tensor) -> torch.Tensor:
    """Return this process's share of a total batch: the inverse of `all_gather_interleaved`."""
    return total[rank() :: world_size()]


def mean_over_processes(tensors: list[torch.Tensor]) -> None:
    """Replace each float tensor by its mean over all processes, in place, with one all-reduce."""
    if world_size() == 1 or not tensors:
        return
    flat = torch.cat([tensor.detach().reshape(-1) for tensor in tensors])
    td.all_reduce(flat)
    flat /= world_size()
    for tensor, mean in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
        tensor.detach().copy_(mean.view_as(tensor))


def copy_from_main(tensors: Iterable[torch.Tensor]) -> None:
    """Replace each float tensor by the main process's, in place, with one broadcast. Other tensors are not changed."""
    tensors = [tensor for tensor in tensors if tensor.is_floating_point()]
    if world_size() == 1 or not tensors:
        return
    flat = torch.cat([tensor.detach().reshape(-1) for tensor in tensors])
    td.broadcast(flat, 0)
    for tensor, value in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
        tensor.detach().copy_(value.view_as(tensor))
