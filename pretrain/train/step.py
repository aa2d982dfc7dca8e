"""One training step of MoCo, or of a mechanism it is compared with, on this process's share of the total batch."""

import math
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from pretrain.common import distributed
from pretrain.data.on_device import Pixels
from pretrain.model import moco, symmetric
from pretrain.model.contrast import Contrast, KeyInputs, Keys, Mechanism
from pretrain.model.moco_v3 import MoCoV3
from pretrain.model.symmetric import Compared, Precision

# What a step reports, as means over the total batch. `in_batch_accuracy`: whether the positive is nearer than the other
# keys of the same batch, which are as recent as the query; a young queue holds noise or old keys. `feature_std`: see
# `spread`. With MoCo v3 there are no other keys, and each image counts twice, once for each view as a query.
METRICS = ("loss", "accuracy", "in_batch_accuracy", "positive_cosine", "negative_cosine", "feature_std")


class NonFiniteLoss(Exception):
    """The loss of a step is infinite or NaN."""


def train_step(
    model: Mechanism,
    optimizer: torch.optim.Optimizer,
    views: tuple[torch.Tensor, torch.Tensor],
    *,
    pixels: Pixels,
    images: torch.Tensor | None = None,
    iteration: int = 0,
    order: torch.Tensor | None = None,
    bf16: bool = False,
    scaler: torch.amp.GradScaler | None = None,
    parts: int = 1,
    chunk: int = 0,
) -> torch.Tensor:
    """Take one step of Algorithm 1 of MoCo's or MoCo v3's paper and return METRICS.

    They are means over this process's images; loss and feature_std are over the total batch.

    Args:
        views: query and key images, each (N, H, W, 3) uint8 on the model's device.
        images: (N,) int64, image numbers in the data set, on the model's device; a memory bank needs them.
        iteration: zero-based; a memory bank's draws depend on it.
        order: permutation of the total key batch; None means that the keys are not shuffled.
        bf16: run the encoders under bfloat16 autocast; logits and loss stay in float32.
        scaler: run them under float16 autocast instead and scale the loss by this. As always in torch, a step
            whose gradients overflow leaves the weights unchanged.
        parts: number of pieces whose gradients are summed. Image j is in piece j mod `parts`. Each piece must
            hold whole batch-norm groups, which makes the sum exact. Only queries are split, keys are not.
        chunk: number of images that MoCo v3's ViT encodes at a time, with the same result; 0: all.
    Raises:
        NonFiniteLoss: on a CPU, before the optimizer's step and before the queue or bank changes; the key
            encoder of MoCo, running statistics and gradients have changed by then. On a GPU the check would make every
            step wait: there such a loss leaves the weights unchanged, and the caller checks losses when it logs.
    """
    device = views[0].device
    amp = torch.float16 if scaler else torch.bfloat16 if bf16 else None
    precision = partial(torch.autocast, device.type, dtype=amp, enabled=amp is not None)
    scaler = scaler or torch.amp.GradScaler(device.type, enabled=False)
    model.before_step()
    optimizer.zero_grad()
    keys: Keys | None = None
    if isinstance(model, MoCoV3):
        inputs = (pixels(views[0]), pixels(views[1]))
        compared = symmetric.backward(model, inputs, precision=precision, scaler=scaler, chunk=chunk)
        metrics, seen = _measure_symmetric(compared)
    else:
        assert isinstance(model, Contrast)
        order = None if order is None else moco.on_device(order, device)
        with precision():
            keys = model.keys(KeyInputs(views[1], pixels, order, images, iteration))
        metrics, seen = _backward(
            model, views[0], keys, pixels=pixels, precision=precision, scaler=scaler, parts=parts
        )
        _backward_through_keys(keys, order)
    moments = torch.stack([seen.mean(0), seen.square().mean(0)])
    _mean_over_processes(model, metrics[:1], moments)
    metrics[-1] = spread(moments)
    if device.type == "cpu" and not math.isfinite(metrics[0]):
        raise NonFiniteLoss
    if device.type != "cpu" and not scaler.is_enabled():
        _leave_weights_after(metrics[0], optimizer)
    scaler.step(optimizer)
    scaler.update()
    if keys is not None:
        assert isinstance(model, Contrast)
        model.after_step(keys, seen, images)
    return metrics


