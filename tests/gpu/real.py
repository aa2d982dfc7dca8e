"""What the tests share that need a real GPU: their marks, and a look at what makes the CPU wait for it."""

import contextlib
from collections.abc import Iterator

import pytest
import torch

GPU = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]
DEVICE = torch.device("cuda", 0)


@contextlib.contextmanager
def no_waiting() -> Iterator[None]:
    """Raise `RuntimeError` at a call that makes the CPU wait for the GPU."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@contextlib.contextmanager
def little_memory(gigabytes: float) -> Iterator[None]:
    """Let PyTorch use only this much of the GPU's memory."""
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(DEVICE).total_memory
    torch.cuda.set_per_process_memory_fraction(gigabytes * 1e9 / total, DEVICE)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, DEVICE)
        torch.cuda.empty_cache()


@contextlib.contextmanager
def deterministic() -> Iterator[None]:
    """Choose deterministic algorithms where PyTorch has them; it warns where it has none."""
    cudnn = torch.backends.cudnn.deterministic
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.deterministic = True
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)
        torch.backends.cudnn.deterministic = cudnn
