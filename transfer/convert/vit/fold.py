"""The tensors that a detector's ViT gets: LayerScale folded into the layers before it, and patches resampled."""

from functools import lru_cache

import torch
from torch.nn import functional

from transfer.convert.tensor_names import Tensors
from transfer.convert.vit.recognise import VitSource

# What a detector's ViT does not have; it takes the tokens of the patches before the final norm.
LEFT_OUT = ("cls_token", "reg_token", "norm.weight", "norm.bias")
_SCALED = {"ls1.gamma": "attn.proj", "ls2.gamma": "mlp.fc2"}


def detector_tensors(source: VitSource, patch_size: int) -> Tensors:
    """Return the tensors of the detector's ViT, float32, under its names, which are timm's.

    `gamma * (W x + b)` is `(gamma W) x + gamma b`, so LayerScale folds into the rows and the bias of the layer before
    it; the products are computed in float64 and rounded once. Missing biases of q, k and v become zeros.

    Args:
        patch_size: of the detector's ViT. If it is not the source's, the patch embedding is resampled.
    """
    tensors = {name: t for name, t in source.backbone.items() if name not in LEFT_OUT}
    for name in [name for name in tensors if name.endswith(".gamma")]:
        block, gamma = name.rsplit(".", 2)[0], tensors.pop(name).double()
        layer = f"{block}.{_SCALED[name.removeprefix(f'{block}.')]}"
        tensors[f"{layer}.weight"] = (gamma[:, None] * tensors[f"{layer}.weight"].double()).float()
        tensors[f"{layer}.bias"] = (gamma * tensors[f"{layer}.bias"].double()).float()
    if not source.shape.qkv_bias:
        for number in range(source.shape.depth):
            tensors[f"blocks.{number}.attn.qkv.bias"] = torch.zeros(3 * source.shape.width)
    if patch_size != source.shape.patch_size:
        kernel = "patch_embed.proj.weight"
        tensors[kernel] = resampled(tensors[kernel], patch_size)
    return tensors


def resampled(kernel: torch.Tensor, size: int) -> torch.Tensor:
    """Return a patch embedding (C, 3, p, p) for patches of `size` pixels (FlexiViT, Beyer et al. 2023, Sec. 3.4).

    If B resizes a patch of p pixels to one of `size`, the new kernel is the pseudo-inverse of B's transpose times the
    old one. For a larger size the new kernel then gives for a resized patch exactly what the old one gives for the
    patch itself.
    """
    inverse = torch.linalg.pinv(resizing(kernel.shape[-1], size).T)  # (size^2, p^2)
    return (kernel.double().flatten(2) @ inverse.T).unflatten(2, (size, size)).float()


@lru_cache(4)
def resizing(old: int, new: int) -> torch.Tensor:
    """Return the matrix (new^2, old^2), float64, that resizes a square of `old` x `old` numbers bilinearly."""
    unit = torch.eye(old * old, dtype=torch.float64).reshape(old * old, 1, old, old)
    resized = functional.interpolate(unit, size=(new, new), mode="bilinear", align_corners=False)
    return resized.flatten(1).T
