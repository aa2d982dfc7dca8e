"""Layer norm over the channels of a map: `LN` in MODEL.FPN.NORM and in the NORM keys of the heads.

detectron2's main branch knows this name and v0.6 does not. `add_to_detectron2` adds it; `transfer.d2_import_hook` calls
that.
"""

import sys
from types import ModuleType
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F


class ChannelNorm(nn.Module):
    """Layer norm over the channels at each place of a map: (N, C, H, W) -> the same.

    It is not a subclass of `nn.LayerNorm`, for which detectron2 sets the weight decay of norms: the class of its main
    branch is not one either, so the published runs of ViTDet decay these weights like those of other layers.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """Normalise each place."""
        last = maps.permute(0, 2, 3, 1)
        return F.layer_norm(last, last.shape[3:], self.weight, self.bias, eps=1e-6).permute(0, 3, 1, 2)


def add_to_detectron2(module: ModuleType) -> None:
    """Make detectron2's `get_norm` return a `ChannelNorm` for "LN" if it does not know that name.

    Args:
        module: `detectron2.layers.batch_norm`. Modules that have imported its `get_norm` already get the new one too.
    """
    plain = module.get_norm
    try:
        plain("LN", 1)
        return
    except KeyError:
        pass

    def get_norm(norm: Any, out_channels: int) -> nn.Module | None:
        layer: nn.Module | None = ChannelNorm(out_channels) if norm == "LN" else plain(norm, out_channels)
        return layer

    for user in [module, *sys.modules.values()]:
        # None stands for a module that must not be imported
        if getattr(user, "__dict__", {}).get("get_norm") is plain:
            user.get_norm = get_norm  # type: ignore[attr-defined]
