"""The plain Vision Transformer (Dosovitskiy et al. 2021), with timm's parameter names and MoCo v3's initialisation.

MoCo v3's patch embedding is frozen by `pretrain.model.moco_v3`; its positions are fixed sines and cosines.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn


class ViT(nn.Module):
    """Patch embedding, `depth` pre-norm blocks and a final norm; any image size that whole patches fill.

    The names of the parameters are timm's: `cls_token`, `reg_token`, `pos_embed`, `patch_embed.proj`,
    `blocks.N.norm1|attn.qkv|attn.proj|ls1.gamma|norm2|mlp.fc1|mlp.fc2|ls2.gamma`, `norm`.

    Args:
        width: size of a token.
        image_size: side in pixels of the square images that the position table belongs to.
        mlp_ratio: hidden width of the MLPs over `width`.
        class_position: whether the position table begins with an entry for the class token.
        registers: number of further tokens without a position (Darcet et al. 2024).
        layer_scale: whether a learned factor per channel scales each residual branch (Touvron et al. 2021).
        eps: of the layer norms.
        head: makes the output from the feature: (N, width) -> (N, any size). None: the identity.
    """

    def __init__(
        self,
        *,
        width: int,
        depth: int,
        heads: int,
        patch_size: int = 16,
        image_size: int = 224,
        mlp_ratio: float = 4.0,
        class_token: bool = True,
        class_position: bool = True,
        registers: int = 0,
        layer_scale: bool = False,
        qkv_bias: bool = True,
        eps: float = 1e-6,
        head: nn.Module | None = None,
    ) -> None:
        super().__init__()
        side = image_size // patch_size
        self.width, self.patch_size, self.grid = width, patch_size, (side, side)
        self.patch_embed = PatchEmbedding(width, patch_size)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width)) if class_token else None
        self.reg_token = nn.Parameter(torch.zeros(1, registers, width)) if registers else None
        self.class_position = class_token and class_position
        positions = sincos_positions(width, self.grid)
        if self.class_position:
            positions = torch.cat([torch.zeros(1, 1, width), positions], dim=1)
        self.pos_embed = nn.Parameter(positions)
        options: dict[str, Any] = {"qkv_bias": qkv_bias, "layer_scale": layer_scale, "eps": eps}
        self.blocks = nn.ModuleList(
            Block(width, heads, round(width * mlp_ratio), **options) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width, eps=eps)
        initialise(self)
        self.head = nn.Identity() if head is None else head

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the head's output for (N, 3, H, W); without a head this is the feature, (N, width)."""
        return self.head(self.feature(images))

    def feature(self, images: torch.Tensor) -> torch.Tensor:
        """Return the class token after the final norm, (N, 3, H, W) -> (N, width); without one, the patches' mean."""
        x, first, _ = self._embed(images, extra=True)
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        return x[:, 0] if self.cls_token is not None else x[:, first:].mean(1)

    def tokens(self, images: torch.Tensor, *, extra: bool = True) -> list[torch.Tensor]:
        """Return the patch tokens after each block, before the final norm: `depth` tensors (N, h, w, width).

        Args:
            extra: whether the class token and the registers are fed too.
        """
        x, first, grid = self._embed(images, extra=extra)
        outputs = []
        for block in self.blocks:
            x = block(x)
            outputs.append(x[:, first:].unflatten(1, grid))
        return outputs

    def _embed(self, images: torch.Tensor, *, extra: bool) -> tuple[torch.Tensor, int, tuple[int, int]]:
        """Return the blocks' input (N, T, width), the place of the first patch token in it, and rows and columns."""
        patches = self.patch_embed(images)  # (N, width, h, w)
        grid = (patches.shape[2], patches.shape[3])
        x = patches.flatten(2).transpose(1, 2) + self._patch_positions(grid)
        if not extra:
            return x, 0, grid
        others: list[torch.Tensor] = [
            token for token in (self.cls_token, self.reg_token) if token is not None
        ]
        if self.cls_token is not None and self.class_position:
            others[0] = others[0] + self.pos_embed[:, :1]
        x = torch.cat([*(token.expand(len(x), -1, -1) for token in others), x], dim=1)
        return x, sum(token.shape[1] for token in others), grid

    def _patch_positions(self, grid: tuple[int, int]) -> torch.Tensor:
        """Return the positions of the patches, (1, h * w, width), interpolated if the grid is not the table's."""
        table = self.pos_embed[:, int(self.class_position) :]
        if grid == self.grid:
            return table
        square = table.unflatten(1, self.grid).permute(0, 3, 1, 2)
        resized = F.interpolate(square, size=grid, mode="bicubic", align_corners=False)
        return resized.flatten(2).transpose(1, 2)


