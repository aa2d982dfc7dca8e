"""Process groups: one script runs as one process or as many, on CPUs (gloo) or GPUs (NCCL)."""

import functools
import multiprocessing
import os
import re
import signal
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from types import FrameType
from typing import cast

import torch
import torch.distributed as td
import torch.multiprocessing as mp

from pretrain.common.errors import UserError, message

_PATIENCE = timedelta(hours=4)  # the others wait while one evaluates


def world_size() -> int:
    """Number of processes; 1 without a process group."""
    return td.get_world_size() if td.is_available() and td.is_initialized() else 1


def rank() -> int:
    """Index of this process among all; 0 without a process group."""
    return td.get_rank() if td.is_available() and td.is_initialized() else 0


def is_main() -> bool:
    """Whether this process prints and writes files."""
    return rank() == 0


def barrier() -> None:
    """Wait until every process is here."""
    if world_size() > 1:
        td.barrier(device_ids=[torch.cuda.current_device()] if td.get_backend() == "nccl" else None)


def any_process(*wishes: bool) -> list[bool]:
    """For each wish whether any process has it: the same answer everywhere, and nobody goes on without the others.

    A message of a few bytes between the processors, in less than a millisecond; it waits for no GPU.
    """
    if world_size() == 1:
        return list(wishes)
    flags = torch.tensor(wishes, dtype=torch.uint8)
    td.all_reduce(flags, td.ReduceOp.MAX, group=_processors())
    return [bool(flag) for flag in flags]


@functools.cache
def _processors() -> td.ProcessGroup | None:
    """The group for CPU tensors; None: the default one takes them. NCCL takes GPU tensors only."""
    if td.get_backend() != "nccl":
        return None
    return cast(td.ProcessGroup, td.new_group(backend="gloo", timeout=_PATIENCE))


def pick_device(wanted: str) -> torch.device:
    """`auto` -> this process's GPU where there is one, else the CPU.

    Raises `UserError` when a GPU is asked for by name and PyTorch sees none.
    """
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    if wanted == "cuda":
        if not torch.cuda.is_available():
            raise UserError("DEVICE cuda: PyTorch sees no GPU here; use DEVICE cpu or auto")
        if local_rank >= torch.cuda.device_count():
            raise UserError(
                f"{local_rank + 1} processes on a machine with {torch.cuda.device_count()} GPU(s): "
                "start at most one process a GPU"
            )
        torch.cuda.set_device(local_rank)
        return torch.device("cuda", local_rank)
    if wanted == "cpu":
        return torch.device("cpu")
    raise UserError(f"DEVICE {wanted}: choose auto, cpu or cuda")


def init_from_env(device: torch.device) -> None:
    """Join the process group that torchrun (or `spawn`) describes in the environment; else do nothing.

    Raises `UserError` when the address cannot be used.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1 or td.is_initialized():
        return
    backend = "nccl" if device.type == "cuda" else "gloo"
    try:
        td.init_process_group(backend, timeout=_PATIENCE)
    except td.DistNetworkError as error:
        address = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        if "EADDRINUSE" in str(error) or "address already in use" in str(error):
            reason = "the port is in use"
        else:
            reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"--dist-url tcp://{address}: {reason}: give another port or host, the same on every machine "
            "(torchrun: --master-port, --master-addr)"
        ) from None


def shutdown() -> None:
    """Leave the process group, if any."""
    if td.is_available() and td.is_initialized():
        _processors.cache_clear()
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
    """Run `worker(*args)` in `processes` processes of this machine, with the environment torchrun would set.

    One process runs in place. `UserError`s of a worker are raised again here, once, and an exit code of
    a worker's own is this process's. SIGTERM and SIGUSR1 are passed on to the workers.

    Args:
        processes: on each machine.
        machines: of the job; each runs this with its own `machine_rank`, from 0.
        url: `tcp://HOST:PORT` of machine 0, or `auto`: any free port of this machine, the only one.
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
        with _passing_on(context.pids()):
            while not context.join(grace_period=10):
                pass
    except mp.ProcessRaisedException as error:
        if f"{UserError.__module__}.{UserError.__qualname__}: " in str(error):
            raise UserError(message(error)) from None
        raise
    except mp.ProcessExitedException as error:  # by sys.exit, or by a signal: minus its number
        raise SystemExit(error.exit_code if error.exit_code > 0 else 128 - error.exit_code) from None


def _address(url: str, *, machines: int, machine_rank: int) -> tuple[str, int]:
    if machines < 1 or not 0 <= machine_rank < machines:
        raise UserError(f"--num-machines {machines} --machine-rank {machine_rank}: ranks are 0..machines - 1")
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
def _passing_on(pids: list[int]) -> Iterator[None]:
    """Send SIGTERM and SIGUSR1, which a scheduler sends to this process, to its workers too."""

    def send(number: int, frame: FrameType | None) -> None:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    previous = {}
    if threading.current_thread() is threading.main_thread():  # Python allows it nowhere else
        previous = {number: signal.signal(number, send) for number in (signal.SIGTERM, signal.SIGUSR1)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _spawned(
    local_rank: int, worker: Callable[..., None], first: int, environment: dict, args: tuple
) -> None:
    # This process was spawned, but its loader workers are to start as they do everywhere else, under torchrun too
    multiprocessing.set_start_method(multiprocessing.get_all_start_methods()[0], force=True)
    own = {"RANK": first + local_rank, "LOCAL_RANK": local_rank}
    os.environ.update({name: str(value) for name, value in {**environment, **own}.items()})
    worker(*args)
    shutdown()  # not after an error: NCCL would wait for the other processes, and nobody would see it


def all_gather_interleaved(local: torch.Tensor) -> torch.Tensor:
    """Gather a batch that was dealt out like cards: image i of the total batch sits on process i mod W.

    Args:
        local: (N, ...), the same shape on every process; no gradient flows through.
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
    """This process's share of a total batch: the inverse of `all_gather_interleaved`."""
    return total[rank() :: world_size()]


def mean_over_processes(tensors: list[torch.Tensor]) -> None:
    """Replace each float tensor by its mean over all processes, in place, in one message."""
    if world_size() == 1 or not tensors:
        return
    flat = torch.cat([tensor.detach().reshape(-1) for tensor in tensors])
    td.all_reduce(flat)
    flat /= world_size()
    for tensor, mean in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
        tensor.detach().copy_(mean.view_as(tensor))


def copy_from_main(tensors: Iterable[torch.Tensor]) -> None:
    """Replace each float tensor by the main process's, in place, in one message. Other tensors are left alone."""
    tensors = [tensor for tensor in tensors if tensor.is_floating_point()]
    if world_size() == 1 or not tensors:
        return
    flat = torch.cat([tensor.detach().reshape(-1) for tensor in tensors])
    td.broadcast(flat, 0)
    for tensor, value in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
        tensor.detach().copy_(value.view_as(tensor))
