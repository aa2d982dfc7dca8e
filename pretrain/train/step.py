"""One training step of MoCo or of a mechanism beside it, on this process's share of the total batch."""

import math
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from pretrain.common import distributed
from pretrain.data.on_device import Pixels
from pretrain.model import moco
from pretrain.model.contrast import Contrast, KeyInputs, Keys

# What a step reports, as means over the total batch. `in_batch_accuracy`: whether the positive is nearer than
# the other keys of the same batch; a young queue holds noise or old keys, and these are as new as the query.
# `feature_std`: see `spread`.
METRICS = ("loss", "accuracy", "in_batch_accuracy", "positive_cosine", "negative_cosine", "feature_std")


class NonFiniteLoss(Exception):
    """The loss of a step is infinite or not a number."""


def train_step(
    model: Contrast,
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
) -> torch.Tensor:
    """Algorithm 1 of the paper. Returns METRICS, averaged over this process's images (loss and feature_std over all).

    Args:
        views: query and key images, each (N, H, W, 3) uint8 on the model's device.
        images: (N,) int64, their numbers in the data set, on the model's device; a memory bank needs them.
        iteration: from 0; a memory bank's draws depend on it.
        order: permutation of the total key batch; None: the keys are not shuffled.
        bf16: run the encoders under bfloat16 autocast; logits and loss stay in float32.
        scaler: run them under float16 autocast instead, with the loss scaled by this. Steps whose gradients
            overflow leave the weights alone, as torch has it.
        parts: number of pieces whose gradients are summed. Image j is in piece j mod `parts`: each must hold
            whole batch-norm groups, which makes the sum exact. Only queries come in pieces, keys do not.
    Raises:
        NonFiniteLoss: on a CPU, before the optimizer's step and before queue or bank change; MoCo's key encoder,
            running statistics and gradients have changed already. On a GPU this would cost a wait in every step:
            there the weights stay as they are after such a loss, and the caller looks at the losses when it logs.
    """
    query_views, key_views = views
    amp = torch.float16 if scaler else torch.bfloat16 if bf16 else None
    precision = partial(torch.autocast, query_views.device.type, dtype=amp, enabled=amp is not None)
    scaler = scaler or torch.amp.GradScaler(query_views.device.type, enabled=False)
    order = None if order is None else moco.on_device(order, query_views.device)
    model.before_step()
    with precision():
        keys = model.keys(KeyInputs(key_views, pixels, order, images, iteration))
    optimizer.zero_grad()
    metrics = torch.zeros(len(METRICS), device=query_views.device)
    statistics = _RunningStatistics(model.encoder_q, parts)
    seen = torch.empty_like(distributed.local_part(keys.positive))  # the queries of all parts
    for part in range(parts):
        rows = torch.arange(part, len(seen), parts, device=seen.device)
        places = rows * distributed.world_size() + distributed.rank()  # of these images in the total batch
        with precision():
            queries = model.encode_queries(pixels(query_views[rows]))
        logits = model.logits(queries, keys, places)
        loss = F.cross_entropy(logits, torch.zeros_like(rows)) * (len(rows) / len(seen))
        scaler.scale(loss).backward()
        statistics.next_part()
        seen[rows] = queries.detach()
        metrics += _measure(queries, logits * model.temperature, keys, places) / len(seen)
        metrics[0] += loss.detach()
    _backward_through_keys(keys, order)
    moments = torch.stack([seen.mean(0), seen.square().mean(0)])
    _mean_over_processes(model, metrics[:1], moments)
    metrics[-1] = spread(moments)
    if metrics.device.type == "cpu" and not math.isfinite(metrics[0]):
        raise NonFiniteLoss
    if metrics.device.type != "cpu" and not scaler.is_enabled():
        _leave_weights_after(metrics[0], optimizer)
    scaler.step(optimizer)
    scaler.update()
    model.after_step(keys, seen, images)
    return metrics


def _leave_weights_after(loss: torch.Tensor, optimizer: torch.optim.Optimizer) -> None:
    """Make the fused step of `optimizer` do nothing if the loss is not finite, without a look at it."""
    optimizer.found_inf = (~loss.isfinite()).float()  # type: ignore[attr-defined]  # what a GradScaler sets


def _backward_through_keys(keys: Keys, order: torch.Tensor | None) -> None:
    """Carry the gradient of all keys, summed over the queries of all processes, on into the key encoder."""
    if keys.encoded is None:
        return
    assert keys.positive.grad is not None
    gradient = keys.positive.grad * distributed.world_size()
    distributed.mean_over_processes([gradient])
    keys.encoded.backward(moco.shuffled_part(gradient, order))


def spread(moments: torch.Tensor) -> torch.Tensor:
    """How far unit vectors are spread out: 1 for evenly over the sphere, 0 for all the same (a collapse).

    Their standard deviation over the batch, in the mean over the dimensions, times the root of these (Chen and He
    2021, SimSiam, Figure 2).

    Args:
        moments: (2, dim), means of the vectors and of their squares over the batch.
    """
    mean, square = moments
    return (square - mean.square()).clamp(min=0).sqrt().mean() * math.sqrt(len(mean))


def _mean_over_processes(model: Contrast, *others: torch.Tensor) -> None:
    """Average gradients, running statistics and `others`: from here on every process holds the same."""
    if distributed.world_size() > 1:
        gradients = [p.grad for p in model.trained() if p.grad is not None]
        running = [buffer for name, buffer in model.named_buffers() if "running_" in name]
        distributed.mean_over_processes([*gradients, *others, *running])


@torch.no_grad()
def _measure(queries: torch.Tensor, cosines: torch.Tensor, keys: Keys, places: torch.Tensor) -> torch.Tensor:
    """METRICS of some queries, as sums over them; loss and feature_std are left at 0."""
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


class _RunningStatistics:
    """Makes running statistics after several parts what they would be after one pass over all.

    They are linear in the batch statistics, so the mean of the updates that each part makes on the old values
    is the update that all parts together make.
    """

    def __init__(self, encoder: nn.Module, parts: int) -> None:
        self.parts = parts
        self.buffers = list(encoder.buffers()) if parts > 1 else []
        self.before = [buffer.clone() for buffer in self.buffers]
        self.after = [torch.zeros_like(buffer) for buffer in self.buffers]
        self.done = 0

    @torch.no_grad()
    def next_part(self) -> None:
        """Note what a part did to the buffers and take it back; after the last part leave the mean."""
        self.done += 1
        for buffer, before, after in zip(self.buffers, self.before, self.after, strict=True):
            after += buffer
            buffer.copy_(after / self.parts if self.done == self.parts else before)