class PatchEmbedding(nn.Module):
    """A linear map of each `size` x `size` patch: (N, 3, H, W) -> (N, width, H / size, W / size)."""

    def __init__(self, width: int, size: int) -> None:
        super().__init__()
        self.size = size
        self.proj = nn.Conv2d(3, width, size, stride=size)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Embed the patches. Raises `ValueError` if they do not fill the images."""
        height, width = images.shape[-2:]
        if height % self.size or width % self.size:
            raise ValueError(f"images of {width} x {height} pixels do not divide into patches of {self.size}")
        return self.proj(images)


class Block(nn.Module):
    """A pre-norm block: x + attention(norm(x)), then x + MLP(norm(x)); (N, T, width) -> (N, T, width)."""

    def __init__(
        self, width: int, heads: int, hidden: int, *, qkv_bias: bool, layer_scale: bool, eps: float
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.attn = Attention(width, heads, qkv_bias=qkv_bias)
        self.ls1 = LayerScale(width) if layer_scale else nn.Identity()
        self.norm2 = nn.LayerNorm(width, eps=eps)
        self.mlp = MLP(width, hidden)
        self.ls2 = LayerScale(width) if layer_scale else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply both residual branches."""
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class Attention(nn.Module):
    """Multi-head self-attention. The rows of `qkv` are q, k and v, each of them head after head."""

    def __init__(self, width: int, heads: int, *, qkv_bias: bool) -> None:
        super().__init__()
        assert width % heads == 0, f"{heads} heads do not divide a width of {width}"
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=qkv_bias)
        self.proj = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (N, T, width) for (N, T, width)."""
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # (N, heads, T, size)
        mixed = F.scaled_dot_product_attention(q, k, v)
        return self.proj(mixed.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """Linear, GELU, linear."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (..., width) for (..., width)."""
        return self.fc2(F.gelu(self.fc1(x)))


class LayerScale(nn.Module):
    """A learned factor for each channel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((width,), 1e-5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Scale the channels of (..., width)."""
        return x * self.gamma


def sincos_positions(width: int, grid: tuple[int, int]) -> torch.Tensor:
    """Return fixed 2-D positions, (1, h * w, width): sines and cosines of the row, then of the column.

    The wavelengths are a geometric series up to nearly 10,000 x 2 pi (Vaswani et al. 2017), in patches. `width` must
    be a multiple of 4.
    """
    assert width % 4 == 0, f"a width of {width} does not divide into four"
    frequencies = 10000.0 ** (-torch.arange(width // 4) / (width // 4))
    rows, columns = (
        torch.arange(length)[:, None] * frequencies for length in grid
    )  # (h, width / 4), (w, ...)
    rows, columns = rows[:, None].expand(-1, grid[1], -1), columns[None].expand(grid[0], -1, -1)
    return torch.cat([rows.sin(), rows.cos(), columns.sin(), columns.cos()], dim=2).flatten(0, 1)[None]


@torch.no_grad()
def initialise(vit: ViT) -> None:
    """Draw the weights as MoCo v3 does: Xavier's uniform, separately for q, k and v; biases 0; tokens N(0, 1e-6)."""
    for module in vit.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for module in vit.modules():
        if isinstance(module, Attention):
            for part in module.qkv.weight.chunk(3):
                nn.init.xavier_uniform_(part)
    # As for a linear layer of a patch's 3 x size x size values.
    proj = vit.patch_embed.proj
    bound = math.sqrt(6 / (3 * vit.patch_size**2 + vit.width))
    nn.init.uniform_(proj.weight, -bound, bound)
    assert proj.bias is not None
    nn.init.zeros_(proj.bias)
    for token in (vit.cls_token, vit.reg_token):
        if token is not None:
            nn.init.normal_(token, std=1e-6)
