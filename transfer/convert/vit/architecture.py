"""Determine from names and shapes which ViT a file holds, and check that it is complete."""

import math
import re
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from pretrain.common.errors import UserError
from pretrain.model.vit import ViT
from transfer.convert.architecture import FLOATS, not_finite
from transfer.convert.tensor_names import Tensors

MOST_BLOCKS = 200
# Numbers in a block's attention over one image, which the verification holds: 16 heads at 64 x 64 positions
MOST_ATTENTION = 16 * 64**4
# A detector does without these, and some files have none of them.
OPTIONAL = ("cls_token", "reg_token", "norm.weight", "norm.bias")


@dataclass(frozen=True)
class Shape:
    """The shape of a plain ViT.

    Attributes:
        width: size of a token.
        heads: of the attention. No tensor shows them.
        patch_size: side of a patch in pixels.
        grid: rows, and columns, of the table of positions.
        hidden: width of the MLPs.
        eps: of the norms. No tensor shows it.
        class_position: whether the table of positions begins with an entry for the class token.
        class_token: whether the file has the class token.
        registers: number of further tokens.
        layer_scale: whether each residual branch has a factor per channel.
        qkv_bias: whether queries, keys and values have biases.
    """

    width: int
    depth: int
    heads: int
    patch_size: int
    grid: int
    hidden: int
    eps: float = 1e-6
    class_position: bool = True
    class_token: bool = True
    registers: int = 0
    layer_scale: bool = False
    qkv_bias: bool = True

    @property
    def image_size(self) -> int:
        """Side in pixels of the square images that the table of positions belongs to."""
        return self.grid * self.patch_size

    @property
    def mlp_ratio(self) -> float:
        """`hidden` over `width`, such that a network that rounds the product down has `hidden` again."""
        ratio = self.hidden / self.width
        return ratio if int(self.width * ratio) == self.hidden else math.nextafter(ratio, math.inf)

    def __str__(self) -> str:
        heads = f"{self.heads} head{'s' if self.heads > 1 else ''}"
        return (
            f"ViT, width {self.width}, {self.depth} blocks of {heads}, MLPs of {self.hidden}, patches of "
            f"{self.patch_size} pixels, {self.grid} x {self.grid} positions"
        )


def read_shape(path: Path, network: Tensors) -> dict[str, Any]:
    """Return the fields of `Shape` that tensors under timm's names show: all but `heads` and `eps`.

    Each size is the most frequent one among several tensors, so that `checked` can name a single wrong tensor. The
    positions of the registers and of a distillation token must have been taken out of the table before.

    Raises:
        UserError: a size cannot be determined; the message starts with `path`.
    """
    blocks = [int(match[1]) for name in network if (match := re.match(r"blocks\.(\d+)\.", name))]
    depth = max(blocks, default=-1) + 1
    if depth > MOST_BLOCKS:
        raise UserError(f"{path}: it has a block {depth - 1}: this is not a ViT, or the file is damaged")
    each = [f"blocks.{block}." for block in range(depth)]
    width = _size(path, network, [f"{block}{norm}.weight" for block in each for norm in ("norm1", "norm2")])
    hidden = _size(path, network, [f"{block}mlp.fc1.{leaf}" for block in each for leaf in ("weight", "bias")])
    kernel = network.get("patch_embed.proj.weight")
    if kernel is None or kernel.ndim != 4 or 0 in kernel.shape:
        raise UserError(
            f"{path}: a ViT without a tensor patch_embed.proj.weight of 4 dimensions: is it incomplete?"
        )
    table = network.get("pos_embed")
    if table is None:
        raise UserError(
            f"{path}: a ViT without tensor pos_embed, the table of positions: DINOv3 and others have rotary positions "
            "(RoPE) instead, which the detectors' ViT does not; otherwise the file is incomplete"
        )
    positions = table.shape[1] if table.ndim == 3 else 0
    class_position = math.isqrt(positions) ** 2 != positions
    grid = math.isqrt(positions - class_position)
    if not positions or grid**2 != positions - class_position:
        raise UserError(
            f"{path}: its table of positions pos_embed has shape {tuple(table.shape)}: not one entry for each patch "
            "of a square image, with or without one for the class token"
        )
    registers = network.get("reg_token")
    return {
        "width": width,
        "depth": depth,
        "patch_size": kernel.shape[2],
        "grid": grid,
        "hidden": hidden,
        "class_position": class_position,
        "class_token": "cls_token" in network,
        "registers": registers.shape[1] if registers is not None and registers.ndim == 3 else 0,
        "layer_scale": any(name.endswith(".gamma") for name in network),
        "qkv_bias": any(name.endswith("attn.qkv.bias") for name in network),
    }


