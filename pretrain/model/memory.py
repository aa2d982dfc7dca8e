"""Fitting a training step into the memory of a machine without a GPU, with unchanged results.

ShuffleBN's groups can be processed one after another (`pretrain.model.norm.parts`). Batch norm over the whole batch
needs all images at once: there, the blocks are recomputed in the backward pass instead of being stored. MoCo v3's
chunks (SOLVER.CHUNK) are in `pretrain.model.symmetric`.
"""

import contextlib
import functools
import os
from collections.abc import Iterator

import torch
from fvcore.common.config import CfgNode
from torch import nn
from torch.utils.checkpoint import checkpoint

from pretrain.common import distributed
from pretrain.common.console import say
from pretrain.model import norm
from pretrain.model.contrast import Mechanism
from pretrain.model.mechanisms import EndToEnd
from pretrain.model.vit import ViT

_SHARE = 0.6  # share of the machine's memory that activations may take


def fit(cfg: CfgNode, model: Mechanism, device: torch.device) -> None:
    """Make the trained encoders recompute their blocks if a step would not fit on this CPU otherwise; print a note."""
    if device.type != "cpu":
        return
    # MoCo v3 too stores one view at a time, in chunks if SOLVER.CHUNK is set.
    query, images = model.query_encoder, cfg.SOLVER.IMS_PER_BATCH // norm.parts(cfg, device)
    images = min(images, cfg.SOLVER.CHUNK * distributed.world_size() or images)
    encoders = [query]
    if isinstance(model, EndToEnd):  # its keys have gradients too, and are kept until all queries are done
        encoders.append(model.encoder_k)
        images += cfg.SOLVER.IMS_PER_BATCH
    needed = images * activation_bytes(query, cfg.INPUT.SIZE)
    memory = machine_bytes()
    if needed <= _SHARE * memory:
        return
    sizes = f"a step stores about {needed / 1e9:.0f} GB of activations, and this machine has {memory / 1e9:.0f} GB"
    if distributed.world_size() == 1:  # several could decide differently, then wait for each other forever
        for encoder in encoders:
            recompute_blocks(encoder)
        say(f"note: {sizes}: blocks are computed twice to save most of that (a third slower, same results)")
    else:
        say(f"note: {sizes}; if that is not enough, use a smaller SOLVER.IMS_PER_BATCH or one process")


def machine_bytes() -> float:
    """Return the size of this machine's memory, infinity if the system does not report it."""
    if "SC_PHYS_PAGES" not in getattr(os, "sysconf_names", {}):
        return float("inf")
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def recompute_blocks(encoder: nn.Module) -> None:
    """Make `encoder`, in place, store only the inputs of its blocks for the backward pass."""
    names = ["blocks"] if isinstance(encoder, ViT) else [f"layer{stage}" for stage in (1, 2, 3, 4)]
    for name in names:
        for block in encoder.get_submodule(name).children():
            contexts = functools.partial(_contexts, block)
            block.forward = functools.partial(
                checkpoint, block.forward, use_reentrant=False, context_fn=contexts
            )


def _contexts(
    block: nn.Module,
) -> tuple[contextlib.AbstractContextManager, contextlib.AbstractContextManager]:
    return contextlib.nullcontext(), _buffers_unchanged(block)


@contextlib.contextmanager
def _buffers_unchanged(block: nn.Module) -> Iterator[None]:
    """Restore the running statistics after a second forward pass."""
    before = [buffer.clone() for buffer in block.buffers()]
    try:
        yield
    finally:
        for buffer, old in zip(block.buffers(), before, strict=True):
            buffer.detach().copy_(old)


def activation_bytes(encoder: nn.Module, size: int) -> int:
    """Return the bytes that a forward pass stores for the backward pass, per image of `size` x `size` pixels."""
    parameters = {p.untyped_storage().data_ptr() for p in encoder.parameters()}
    kept: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        # `forward` is not compiled (MODEL.COMPILE), and evaluation does not change running statistics
        output = encoder.eval().forward(torch.zeros(1, 3, size, size))
    encoder.train()
    del output
    return sum(kept.values())
