"""The precision in which encoders compute, and the memory format of a batch.

Whether bfloat16 is worth using on a CPU can only be found by timing a step: some are ten times slower with it.
"""

import time
from collections.abc import Callable

import torch
from fvcore.common.config import CfgNode
from torch import nn

from pretrain.common import distributed
from pretrain.common.console import say
from pretrain.common.errors import UserError

_WORTH_IT = 1.2  # bf16 must be this many times faster than float32
_IMAGES = 16


def decide(
    setting: str,
    make_encoder: Callable[[], nn.Module],
    *,
    size: int,
    group_size: int,
    device: torch.device,
    layout: torch.memory_format = torch.contiguous_format,
) -> str:
    """Return "bf16", "fp16" or "off" for SOLVER.AMP, followed by the reason: one line, the same in every process.

    `auto` chooses bf16 on a GPU that supports it. On a CPU it times training steps of a temporary encoder in both
    precisions, on `size` x `size` images in this `layout`, as many as fill whole batch-norm groups of `group_size`.

    Raises:
        UserError: fp16 without a GPU.
    """
    if setting == "fp16" and device.type != "cuda":
        raise UserError(
            "SOLVER.AMP fp16: float16 needs a GPU; use SOLVER.AMP auto (bf16 if it is faster) or off"
        )
    if setting != "auto":
        return f"{setting} (SOLVER.AMP)"
    if device.type == "cuda":
        return "bf16 (this GPU supports it)" if native_bf16() else "off (this GPU does not support bf16)"
    say("timing a bf16 step and a float32 step ...")
    encoder = make_encoder().to(device)
    count = _IMAGES // group_size * group_size or _IMAGES  # fewer images than a group still make one group
    images = torch.randn(count, 3, size, size, device=device).contiguous(memory_format=layout)
    full, half = _seconds(encoder, images)
    ratio = torch.tensor([full / half], device=device)
    distributed.mean_over_processes([ratio])
    choice = "bf16" if ratio.item() >= _WORTH_IT else "off"
    return f"{choice} (a bf16 step takes {1 / ratio.item():.2f} times as long as a float32 one)"


def native_bf16() -> bool:
    """Return whether the GPU computes in bfloat16 itself, which is faster than in float32; False without a GPU."""
    return torch.cuda.is_bf16_supported(including_emulation=False)


def forbid_tf32() -> None:
    """Make GPUs compute float32 in full precision, as the papers' V100s did.

    PyTorch lets convolutions on newer GPUs use TF32, which has 10 bits instead of 23 after the binary point.
    """
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False


def channels_last(cfg: CfgNode, device: torch.device) -> bool:
    """Return whether batches are stored channels last, the format that tensor cores and large CPU convolutions prefer.

    Measured on an AVX-512 CPU with oneDNN, forward and backward pass: 12 to 15 % less time at 128 and 224 pixels,
    28 % less for a quarter-width ResNet-50, but up to 20 % more for ResNet-18 at 64 pixels, where converting the
    weights to that format costs more than the images gain.
    """
    return device.type == "cuda" or cfg.INPUT.SIZE >= 128 or cfg.MODEL.WIDTH < 1


def _seconds(encoder: nn.Module, images: torch.Tensor) -> tuple[float, float]:
    """Return the shortest times of a float32 and of a bf16 step, run alternately so that other load affects both."""
    best, begin = [float("inf")] * 2, time.perf_counter()
    for attempt in range(6):
        for bf16 in (False, True):
            start = time.perf_counter()
            with torch.autocast(images.device.type, dtype=torch.bfloat16, enabled=bf16):
                output = encoder(images)
            output.float().square().sum().backward()
            if attempt:  # the first steps warm up
                best[bf16] = min(best[bf16], time.perf_counter() - start)
        spent = torch.tensor([time.perf_counter() - begin], device=images.device)
        # Steps of different processes may wait for each other (SyncBN), so all must stop together.
        distributed.mean_over_processes([spent])
        if attempt and spent.item() > 10:
            break
    return best[0], best[1]
