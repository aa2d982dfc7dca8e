"""One training step of MoCo, on this process's share of the total batch."""

import math

import torch
import torch.nn.functional as F
from torch import nn

from pretrain import dist, moco
from pretrain.moco import MoCo

# What a step reports, as means over the total batch. `in_batch_accuracy`: whether the positive is nearer than
# the other keys of the same batch; a young queue holds noise or old keys, and these are as new as the query.
METRICS = ("loss", "accuracy", "in_batch_accuracy", "positive_cosine", "negative_cosine")


class NonFiniteLoss(Exception):
    """The loss of a step is infinite or not a number."""


class Pixels(nn.Module):
    """(N, H, W, 3) uint8 -> (N, 3, H, W) float32, normalised: images travel as bytes until here."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, mean: list[float], std: list[float], *, channels_last: bool = False) -> None:
        super().__init__()
        self.register_buffer("mean", 255 * torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(std).view(3, 1, 1), persistent=False)
        self.format = torch.channels_last if channels_last else torch.contiguous_format

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Normalise a batch."""
        images = (images.permute(0, 3, 1, 2) - self.mean) / self.std
        return images.contiguous(memory_format=self.format)


def train_step(
    model: MoCo,
    optimizer: torch.optim.Optimizer,
    views: tuple[torch.Tensor, torch.Tensor],
    *,
    pixels: Pixels,
    order: torch.Tensor | None = None,
    bf16: bool = False,
    parts: int = 1,
) -> torch.Tensor:
    """Algorithm 1 of the paper. Returns METRICS, averaged over this process's images (the loss over all).

    Args:
        views: query and key images, each (N, H, W, 3) uint8 on the model's device.
        order: permutation of the total key batch; None: the keys are not shuffled.
        bf16: run the encoders under bfloat16 autocast; logits and loss stay in float32.
        parts: number of pieces whose gradients are summed. Image j is in piece j mod `parts`: each must hold
            whole batch-norm groups, which makes the sum exact.
    Raises:
        NonFiniteLoss: before the query encoder's weights and the queue change; the key encoder, running
            statistics and gradients have changed already. On a GPU this would cost a wait in
            every step: there the caller looks at the losses when it logs and before it saves.
    """
    query_images, key_images = views
    model.update_key_encoder()
    with torch.autocast(query_images.device.type, dtype=torch.bfloat16, enabled=bf16):
        shuffled = pixels(moco.shuffle(key_images, order))
        keys = moco.unshuffle(model.encode_keys(shuffled), order)  # (B, dim)
    own_keys = dist.local_part(keys)
    optimizer.zero_grad()
    metrics = torch.zeros(len(METRICS), device=keys.device)
    statistics = _RunningStatistics(model.encoder_q, parts)
    for part in range(parts):
        rows = torch.arange(part, len(own_keys), parts, device=keys.device)
        with torch.autocast(query_images.device.type, dtype=torch.bfloat16, enabled=bf16):
            queries = model.encode_queries(pixels(query_images[rows]))
        logits = model.logits(queries, own_keys[rows])
        loss = F.cross_entropy(logits, torch.zeros_like(rows)) * (len(rows) / len(own_keys))
        loss.backward()
        statistics.next_part()
        metrics += _measure(model, queries, logits, keys, rows=rows, loss=loss) / len(own_keys)
    gradients = [p.grad for p in model.encoder_q.parameters() if p.grad is not None]
    dist.mean_over_processes([*gradients, metrics[:1]])
    if metrics.device.type == "cpu" and not math.isfinite(metrics[0]):
        raise NonFiniteLoss
    optimizer.step()
    model.enqueue(keys)
    return metrics


@torch.no_grad()
def _measure(
    model: MoCo,
    queries: torch.Tensor,
    logits: torch.Tensor,
    keys: torch.Tensor,
    *,
    rows: torch.Tensor,
    loss: torch.Tensor,
) -> torch.Tensor:
    """METRICS of some rows, as sums over them (`loss` comes as a share of the mean of this process)."""
    own = rows * dist.world_size() + dist.rank()  # places of these images in the total batch
    cosines = logits * model.temperature
    return torch.stack(
        [
            loss.detach() * len(dist.local_part(keys)),
            (logits.argmax(1) == 0).sum(),
            ((queries @ keys.T).argmax(1) == own).sum(),
            cosines[:, 0].sum(),
            cosines[:, 1:].mean(1).sum(),
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
