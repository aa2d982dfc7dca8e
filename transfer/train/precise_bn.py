"""PreciseBN: running statistics measured with the final weights, identical in every process.

The paper's detection configs use it (`TEST.PRECISE_BN`). With fvcore's version each process keeps the statistics of
its own images (detectron2 issue 5398), so evaluation in eight processes uses eight slightly different models. Here
the statistics are averaged over all processes.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from pretrain.common import distributed

ESTIMATOR = "mean over batches and processes of the batch mean and of the unbiased batch variance"


@torch.no_grad()
def update(model: nn.Module, batches: Iterator[Any], iterations: int) -> int:
    """Replace the running mean and variance of each BN layer in training mode by the average over batches.

    The estimator is fvcore's original one (2019): the plain average of the per-batch mean and unbiased variance
    (Ioffe and Szegedy 2015, Sec. 3.1).

    Args:
        model: in training mode; it is called with each batch.
        batches: this process's batches; `iterations` of them are used.
        iterations: at least 1.
    Returns:
        The number of updated layers. If it is 0, no batch has been read.
    """
    layers = [
        m for m in model.modules() if isinstance(m, _BatchNorm) and m.training and m.track_running_stats
    ]
    if not layers:
        return 0
    buffers = [b for layer in layers for b in (layer.running_mean, layer.running_var) if b is not None]
    sums = [torch.zeros_like(buffer) for buffer in buffers]
    momenta = [layer.momentum for layer in layers]
    try:
        for layer in layers:
            layer.momentum = 1.0  # the running statistics become those of the last batch
        for _ in range(iterations):
            model(next(batches))
            torch._foreach_add_(sums, buffers)
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
    torch._foreach_div_(sums, float(iterations))
    distributed.mean_over_processes(sums)
    for buffer, mean in zip(buffers, sums, strict=True):
        buffer.copy_(mean)
    return len(layers)


def share(model: nn.Module) -> None:
    """Copy the main process's running statistics to every process, so that the saved ones are tested.

    Without this, layers that are not synchronised have the statistics of their own process's images.
    """
    distributed.copy_from_main([b for name, b in model.named_buffers() if "running_" in name])
