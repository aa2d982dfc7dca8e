"""Momentum Contrast (He et al. 2020, Algorithm 1): two encoders, one of them slow, and a queue of keys."""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from fvcore.common.config import CfgNode
from torch import nn

from pretrain.common import distributed, rng
from pretrain.model import norm
from pretrain.model.contrast import Contrast, KeyInputs, Keys


class MoCo(Contrast):
    """Query encoder, key encoder (a momentum encoder) and queue of keys (Sec. 3.2 of the paper).

    Args:
        make_encoder: makes an encoder, (N, 3, H, W) -> (N, dim), head included.
        dim: size of a key.
        queue_length: number of keys in the queue (K).
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
        self.encoder_k.load_state_dict(self.encoder_q.state_dict())  # both start equal, head included
        self.encoder_k.requires_grad_(False)
        self.register_buffer("queue", F.normalize(torch.randn(dim, queue_length), dim=0))
        self.register_buffer("queue_ptr", torch.zeros(1, dtype=torch.long))

    def before_step(self) -> None:
        """Update the key encoder. This is the update that Algorithm 1 makes at the end of the previous iteration."""
        self.update_key_encoder()

    @torch.no_grad()
    def update_key_encoder(self) -> None:
        """Apply the momentum update (Eqn. 2) to the key encoder's parameters, but not to its running statistics."""
        slow: list[torch.Tensor] = list(self.encoder_k.parameters())
        fast: list[torch.Tensor] = list(self.encoder_q.parameters())
        torch._foreach_lerp_(slow, fast, 1 - self.momentum)

    @torch.no_grad()
    def encode_keys(self, images: torch.Tensor) -> torch.Tensor:
        """Return the keys, (N, 3, H, W) -> (N, dim), scaled to unit length and without gradient."""
        return F.normalize(self.encoder_k(images).float(), dim=1)

    def keys(self, inputs: KeyInputs) -> Keys:
        """Return positives from the key encoder and negatives from the queue."""
        encoded = self.encode_keys(inputs.pixels(shuffle(inputs.views, inputs.order)))
        return Keys(unshuffle(encoded, inputs.order), self.queue)

    def after_step(self, keys: Keys, queries: torch.Tensor, images: torch.Tensor | None) -> None:
        """Add the keys of the total batch to the queue."""
        self.enqueue(keys.positive)

    @torch.no_grad()
    def enqueue(self, keys: torch.Tensor) -> None:
        """Replace the oldest keys of the queue (Sec. 3.1) by the (B, dim) of the total batch, in order.

        B may be any number, even more than the queue's length.
        """
        length = self.queue.shape[1]
        skipped = max(len(keys) - length, 0)  # these would be overwritten within the same call
        slots = (self.queue_ptr + torch.arange(skipped, len(keys), device=keys.device)) % length
        self.queue.index_copy_(1, slots, keys[skipped:].T.to(self.queue.dtype))
        self.queue_ptr.add_(len(keys)).remainder_(length)


def key_order(cfg: CfgNode, iteration: int) -> torch.Tensor | None:
    """Return the permutation that shuffles an iteration's keys (shuffling BN, Sec. 3.3); None: no shuffling.

    A memory bank needs no shuffling: its keys come from other steps, with other batch statistics.
    """
    shuffles = cfg.MOCO.SHUFFLE and cfg.MOCO.MECHANISM != "memorybank"
    if cfg.MODEL.NORM != "ShuffleBN" or not shuffles:
        return None
    return permutation(cfg.SOLVER.IMS_PER_BATCH, groups=norm.groups_of(cfg), seed=cfg.SEED, step=iteration)


def permutation(images: int, *, groups: int, seed: int, step: int) -> torch.Tensor:
    """Return the order in which the key encoder sees the total batch: position p holds image `permutation[p]`.

    The result depends on (seed, step) alone. Position p belongs to batch-norm group p mod `groups`, as image p does
    for the queries. Orders in which a key group holds the same images as a query group are rejected and redrawn.
    """
    random = rng.generator("shuffle", seed, step)
    while True:
        order = random.permutation(images)
        query_group = (order % groups).reshape(-1, groups)  # row: members; column: one key group each
        if not np.any(np.all(query_group == query_group[0], axis=0)):
            return torch.from_numpy(order)


def on_device(numbers: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy numbers drawn on the CPU to the device, from pinned memory so that the CPU does not wait for the GPU."""
    return numbers if device.type == "cpu" else numbers.pin_memory().to(device, non_blocking=True)


def shuffle(local: torch.Tensor, order: torch.Tensor | None) -> torch.Tensor:
    """Return this process's share of the permuted total batch, (N, ...) -> (N, ...); `order` None: `local` itself."""
    return local if order is None else shuffled_part(distributed.all_gather_interleaved(local), order)


def shuffled_part(total: torch.Tensor, order: torch.Tensor | None) -> torch.Tensor:
    """Return the share of a total batch, (B, ...), that this process has after `shuffle`, (N, ...)."""
    return distributed.local_part(total if order is None else total[order])


def unshuffle(local: torch.Tensor, order: torch.Tensor | None) -> torch.Tensor:
    """Undo `shuffle`: return the total batch in its original order, (N, dim) -> (B, dim)."""
    total = distributed.all_gather_interleaved(local)
    if order is None:
        return total
    restored = torch.empty_like(total)
    restored[order] = total
    return restored
