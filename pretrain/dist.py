"""Process groups: one script runs as one process or as many, on CPUs (gloo) or GPUs (NCCL)."""

import os
import socket
from collections.abc import Callable
from datetime import timedelta

import torch
import torch.distributed as td
import torch.multiprocessing as mp

from pretrain.errors import UserError, message


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
    """Join the process group that torchrun (or `spawn`) describes in the environment; else do nothing."""
    if int(os.environ.get("WORLD_SIZE", 1)) > 1 and not td.is_initialized():
        backend = "nccl" if device.type == "cuda" else "gloo"
        td.init_process_group(backend, timeout=timedelta(hours=4))  # the others wait while one evaluates


def shutdown() -> None:
    """Leave the process group, if any."""
    if td.is_available() and td.is_initialized():
        td.destroy_process_group()


def spawn(worker: Callable[..., None], processes: int, args: tuple = ()) -> None:
    """Run `worker(*args)` in `processes` processes of this machine, with the environment torchrun would set.

    One process runs in place. `UserError`s of a worker are raised again here, once.
    """
    if processes == 1:
        worker(*args)
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    try:
        mp.spawn(_spawned, args=(worker, processes, port, args), nprocs=processes)
    except mp.ProcessRaisedException as error:
        if f"{UserError.__module__}.{UserError.__qualname__}: " in str(error):
            raise UserError(message(error)) from None
        raise


def _spawned(local_rank: int, worker: Callable[..., None], processes: int, port: int, args: tuple) -> None:
    os.environ.update(
        RANK=str(local_rank), LOCAL_RANK=str(local_rank), WORLD_SIZE=str(processes),
        LOCAL_WORLD_SIZE=str(processes), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port),
    )  # fmt: skip
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
