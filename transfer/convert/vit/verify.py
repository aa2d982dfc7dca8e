"""Verify numerically that a detector's ViT with the written file computes what the source network computes."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import Backbone, GeneralizedRCNN, build_backbone
from torch import nn
from torch.nn import functional

import transfer.models.vit  # noqa: F401  registers the backbone
from pretrain.common.errors import UserError
from transfer.convert.tensor_names import Tensors
from transfer.convert.verify import TOLERANCE, fill, preprocessed, relative, sample_images
from transfer.convert.vit.fold import detector_tensors, resizing
from transfer.convert.vit.recognise import VitSource, build_vit
from transfer.convert.weights_file import read_weights

RESIZED = "resized"  # the key of the largest difference at another size
# What the file does not have: relative positions, which begin at zero, and the pyramid.
_OWN = re.compile(r"net\.blocks\.\d+\.attn\.rel_pos_[hw]|simfp_")


def verify(source: VitSource, path: Path) -> dict[str, float]:
    """Verify a converted file against its source, block by block, with images of the source's own size and another.

    The source is fed without its class token and registers, which a detector does not have. The detector's blocks
    have windows as large as the source's image, which for 14 x 14 patches is what the recipes have, except for the
    last one of each quarter. At the other size, all blocks attend globally, and both networks interpolate positions.
    Resampled patches are fed to the detector, and the original ones to the source.

    Everything is computed in float64, for one block at a time. The tensors that detectron2 loaded must also be
    bit-identical to the source's with LayerScale folded and patches resampled.

    Returns:
        `block N` -> the largest relative difference after that block; `RESIZED` -> that at the other size.
    Raises:
        UserError: the source network is dead, a block differs by more than `TOLERANCE`, or a tensor differs at all.
    """
    backbone, settings = load_vit(path, grid=source.shape.grid)
    expected = detector_tensors(source, settings["MODEL.VIT.PATCH_SIZE"])
    wrong = _wrong_tensors(backbone, expected)
    cause = f"; tensor {wrong[0]} differs from the source's ({len(wrong)} such tensors)" if wrong else ""
    differences = compare(source, backbone, settings)
    worst = max(differences, key=lambda name: differences[name])
    figure = differences[worst]
    if not all(difference <= TOLERANCE for difference in differences.values()):  # a NaN fails too
        raise UserError(
            f"verification failed: the tokens differ from the source network's by {figure:.1e} ({worst}; relative; "
            f"limit {TOLERANCE:.0e}){cause}"
        )
    if wrong:
        raise UserError(f"verification failed{cause}, although the tokens agree: {figure:.1e}")
    return differences


def compare(source: VitSource, backbone: nn.Module, settings: dict[str, Any]) -> dict[str, float]:
    """Run both networks on the same images, each with its own preprocessing, and compare their tokens.

    Returns:
        As in `verify`: the maximum over channels of max |a - b| / max |a|, where a is the source's.
    Raises:
        UserError: the source network's features overflow float32, or do not depend on the image.
    """
    network, net = build_vit(source), cast(Any, backbone.net)
    grid, sizes = source.shape.grid, (source.shape.patch_size, settings["MODEL.VIT.PATCH_SIZE"])
    differences: dict[str, float] = {}
    for side, count in ((grid, 2), (other_grid(grid), 1)):
        own_size = side == grid
        if not own_size:
            for block in net.blocks:
                block.window = 0
        images = sample_images(side * sizes[0], side * sizes[0])[:count]
        with torch.no_grad():
            with _in_float64(network):
                expected = network.tokens(source_batch(source, images), extra=False)
            with _in_float64(net) as actual:
                net(_resized_patches(_detector_batch(settings, images), *sizes))
        if own_size:
            _check_alive(expected[-1])
        each = [_difference(a, b) for a, b in zip(expected, actual, strict=True)]
        if own_size:
            differences |= {f"block {number}": figure for number, figure in enumerate(each)}
        else:
            differences[RESIZED] = max(each)
    return differences


def other_grid(grid: int) -> int:
    """Return the rows, and columns, of patches at the other size: 28 for the usual 14, which are 448 pixels."""
    return 2 * grid if grid <= 14 else 28 if grid > 28 else grid + grid // 2


def load_vit(path: Path, *, grid: int) -> tuple[Backbone, dict[str, Any]]:
    """Build the detectors' backbone from the file's settings and fill its ViT with detectron2's checkpointer.

    Args:
        grid: side of the windows, in patches.
    Returns:
        The backbone, float32 on the CPU, in evaluation mode, and the settings.
    Raises:
        UserError: the file was not written by this converter, or does not fill the ViT exactly.
    """
    settings = read_weights(path)["preprocessing"]
    if settings is None:
        raise UserError(
            f"{path}: it has no preprocessing record, so it was not written by tools/convert_to_d2.py"
        )
    backbone: Backbone = build_backbone(_config(settings, grid)).eval()
    unplaced = [name for name in fill(backbone, path) if not _OWN.match(name)]
    if unplaced:
        raise UserError(
            f"{path}: detectron2 finds {len(unplaced)} tensors missing, unexpected or mis-shaped, "
            f"first {unplaced[0]}"
        )
    return backbone, settings


def _config(settings: dict[str, Any], grid: int) -> CfgNode:
    cfg = get_cfg()
    for key, value in settings.items():
        cfg.merge_from_list([key, value])
    depth = cfg.MODEL.VIT.DEPTH
    cfg.MODEL.VIT.WINDOW = grid
    cfg.MODEL.VIT.GLOBAL_BLOCKS = tuple(sorted({max(0, depth * part // 4 - 1) for part in (1, 2, 3, 4)}))
    cfg.MODEL.FPN.OUT_CHANNELS = 8  # the pyramid is not compared
    cfg.MODEL.FPN.NORM = "LN"
    return cfg


def _wrong_tensors(backbone: nn.Module, expected: Tensors) -> list[str]:
    loaded = cast(nn.Module, backbone.net).state_dict()
    return [name for name, tensor in expected.items() if not torch.equal(loaded[name], tensor)]


@contextmanager
def _in_float64(network: Any) -> Iterator[list[torch.Tensor]]:
    """Let a ViT compute in float64, of which only one block at a time takes memory, and collect its blocks' outputs.

    The weights are the same tensors again afterwards.
    """
    outputs: list[torch.Tensor] = []
    kept: dict[nn.Parameter, torch.Tensor] = {}

    def widen(parameters: Sequence[nn.Parameter]) -> None:
        for parameter in parameters:
            kept[parameter] = parameter.data
            parameter.data = parameter.data.double()

    def restore(parameters: Sequence[nn.Parameter]) -> None:
        for parameter in parameters:
            parameter.data = kept.pop(parameter)

    def before(module: nn.Module, _: Any) -> None:
        widen(list(module.parameters()))

    def after(module: nn.Module, _: Any, output: torch.Tensor) -> None:
        restore(list(module.parameters()))
        if module is not network.patch_embed:
            outputs.append(output)

    own = list(network.parameters(recurse=False))  # positions and tokens
    hooks = []
    for module in (network.patch_embed, *network.blocks):
        hooks += [module.register_forward_pre_hook(before), module.register_forward_hook(after)]
    widen(own)
    try:
        yield outputs
    finally:
        restore(list(kept))
        for hook in hooks:
            hook.remove()


def _check_alive(tokens: torch.Tensor) -> None:
    """Raise `UserError` if no detector could use the source's last tokens, (N, h, w, C), whatever a comparison says."""
    largest = float(tokens.abs().nan_to_num(nan=float("inf")).max())
    if largest > torch.finfo(torch.float32).max:
        raise UserError(
            "the source network overflows: its tokens are not finite numbers in float32; the training run diverged or "
            "the file is damaged: use another checkpoint"
        )
    if float((tokens[0] - tokens[1]).abs().max()) <= 1e-12 * largest:
        what = "the same for every image" if largest else "zero"
        raise UserError(f"the source network is dead: its tokens are {what}; use another checkpoint")