def _backward(
    model: Contrast,
    views: torch.Tensor,
    keys: Keys,
    *,
    pixels: Pixels,
    precision: Precision,
    scaler: torch.amp.GradScaler,
    parts: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Add the gradient of InfoNCE over this process's images; return METRICS and the queries, (N, dim), without it."""
    metrics = torch.zeros(len(METRICS), device=views.device)
    statistics = _RunningStatistics(model.encoder_q, parts)
    seen = torch.empty_like(distributed.local_part(keys.positive))  # the queries of all parts
    for part in range(parts):
        rows = torch.arange(part, len(seen), parts, device=seen.device)
        places = rows * distributed.world_size() + distributed.rank()  # of these images in the total batch
        with precision():
            queries = model.encode_queries(pixels(views[rows]))
        logits = model.logits(queries, keys, places)
        loss = F.cross_entropy(logits, torch.zeros_like(rows)) * (len(rows) / len(seen))
        scaler.scale(loss).backward()
        statistics.next_part()
        seen[rows] = queries.detach()
        metrics += _measure(queries, logits * model.temperature, keys, places) / len(seen)
        metrics[0] += loss.detach()
    return metrics, seen


def _leave_weights_after(loss: torch.Tensor, optimizer: torch.optim.Optimizer) -> None:
    """Make the fused step of `optimizer` do nothing if the loss is not finite, without waiting for its value."""
    optimizer.found_inf = (~loss.isfinite()).float()  # type: ignore[attr-defined]  # what a GradScaler sets


def _backward_through_keys(keys: Keys, order: torch.Tensor | None) -> None:
    """Pass the gradient of all keys, summed over the queries of all processes, on to the key encoder."""
    if keys.encoded is None:
        return
    assert keys.positive.grad is not None
    gradient = keys.positive.grad * distributed.world_size()
    distributed.mean_over_processes([gradient])
    keys.encoded.backward(moco.shuffled_part(gradient, order))


def spread(moments: torch.Tensor) -> torch.Tensor:
    """Return how far unit vectors are spread: 1 if evenly over the sphere, 0 if they are all equal (a collapse).

    This is the standard deviation over the batch, averaged over the dimensions, times the square root of their
    number (Chen and He 2021, SimSiam, Figure 2).

    Args:
        moments: (2, dim), means of the vectors and of their squares over the batch.
    """
    mean, square = moments
    return (square - mean.square()).clamp(min=0).sqrt().mean() * math.sqrt(len(mean))


def _mean_over_processes(model: Mechanism, *others: torch.Tensor) -> None:
    """Average gradients, running statistics and `others`, so that every process holds the same."""
    if distributed.world_size() > 1:
        gradients = [p.grad for p in model.trained() if p.grad is not None]
        running = [buffer for name, buffer in model.named_buffers() if "running_" in name]
        distributed.mean_over_processes([*gradients, *others, *running])


@torch.no_grad()
def _measure(queries: torch.Tensor, cosines: torch.Tensor, keys: Keys, places: torch.Tensor) -> torch.Tensor:
    """Return METRICS of some queries, summed over them; loss and feature_std are left at 0."""
    negative = cosines[:, 1:]
    counted = negative != -torch.inf
    return torch.stack(
        [
            cosines.new_zeros(()),
            (cosines.argmax(1) == 0).sum(),
            ((queries @ keys.positive.T).argmax(1) == places).sum(),
            cosines[:, 0].sum(),
            (negative.where(counted, 0).sum(1) / counted.sum(1)).sum(),
            cosines.new_zeros(()),
        ]
    )


def _measure_symmetric(compared: list[Compared]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return METRICS of a step of MoCo v3, feature_std left at 0, and the queries of both views, (2N, dim)."""
    loss = torch.stack([one.loss for one in compared]).sum()
    cosines, places = (
        torch.cat(parts) for parts in zip(*((c.cosines, c.places) for c in compared), strict=True)
    )
    positive = cosines.gather(1, places[:, None])[:, 0]
    found = (cosines.argmax(1) == places).to(cosines.dtype).mean()
    negative = (cosines.sum(1) - positive).mean() / (cosines.shape[1] - 1)
    metrics = [loss, found, found, positive.mean(), negative, torch.zeros_like(loss)]
    return torch.stack(metrics), torch.cat([one.queries for one in compared])


class _RunningStatistics:
    """Makes running statistics after several parts equal to those after one pass over the whole batch.

    They are linear in the batch statistics, so the update by the whole batch is the mean of the updates that each
    part would make to the old values.
    """

    def __init__(self, encoder: nn.Module, parts: int) -> None:
        self.parts = parts
        self.buffers = list(encoder.buffers()) if parts > 1 else []
        self.before = [buffer.clone() for buffer in self.buffers]
        self.after = [torch.zeros_like(buffer) for buffer in self.buffers]
        self.done = 0

    @torch.no_grad()
    def next_part(self) -> None:
        """Record what a part did to the buffers and undo it; after the last part, set the mean."""
        self.done += 1
        for buffer, before, after in zip(self.buffers, self.before, self.after, strict=True):
            after += buffer
            buffer.copy_(after / self.parts if self.done == self.parts else before)