def _size(path: Path, network: Tensors, names: list[str]) -> int:
    """Return the most frequent first dimension among the named tensors."""
    held = [network[name] for name in names if name in network]
    sizes = [tensor.shape[0] for tensor in held if tensor.ndim and tensor.numel()]
    if not sizes:
        raise UserError(
            f"{path}: tensor {names[0] if names else 'blocks.0.norm1.weight'} is missing or empty"
        )
    return Counter(sizes).most_common(1)[0][0]


@lru_cache(8)
def expected(shape: Shape) -> dict[str, torch.Size]:
    """Return a ViT's tensor names and shapes, in its order. Cached, so callers must not change the result."""
    with torch.device("meta"):
        reference = empty_network(shape).state_dict()
    shapes = {name: tensor.shape for name, tensor in reference.items()}
    if shape.class_position:  # also where the file has no class token
        shapes["pos_embed"] = torch.Size((1, shape.grid**2 + 1, shape.width))
    return shapes


def empty_network(shape: Shape) -> ViT:
    """Return the network, newly initialised. Without a class token, the table has no entry for it either."""
    return ViT(
        width=shape.width,
        depth=shape.depth,
        heads=shape.heads,
        patch_size=shape.patch_size,
        image_size=shape.image_size,
        mlp_ratio=shape.mlp_ratio,
        class_token=shape.class_token,
        class_position=shape.class_position,
        registers=shape.registers,
        layer_scale=shape.layer_scale,
        qkv_bias=shape.qkv_bias,
        eps=shape.eps,
    )


def checked(path: Path, network: Tensors, shape: Shape) -> Tensors:
    """Return the network's tensors as float32, in the network's order; of those in `OPTIONAL`, the ones that it has.

    Raises:
        UserError: a tensor is missing, unexpected, not floating-point or not finite, or has the wrong shape, or most
            matrices are zero; the message names the first one.
    """
    if shape.width % 4 or shape.width % shape.heads:
        raise UserError(
            f"{path}: {shape.heads} heads do not divide the width of {shape.width}: give their number with --heads"
            if shape.width % shape.heads
            else f"{path}: a ViT of width {shape.width}, which is not a multiple of 4"
        )
    if shape.heads * shape.grid**4 > MOST_ATTENTION:
        raise UserError(
            f"{path}: {shape.heads} heads over {shape.grid} x {shape.grid} positions: more than the detectors' ViT is "
            "converted for; the file is damaged or hostile, unless its images have more than 1,024 pixels a side"
        )
    shapes = expected(shape)
    missing = [name for name in shapes if name not in network and name not in OPTIONAL]
    extra = [name for name in network if name not in shapes]
    if missing:
        raise UserError(
            f"{path}: a ViT without tensor {missing[0]} ({len(missing)} missing): the backbone is incomplete"
        )
    if extra:
        raise UserError(
            f"{path}: tensor {extra[0]} has no place in a plain ViT ({len(extra)} such tensors): is it another kind of "
            "transformer?"
        )
    held = {name: size for name, size in shapes.items() if name in network}
    for name, size in held.items():
        _check(path, name, network[name], size)
        if not torch.isfinite(network[name]).all():
            raise UserError(f"{path}: {not_finite(network, held, name)}")
    matrices = [name for name, size in held.items() if len(size) in (2, 4)]
    zero = [name for name in matrices if not network[name].any()]
    if "patch_embed.proj.weight" in zero or len(zero) * 2 > len(matrices):
        raise UserError(
            f"{path}: tensor {zero[0]} holds only zeros, as do {len(zero)} of {len(matrices)} matrices: the network "
            "is dead or was never filled; use another checkpoint"
        )
    return {name: network[name].detach().to(torch.float32).contiguous() for name in held}


def _check(path: Path, name: str, tensor: torch.Tensor, size: torch.Size) -> None:
    if tensor.shape != size:
        raise UserError(
            f"{path}: tensor {name} has shape {tuple(tensor.shape)}, not {tuple(size)} as in such a ViT: is it another "
            "kind of transformer?"
        )
    if tensor.dtype not in FLOATS:
        raise UserError(f"{path}: tensor {name} holds {tensor.dtype}, not floating-point numbers")
    if tensor.dtype == torch.float64 and not torch.isfinite(tensor.to(torch.float32)).all():
        raise UserError(
            f"{path}: tensor {name} holds numbers beyond float32's range: the training run diverged"
        )
