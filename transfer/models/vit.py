"""The plain Vision Transformer as a detector's backbone (ViTDet: Li, Mao, Girshick and He 2022, arXiv 2203.16527).

Most blocks attend within windows, a few globally (Sec. 3). Absolute positions are interpolated; decomposed relative
positions (Li et al. 2022, MViTv2) begin at zero. There is no class token, and the output is taken before the final
norm. Parameters have the names of detectron2's own ViT, which v0.6 lacks. Importing this module registers
`build_vit_sfp_backbone`.
"""

import math

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from pretrain.model.vit import MLP, PatchEmbedding
from transfer.models.registering import register

Size = tuple[int, int]  # rows, columns


class ViT(Backbone):
    """Patch embedding, positions and `depth` blocks: images (N, 3, H, W) -> `last_feat` (N, width, h, w).

    H and W are multiples of `patch_size`, h and w the rows and columns of patches.

    Args:
        width: of a token.
        mlp_ratio: hidden width of the MLPs over `width`.
        pretrain_size: side in pixels of the square images that the table of absolute positions belongs to.
        class_position: whether that table begins with an entry for a class token, which is not used here.
        image_size: side in pixels of the square images that the tables of relative positions of the global blocks are
            for; they are interpolated for others.
        window: side of a window in patches; 0: all blocks attend globally.
        global_blocks: blocks without windows, counted from 0.
        relative_positions: whether every block has them.
        drop_path: probability of skipping a branch of the last block; it rises linearly from 0 in the first one.
        eps: of the layer norms.
        checkpoint_blocks: compute each block again in the backward pass instead of keeping its activations.
    """

    def __init__(
        self,
        *,
        width: int,
        depth: int,
        heads: int,
        patch_size: int = 16,
        mlp_ratio: float = 4.0,
        pretrain_size: int = 224,
        class_position: bool = True,
        image_size: int = 1024,
        window: int = 14,
        global_blocks: tuple[int, ...] = (),
        relative_positions: bool = True,
        drop_path: float = 0.0,
        eps: float = 1e-6,
        checkpoint_blocks: bool = False,
    ) -> None:
        super().__init__()
        self.class_position, self.checkpoint_blocks = class_position, checkpoint_blocks
        self.patch_embed = PatchEmbedding(width, patch_size)
        positions = (pretrain_size // patch_size) ** 2 + int(class_position)
        self.pos_embed = nn.Parameter(torch.zeros(1, positions, width))
        self.blocks = nn.ModuleList()
        for index in range(depth):
            own_window = 0 if index in global_blocks else window
            table_side = own_window or image_size // patch_size
            block = Block(
                width,
                heads,
                int(width * mlp_ratio),
                window=own_window,
                table_side=table_side if relative_positions else None,
                drop_path=drop_path * index / max(1, depth - 1),
                eps=eps,
            )
            self.blocks.append(block)
        self._out_features = ["last_feat"]
        self._out_feature_channels = {"last_feat": width}
        self._out_feature_strides = {"last_feat": patch_size}
        self._initialise()

    def _initialise(self) -> None:
        """Draw the weights as detectron2 does: truncated normals, zero biases; the patch embedding is a convolution."""
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """Map images (N, 3, H, W) to `last_feat`: (N, width, H / patch_size, W / patch_size)."""
        x = self.patch_embed(images).permute(0, 2, 3, 1)
        x = x + absolute_positions(
            self.pos_embed, (x.shape[1], x.shape[2]), class_position=self.class_position
        )
        for block in self.blocks:
            again = self.checkpoint_blocks and self.training
            x = checkpoint(block, x, use_reentrant=False) if again else block(x)
        return {"last_feat": x.permute(0, 3, 1, 2)}


class Block(nn.Module):
    """A pre-norm block: x + attention(norm(x)), then x + MLP(norm(x)); (N, h, w, width) -> the same.

    Args:
        hidden: width of the MLP.
        window: side of a window in patches; 0: attention over the whole image.
        table_side: rows (and columns) that the tables of relative positions are for; None: no relative positions.
        drop_path: probability of skipping a branch.
        eps: of the norms.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        hidden: int,
        *,
        window: int,
        table_side: int | None,
        drop_path: float,
        eps: float,
    ) -> None:
        super().__init__()
        self.window, self.drop = window, drop_path
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.attn = Attention(width, heads, table_side=table_side)
        self.norm2 = nn.LayerNorm(width, eps=eps)
        self.mlp = MLP(width, hidden)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply both residual branches."""
        x = x + self._drop_path(self._attend(self.norm1(x)))
        return x + self._drop_path(self.mlp(self.norm2(x)))

    def _attend(self, x: torch.Tensor) -> torch.Tensor:
        if not self.window:
            mixed: torch.Tensor = self.attn(x)
            return mixed
        return join_windows(self.attn(split_windows(x, self.window)), (x.shape[1], x.shape[2]))

    def _drop_path(self, branch: torch.Tensor) -> torch.Tensor:
        """Drop a branch for whole images at random in training, and scale the others (Huang et al. 2016)."""
        if not self.drop or not self.training:
            return branch
        keep = 1 - self.drop
        kept = torch.empty(len(branch), 1, 1, 1, dtype=branch.dtype, device=branch.device).bernoulli_(keep)
        return branch * kept / keep


class Attention(nn.Module):
    """Multi-head self-attention over a map. The rows of `qkv` are q, k and v, each of them head after head.

    Args:
        table_side: rows (and columns) that the tables of relative positions are for; None: no relative positions.
    """

    def __init__(self, width: int, heads: int, *, table_side: int | None) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.relative = table_side is not None
        if table_side is not None:
            self.rel_pos_h = nn.Parameter(torch.zeros(2 * table_side - 1, width // heads))
            self.rel_pos_w = nn.Parameter(torch.zeros(2 * table_side - 1, width // heads))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (N, h, w, width) for (N, h, w, width)."""
        rows, columns = x.shape[1:3]
        q, k, v = self.qkv(x).flatten(1, 2).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        bias = self._bias(q.unflatten(2, (rows, columns))) if self.relative else None
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        projected: torch.Tensor = self.proj(mixed.transpose(1, 2).flatten(2))
        return projected.unflatten(1, (rows, columns))

    def _bias(self, q: torch.Tensor) -> torch.Tensor:
        """Return what the relative positions add to the logits: q (N, heads, h, w, size) -> (N, heads, h w, h w).

        For a query in row i and column j and a key in row k and column l, that is q (R_h[i - k] + R_w[j - l]); q is
        not scaled by 1 / sqrt(size).
        """
        vertical = torch.einsum("nthwc,hkc->nthwk", q, relative_positions(self.rel_pos_h, q.shape[2]))
        horizontal = torch.einsum("nthwc,wkc->nthwk", q, relative_positions(self.rel_pos_w, q.shape[3]))
        return (vertical[..., :, None] + horizontal[..., None, :]).flatten(4, 5).flatten(2, 3)


def relative_positions(table: torch.Tensor, side: int) -> torch.Tensor:
    """Return the embedding of i - k for each query i and key k: (2 s - 1, size) -> (side, side, size).

    Row j of the table is for i - k = j - (s - 1). A table for another number of positions is interpolated linearly.
    """
    if len(table) != 2 * side - 1:
        table = F.interpolate(table.T[None], 2 * side - 1, mode="linear", align_corners=False)[0].T
    places = torch.arange(side, device=table.device)
    return table[places[:, None] - places[None, :] + side - 1]


def absolute_positions(table: torch.Tensor, size: Size, *, class_position: bool) -> torch.Tensor:
    """Return the positions of a map, (1, h, w, width), interpolated (bicubic) if it is not of the size of the table.

    Args:
        table: (1, s * s, width), or (1, 1 + s * s, width) if it begins with the class token's position.
    """
    table = table[:, int(class_position) :]
    side = math.isqrt(table.shape[1])
    square = table.unflatten(1, (side, side))
    if size == (side, side):
        return square
    resized = F.interpolate(square.permute(0, 3, 1, 2), size, mode="bicubic", align_corners=False)
    return resized.permute(0, 2, 3, 1)


def split_windows(x: torch.Tensor, side: int) -> torch.Tensor:
    """Split a map into windows: (N, h, w, width) -> (N * windows, side, side, width), row by row.

    The map is padded with zeros at the bottom and the right; as in detectron2, the padding takes part in the attention.
    """
    rows, columns = x.shape[1:3]
    x = F.pad(x, (0, 0, 0, -columns % side, 0, -rows % side))
    parts = x.unflatten(2, (-1, side)).unflatten(1, (-1, side))  # (N, down, side, across, side, width)
    return parts.transpose(2, 3).flatten(0, 2)


def join_windows(windows: torch.Tensor, size: Size) -> torch.Tensor:
    """Undo `split_windows` for a map of (h, w): (N * windows, side, side, width) -> (N, h, w, width)."""
    side, (rows, columns) = windows.shape[1], size
    grid = (-1, math.ceil(rows / side), math.ceil(columns / side))
    parts = windows.unflatten(0, grid).transpose(2, 3)
    return parts.flatten(3, 4).flatten(1, 2)[:, :rows, :columns]


@register(BACKBONE_REGISTRY)
def build_vit_sfp_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> Backbone:
    """Build a ViT with a simple feature pyramid from MODEL.VIT and MODEL.FPN; MODEL.BACKBONE.NAME selects it."""
    # not at the top: whichever module of both is imported first, detectron2 imports this one (d2_import_hook)
    from transfer.models.feature_pyramid import SimpleFeaturePyramid

    vit = cfg.MODEL.VIT
    net = ViT(
        width=vit.WIDTH,
        depth=vit.DEPTH,
        heads=vit.HEADS,
        patch_size=vit.PATCH_SIZE,
        mlp_ratio=vit.MLP_RATIO,
        pretrain_size=vit.PRETRAIN_SIZE,
        class_position=vit.CLASS_POSITION,
        image_size=vit.IMAGE_SIZE,
        window=vit.WINDOW,
        global_blocks=tuple(vit.GLOBAL_BLOCKS),
        relative_positions=vit.REL_POS,
        drop_path=vit.DROP_PATH,
        eps=vit.NORM_EPS,
        checkpoint_blocks=vit.CHECKPOINT_BLOCKS,
    )
    return SimpleFeaturePyramid(
        net, cfg.MODEL.FPN.OUT_CHANNELS, norm=cfg.MODEL.FPN.NORM, square=vit.IMAGE_SIZE
    )
