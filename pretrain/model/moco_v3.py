"""MoCo v3 (Chen, Xie and He 2021): no queue, a predictor, and a symmetric loss over the batch's own keys.

Names and layout of the state are those of the authors' published code: `base_encoder`, `momentum_encoder`, `predictor`.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn

from pretrain.common import distributed
from pretrain.model.contrast import Mechanism, Path
from pretrain.model.vit import ViT


class MoCoV3(Mechanism):
    """Base encoder and predictor for the queries, momentum encoder for the keys (Algorithm 1 of the paper).

    The projector is the head of each encoder. A ViT keeps its patch embedding as it was drawn (Sec. 4.2) and its
    positions as they are.

    Args:
        make_encoder: makes an encoder, (N, 3, H, W) -> (N, dim), projector included.
        predictor: (N, dim) -> (N, dim).
        momentum: of the momentum encoder (m); the training loop raises it (`pretrain.train.schedule`).
        temperature: divides the cosines (tau).
    """

    def __init__(
        self,
        make_encoder: Callable[[], nn.Module],
        predictor: nn.Module,
        *,
        momentum: float = 0.99,
        temperature: float = 0.2,
    ) -> None:
        super().__init__(temperature=temperature)
        self.momentum = momentum
        self.base_encoder = make_encoder()
        self.momentum_encoder = make_encoder()
        self.predictor = predictor
        self.momentum_encoder.load_state_dict(self.base_encoder.state_dict())
        self.momentum_encoder.requires_grad_(False)
        if isinstance(self.base_encoder, ViT):
            self.base_encoder.patch_embed.requires_grad_(False)
            self.base_encoder.pos_embed.requires_grad_(False)

    @property
    def query_encoder(self) -> nn.Module:
        """The encoder that is trained and monitored."""
        return self.base_encoder

    def paths(self) -> list[Path]:
        """Return both views' ways through the networks."""
        queries = [Path(view, ("base_encoder", "predictor")) for view in (0, 1)]
        return [*queries, *(Path(view, ("momentum_encoder",)) for view in (0, 1))]

    @torch.no_grad()
    def before_step(self) -> None:
        """Update the momentum encoder's parameters, but not its running statistics.

        In the paper this comes after the queries; they change no parameter, so the keys are the same.
        """
        slow: list[torch.Tensor] = list(self.momentum_encoder.parameters())
        fast: list[torch.Tensor] = list(self.base_encoder.parameters())
        torch._foreach_lerp_(slow, fast, 1 - self.momentum)

    def queries(self, projected: torch.Tensor) -> torch.Tensor:
        """Return the queries from the outputs of the base encoder, (N, dim) -> (N, dim), scaled to unit length."""
        return _unit(self.predictor(projected))

    def keys(self, projected: torch.Tensor) -> torch.Tensor:
        """Return the keys of the total batch from this process's outputs of the momentum encoder.

        (N, dim) -> (B, dim), of unit length. Every process must call this.
        """
        return distributed.all_gather_interleaved(_unit(projected))


def _unit(vectors: torch.Tensor) -> torch.Tensor:
    """Scale (N, dim) to unit length, in float32 or more."""
    return F.normalize(vectors.to(torch.promote_types(vectors.dtype, torch.float32)), dim=1)


def mlp(widths: Sequence[int], norm_layer: Callable[..., nn.Module], *, last_norm: bool) -> nn.Sequential:
    """Return a projector or predictor: linear layers without bias, each but the last followed by batch norm and ReLU.

    Args:
        widths: of the input, of the hidden layers and of the output.
        norm_layer: makes a batch norm for (N, C) from C.
        last_norm: whether a batch norm without scale and shift follows the last layer.
    """
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths[:-1]):
        layers += [nn.Linear(inputs, outputs, bias=False), norm_layer(outputs), nn.ReLU(inplace=True)]
    layers.append(nn.Linear(widths[-2], widths[-1], bias=False))
    if last_norm:
        layers.append(norm_layer(widths[-1], affine=False))
    return nn.Sequential(*layers)
