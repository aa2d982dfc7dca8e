"""Fitting a training step into the memory of a machine without a GPU, with unchanged results.

ShuffleBN's groups go one after the other (`pretrain.model.norm.parts`). Batch norm over the whole batch needs all
images at once: there, residual blocks are computed a second time instead of being kept.
"""

import contextlib
import functools
import os
from collections.abc import Iterator
from typing import cast

import torch
from fvcore.common.config import CfgNode
from torch import nn
from torch.utils.checkpoint import checkpoint

from pretrain.common import distributed
from pretrain.common.console import say
from pretrain.model import norm
from pretrain.model.contrast import Contrast
from pretrain.model.encoders import ResNet
from pretrain.model.mechanisms import EndToEnd

_SHARE = 0.6  # of the machine's memory that activations may take


def fit(cfg: CfgNode, model: Contrast, device: torch.device) -> None:
    """Make the trained encoders recompute their blocks where a step on this CPU would not fit otherwise; say so."""
    if device.type != "cpu":
        return
    query, images = cast(ResNet, model.encoder_q), cfg.SOLVER.IMS_PER_BATCH // norm.parts(cfg, device)
    encoders = [query]
    if isinstance(model, EndToEnd):  # its keys have gradients, and wait for all queries
        encoders.append(cast(ResNet, model.encoder_k))
        images += cfg.SOLVER.IMS_PER_BATCH
    needed = images * activation_bytes(query, cfg.INPUT.SIZE)
    memory = machine_bytes()
    if needed <= _SHARE * memory:
        return
    sizes = f"a step keeps about {needed / 1e9:.0f} GB of activations, this machine has {memory / 1e9:.0f} GB"
    if distributed.world_size() == 1:  # processes that decided differently would wait for each other for ever
        for encoder in encoders:
            recompute_blocks(encoder)
        say(f"note: {sizes}: blocks are computed twice to save most of it (a third slower, same results)")
    else:
        say(f"note: {sizes}; if they do not suffice, use a smaller SOLVER.IMS_PER_BATCH or one process")


def machine_bytes() -> float:
    """Of this machine's memory; infinitely many where the system does not say."""
    if "SC_PHYS_PAGES" not in getattr(os, "sysconf_names", {}):
        return float("inf")
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def recompute_blocks(encoder: ResNet) -> None:
    """From now on keep only the inputs of the residual blocks for the backward pass, in place."""
    for stage in (encoder.layer1, encoder.layer2, encoder.layer3, encoder.layer4):
        for block in stage:
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
    """Undo what a second forward pass does to running statistics."""
    before = [buffer.clone() for buffer in block.buffers()]
    try:
        yield
    finally:
        for buffer, old in zip(block.buffers(), before, strict=True):
            buffer.detach().copy_(old)


def activation_bytes(encoder: ResNet, size: int) -> int:
    """What a forward pass keeps for the backward pass, in bytes for each image of `size` x `size` pixels."""
    parameters = {p.untyped_storage().data_ptr() for p in encoder.parameters()}
    kept: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        # not compiled (MODEL.COMPILE); evaluation leaves running statistics alone
        output = encoder.eval().forward(torch.zeros(1, 3, size, size))
    encoder.train()
    del output
    return sum(kept.values())
