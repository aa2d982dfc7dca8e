"""What the three contrastive mechanisms share (He et al. 2020, Figure 2): queries, keys and InfoNCE's logits.

They differ in where keys and negatives come from, in which encoders have gradients, and in what is updated
after the step. `pretrain.train.step` carries a step out: `before_step`, `keys`, `encode_queries` and `logits`, the
optimizer's step on `trained()`, `after_step`.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn


class Keys(NamedTuple):
    """What the queries of one step are compared with; every vector has unit length.

    Attributes:
        positive: (B, dim), the key of each image of the total batch, in its order.
        negative: (dim, K), shared by all queries.
        own: (B, K) bool, the negatives that are of the query's own image and do not count; None: none is.
        encoded: (N, dim), what this process encoded, in the shuffled order, where the key encoder is trained:
            `positive` is then a leaf, and its gradient goes on through `encoded`. None: keys have no gradient.
    """

    positive: torch.Tensor
    negative: torch.Tensor
    own: torch.Tensor | None = None
    encoded: torch.Tensor | None = None


class Contrast(nn.Module):
    """A query encoder and a temperature; the base of `MoCo`, `EndToEnd` and `MemoryBank`.

    Args:
        make_encoder: makes an encoder, (N, 3, H, W) -> (N, dim), head included.
        temperature: divides the cosines (tau).
    """

    def __init__(self, make_encoder: Callable[[], nn.Module], *, temperature: float) -> None:
        super().__init__()
        self.temperature = temperature
        self.encoder_q = make_encoder()

    def trained(self) -> list[nn.Parameter]:
        """The parameters that the optimizer moves."""
        return [p for p in self.parameters() if p.requires_grad]

    def before_step(self) -> None:
        """What comes before the keys."""

    def keys(
        self,
        views: torch.Tensor,
        *,
        pixels: Callable[[torch.Tensor], torch.Tensor],
        order: torch.Tensor | None = None,
        images: torch.Tensor | None = None,
        iteration: int = 0,
    ) -> Keys:
        """The keys of a step; every process must call this.

        Args:
            views: (N, H, W, 3) uint8, this process's key views.
            pixels: makes an encoder's input of them.
            order: permutation of the total key batch; None: the keys are not shuffled.
            images: (N,) int64, the numbers of this process's images in the data set.
            iteration: from 0; random choices depend on it.
        """
        raise NotImplementedError

    def encode_queries(self, images: torch.Tensor) -> torch.Tensor:
        """(N, 3, H, W) -> (N, dim) of unit length."""
        return F.normalize(self.encoder_q(images).float(), dim=1)

    def logits(self, queries: torch.Tensor, keys: Keys, places: torch.Tensor) -> torch.Tensor:
        """Cosines over the temperature, (N, dim) -> (N, 1 + K); the positive is class 0 (Eqn. 1 of the paper).

        Args:
            places: (N,) int64, the places of the queries' images in the total batch.
        """
        positive = (queries * keys.positive[places]).sum(1, keepdim=True)  # (N, 1)
        negative = queries @ keys.negative  # (N, K)
        if keys.own is not None:
            negative = negative.masked_fill(keys.own[places], -torch.inf)
        return torch.cat([positive, negative], dim=1) / self.temperature

    def after_step(self, keys: Keys, queries: torch.Tensor, images: torch.Tensor | None) -> None:
        """Remember what later steps need; every process must call this.

        Args:
            queries: (N, dim), this process's, without gradient.
            images: (N,) int64, their images' numbers.
        """
