"""What the contrastive mechanisms share: of all, what the training loop needs; of MoCo v1's and v2's, a step.

Those three (He et al. 2020, Figure 2) are a `Contrast`: queries, keys and the logits of InfoNCE. They differ in where
keys and negatives come from, in which encoders have gradients, and in what is updated after a step.
`pretrain.train.step` runs a step: `before_step`, `keys`, `encode_queries` and `logits`, the optimizer's step on
`trained()`, then `after_step`.
"""

import abc
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn


class KeyInputs(NamedTuple):
    """What a mechanism needs to make the keys of one step.

    Attributes:
        views: (N, H, W, 3) uint8, the key views of this process.
        pixels: turns views into the input of an encoder.
        order: permutation of the total key batch; None: the keys are not shuffled.
        images: (N,) int64, index of each image of this process in the data set; only a memory bank needs it.
        iteration: from 0; random choices depend on it.
    """

    views: torch.Tensor
    pixels: Callable[[torch.Tensor], torch.Tensor]
    order: torch.Tensor | None = None
    images: torch.Tensor | None = None
    iteration: int = 0


class Keys(NamedTuple):
    """The vectors that the queries of one step are compared with; each has unit length.

    Attributes:
        positive: (B, dim), the key of each image of the total batch, in the order of the batch.
        negative: (dim, K), shared by all queries.
        own: (B, K) bool, True where a negative comes from the query's own image and is not counted; None: nowhere.
        encoded: (N, dim), the output of this process's key encoder, in shuffled order, if that encoder is trained:
            `positive` is then a leaf whose gradient must be passed back through `encoded`. None: keys have no
            gradient.
    """

    positive: torch.Tensor
    negative: torch.Tensor
    own: torch.Tensor | None = None
    encoded: torch.Tensor | None = None


class Path(NamedTuple):
    """The way of one view through a model.

    Attributes:
        view: 0 for the first (query) view, 1 for the second (key) view.
        networks: names of the children that it goes through, one after the other.
    """

    view: int
    networks: tuple[str, ...]


class Mechanism(nn.Module, abc.ABC):
    """Base of all mechanisms, here and in `pretrain.model.moco_v3`.

    Args:
        temperature: divides the cosines (tau).
    """

    def __init__(self, *, temperature: float) -> None:
        super().__init__()
        self.temperature = temperature

    @property
    @abc.abstractmethod
    def query_encoder(self) -> nn.Module:
        """The encoder that is trained and monitored."""

    @abc.abstractmethod
    def paths(self) -> list[Path]:
        """Return the ways of a step's views through the networks, in the order of the computation."""

    def trained(self) -> list[nn.Parameter]:
        """Return the parameters that the optimizer updates."""
        return [p for p in self.parameters() if p.requires_grad]

    def before_step(self) -> None:
        """Do what has to happen before the keys are made."""


class Contrast(Mechanism):
    """Base of `MoCo`, `EndToEnd` and `MemoryBank`: a query encoder and a temperature.

    Args:
        make_encoder: makes an encoder, (N, 3, H, W) -> (N, dim), head included.
        temperature: divides the cosines (tau).
    """

    def __init__(self, make_encoder: Callable[[], nn.Module], *, temperature: float) -> None:
        super().__init__(temperature=temperature)
        self.encoder_q = make_encoder()

    @property
    def query_encoder(self) -> nn.Module:
        """The encoder that is trained and monitored."""
        return self.encoder_q

    def paths(self) -> list[Path]:
        """Return the query view's way, then that of the key view if there is a key encoder."""
        return [Path(view, (name,)) for view, (name, _) in enumerate(self.named_children())]

    @abc.abstractmethod
    def keys(self, inputs: KeyInputs) -> Keys:
        """Return the keys of a step. Every process must call this."""

    def encode_queries(self, images: torch.Tensor) -> torch.Tensor:
        """Return the queries, (N, 3, H, W) -> (N, dim), scaled to unit length."""
        return F.normalize(self.encoder_q(images).float(), dim=1)

    def logits(self, queries: torch.Tensor, keys: Keys, places: torch.Tensor) -> torch.Tensor:
        """Return cosines over the temperature, (N, dim) -> (N, 1 + K); class 0 is the positive (Eqn. 1 of the paper).

        Args:
            places: (N,) int64, the position of each query's image in the total batch.
        """
        positive = (queries * keys.positive[places]).sum(1, keepdim=True)  # (N, 1)
        negative = queries @ keys.negative  # (N, K)
        if keys.own is not None:
            negative = negative.masked_fill(keys.own[places], -torch.inf)
        return torch.cat([positive, negative], dim=1) / self.temperature

    def after_step(self, keys: Keys, queries: torch.Tensor, images: torch.Tensor | None) -> None:
        """Store what later steps need. Every process must call this.

        Args:
            queries: (N, dim), the queries of this process, without gradient.
            images: (N,) int64, index of each query's image in the data set.
        """
