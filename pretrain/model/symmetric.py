"""MoCo v3's loss and its gradient, in one pass over a process's images or exactly in chunks (GradCache).

The loss needs the queries of the whole batch at once, but not their activations: in chunks, the encoder computes all
features without storing anything else, the gradient of the loss with respect to the features is taken, and each chunk
is then encoded again and receives its share of that gradient (Gao et al. 2021, arXiv 2101.06983). The projector and
the predictor, whose batch norm needs the whole batch, run on all features together, so the result is the same.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import nn

from pretrain.common import distributed
from pretrain.model.moco_v3 import MoCoV3
from pretrain.model.vit import ViT

Precision = Callable[[], AbstractContextManager]


class Compared(NamedTuple):
    """The queries of one view, compared with the keys of the other view; nothing in it has a gradient.

    Attributes:
        loss: 2 T times the cross-entropy, the mean over this process's images.
        queries: (N, dim), unit length.
        cosines: (N, B), with the keys of the total batch.
        places: (N,), the column of each query's positive.
    """

    loss: torch.Tensor
    queries: torch.Tensor
    cosines: torch.Tensor
    places: torch.Tensor


def backward(
    model: MoCoV3,
    images: tuple[torch.Tensor, torch.Tensor],
    *,
    precision: Precision,
    scaler: torch.amp.GradScaler,
    chunk: int = 0,
) -> list[Compared]:
    """Add the gradient of 2 T [CE(q1, k2) + CE(q2, k1)], of this process's images, to the parameters.

    The two terms are differentiated one after the other, so only one view's activations are stored at a time.

    Args:
        images: both views, (N, 3, H, W) each.
        precision: makes the context in which the networks run.
        scaler: scales the loss, if it is enabled.
        chunk: number of images that a ViT encodes at a time; 0: all.
    """
    keys = [model.keys(_projected(model.momentum_encoder, view, precision, chunk)) for view in images]
    own = torch.arange(len(images[0]), device=keys[0].device)
    places = own * distributed.world_size() + distributed.rank()
    results = []
    for view, others in zip(images, reversed(keys), strict=True):
        encoder = model.base_encoder
        features = _features(encoder, view, precision, chunk).requires_grad_() if chunk else None
        with precision():
            projected = encoder(view) if features is None else cast(ViT, encoder).head(features)
            queries = model.queries(projected)
        cosines = queries @ others.T
        loss = 2 * model.temperature * F.cross_entropy(cosines / model.temperature, places)
        scaler.scale(loss).backward()
        if features is not None:
            _through_the_encoder(encoder, view, features, precision, chunk)
        results.append(Compared(loss.detach(), queries.detach(), cosines.detach(), places))
    return results


@torch.no_grad()
def _projected(encoder: nn.Module, images: torch.Tensor, precision: Precision, chunk: int) -> torch.Tensor:
    """Return the projector's output for all images, (N, dim), without gradient."""
    if not chunk:
        with precision():
            return encoder(images)
    features = _features(encoder, images, precision, chunk)
    with precision():
        return cast(ViT, encoder).head(features)


@torch.no_grad()
def _features(encoder: nn.Module, images: torch.Tensor, precision: Precision, chunk: int) -> torch.Tensor:
    """Return a ViT's features of all images, (N, width), without gradient."""
    with precision():
        return torch.cat([cast(ViT, encoder).feature(part) for part in images.split(chunk)])


def _through_the_encoder(
    encoder: nn.Module, images: torch.Tensor, features: torch.Tensor, precision: Precision, chunk: int
) -> None:
    """Pass the gradient of all features on to the encoder's parameters, chunk by chunk."""
    assert features.grad is not None
    for part, gradient in zip(images.split(chunk), features.grad.split(chunk), strict=True):
        with precision():
            output = cast(ViT, encoder).feature(part)
        output.backward(gradient)