def _difference(expected: torch.Tensor, actual: torch.Tensor) -> float:
    return relative(expected.permute(0, 3, 1, 2), actual.permute(0, 3, 1, 2))  # (N, C, h, w)


def source_batch(source: VitSource, images: numpy.ndarray) -> torch.Tensor:
    """Return (N, 3, H, W), float64, for (N, H, W, 3) uint8 RGB images, normalised as the source expects."""
    batch = torch.from_numpy(images).permute(0, 3, 1, 2).double()
    if source.input.format == "BGR":
        batch = batch.flip(1)
    mean, std = (
        torch.tensor(values, dtype=torch.float64).view(3, 1, 1)
        for values in (source.input.mean, source.input.std)
    )
    return (batch - mean) / std


class _Unpadded(Backbone):
    """Stands for a backbone that takes images of any size."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images


def _detector_batch(settings: dict[str, Any], images: numpy.ndarray) -> torch.Tensor:
    """Return what detectron2's own `preprocess_image` makes of the images."""
    model = GeneralizedRCNN(
        backbone=_Unpadded(),
        proposal_generator=nn.Identity(),
        roi_heads=nn.Identity(),
        pixel_mean=settings["MODEL.PIXEL_MEAN"],
        pixel_std=settings["MODEL.PIXEL_STD"],
    )
    return preprocessed(model, settings, images)


def _resized_patches(batch: torch.Tensor, old: int, new: int) -> torch.Tensor:
    """Resize each patch of a batch by itself: (N, 3, h * old, w * old) -> (N, 3, h * new, w * new)."""
    if old == new:
        return batch
    patches = functional.unfold(batch.flatten(0, 1)[:, None], old, stride=old)  # (N * 3, old^2, h * w)
    size = (batch.shape[2] // old * new, batch.shape[3] // old * new)
    resized = functional.fold(resizing(old, new).to(batch) @ patches, size, new, stride=new)
    return resized.unflatten(0, (-1, 3))[:, :, 0]
