"""Momentum Contrast (He et al. 2020, Algorithm 1): two encoders, one of them slow, and a queue of keys."""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from fvcore.common.config import CfgNode
from torch import nn

from pretrain.common import distributed, rng
from pretrain.model import norm
from pretrain.model.contrast import Contrast, Keys


class MoCo(Contrast):
    """Query encoder, key encoder and queue.

    Args:
        make_encoder: makes an encoder, (N, 3, H, W) -> (N, dim), head included.
        dim: size of a key.
        queue_length: keys in the queue (K).
        momentum: of the key encoder (m): k <- m * k + (1 - m) * q.
        temperature: divides the cosines (tau).
    """

    queue: torch.Tensor
    queue_ptr: torch.Tensor

    def __init__(
        self,
        make_encoder: Callable[[], nn.Module],
        *,
        dim: int = 128,
        queue_length: int = 65536,
        momentum: float = 0.999,
        temperature: float = 0.2,
    ) -> None:
        super().__init__(make_encoder, temperature=temperature)
        self.momentum = momentum
        self.encoder_k = make_encoder()
        self.encoder_k.load_state_dict(self.encoder_q.state_dict())  # both start alike, head included
        self.encoder_k.requires_grad_(False)
        self.register_buffer("queue", F.normalize(torch.randn(dim, queue_length), dim=0))
        self.register_buffer("queue_ptr", torch.zeros(1, dtype=torch.long))

    def before_step(self) -> None:
        """Move the key encoder: before the keys, which is after the optimizer's step of the iteration before."""
        self.update_key_encoder()

    @torch.no_grad()
    def update_key_encoder(self) -> None:
        """Move the key encoder's parameters towards the query's. Its running statistics are its own."""
        slow: list[torch.Tensor] = list(self.encoder_k.parameters())
        fast: list[torch.Tensor] = list(self.encoder_q.parameters())
        torch._foreach_lerp_(slow, fast, 1 - self.momentum)

    @torch.no_grad()
    def encode_keys(self, images: torch.Tensor) -> torch.Tensor:
        """(N, 3, H, W) -> (N, dim) of unit length; no gradient."""
        return F.normalize(self.encoder_k(images).float(), dim=1)

    def keys(
        self,
        views: torch.Tensor,
        *,
        pixels: Callable[[torch.Tensor], torch.Tensor],
        order: torch.Tensor | None = None,
        images: torch.Tensor | None = None,
        iteration: int = 0,
    ) -> Keys:
        """Positives from the key encoder, negatives from the queue."""
        return Keys(unshuffle(self.encode_keys(pixels(shuffle(views, order))), order), self.queue)

    def after_step(self, keys: Keys, queries: torch.Tensor, images: torch.Tensor | None) -> None:
        """Put the keys of the total batch into the queue."""
        self.enqueue(keys.positive)

    @torch.no_grad()
    def enqueue(self, keys: torch.Tensor) -> None:
        """Overwrite the oldest keys by the (B, dim) of the total batch, in order; any B, also above K."""
        length = self.queue.shape[1]
        skipped = max(len(keys) - length, 0)  # these would be overwritten within the same call
        slots = (self.queue_ptr + torch.arange(skipped, len(keys), device=keys.device)) % length
        self.queue.index_copy_(1, slots, keys[skipped:].T.to(self.queue.dtype))
        self.queue_ptr.add_(len(keys)).remainder_(length)


def key_order(cfg: CfgNode, iteration: int) -> torch.Tensor | None:
    """The permutation of an iteration's keys (Sec. 3.3 of the paper); None where they are not shuffled.

    A memory bank needs none: its keys come from other steps, with other statistics.
    """
    shuffles = cfg.MOCO.SHUFFLE and cfg.MOCO.MECHANISM != "memorybank"
    if cfg.MODEL.NORM != "ShuffleBN" or not shuffles:
        return None
    return permutation(cfg.SOLVER.IMS_PER_BATCH, groups=norm.groups_of(cfg), seed=cfg.SEED, step=iteration)


def permutation(images: int, *, groups: int, seed: int, step: int) -> torch.Tensor:
    """The order in which the key encoder sees the total batch: position p holds image `permutation[p]`.

    A pure function of (seed, step). Position p is in batch-norm group p mod `groups`, as image p is for the
    queries; orders in which a key group holds the same images as a query group are drawn again.
    """
    random = rng.generator("shuffle", seed, step)
    while True:
        order = random.permutation(images)
        query_group = (order % groups).reshape(-1, groups)  # row: members; column: one key group each
        if not np.any(np.all(query_group == query_group[0], axis=0)):
            return torch.from_numpy(order)


def on_device(numbers: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Numbers that the CPU drew, on the device; from ordinary memory the copy would make the CPU wait for the GPU."""
    return numbers if device.type == "cpu" else numbers.pin_memory().to(device, non_blocking=True)


def shuffle(local: torch.Tensor, order: torch.Tensor | None) -> torch.Tensor:
    """This process's share of the permuted total batch, (N, ...) -> (N, ...). None leaves it as it is."""
    return local if order is None else shuffled_part(distributed.all_gather_interleaved(local), order)


def shuffled_part(total: torch.Tensor, order: torch.Tensor | None) -> torch.Tensor:
    """Of a total batch, (B, ...), the share that this process has after `shuffle`, (N, ...)."""
    return distributed.local_part(total if order is None else total[order])


def unshuffle(local: torch.Tensor, order: torch.Tensor | None) -> torch.Tensor:
    """The total batch in its own order, (N, dim) -> (B, dim): what `shuffle` did is undone."""
    total = distributed.all_gather_interleaved(local)
    if order is None:
        return total
    restored = torch.empty_like(total)
    restored[order] = total
    return restored
