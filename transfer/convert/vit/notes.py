"""Measure what a conversion leaves out or changes by design; it is printed and recorded, and nothing depends on it."""

from dataclasses import replace

import torch
from torch.nn import functional

from transfer.convert.verify import sample_images
from transfer.convert.vit.fold import resampled
from transfer.convert.vit.kinds import KINDS, Kind
from transfer.convert.vit.recognise import VitSource, build_vit
from transfer.convert.vit.verify import other_grid, source_batch

CLASS_TOKEN, PATCHES, POSITIONS = "class token", "resampled patches", "positions"
# How some projects resize their tables of positions -> how that is said
INTERPOLATIONS = {
    "offset": "with an offset of 0.1",
    "antialias": "with antialiasing",
    "corners": "with aligned corners",
}


@torch.no_grad()
def notes(source: VitSource, patch_size: int) -> dict[str, float]:
    """Measure, in float32 and on one picture, what a detector does differently from the source's project.

    Returns:
        What is different -> the root mean square of the change of the last block's patch tokens, relative to
        their own: without the class token and registers; with resampled patches; at another size, with positions
        resized as the project's own code does it.
    """
    shape = source.shape
    network = build_vit(source)
    batch = _picture(source, shape.image_size)
    plain = network.tokens(batch, extra=False)[-1]
    found = {}
    if shape.class_token or shape.registers:
        found[CLASS_TOKEN] = _rms(network.tokens(batch)[-1], plain)
    if patch_size != shape.patch_size:
        kernel = "patch_embed.proj.weight"
        tensors = source.backbone | {kernel: resampled(source.backbone[kernel], patch_size)}
        other = build_vit(replace(source, shape=replace(shape, patch_size=patch_size), backbone=tensors))
        larger = _picture(source, shape.grid * patch_size)
        smaller = functional.interpolate(
            larger, size=(shape.image_size, shape.image_size), mode="bilinear", antialias=True
        )
        found[PATCHES] = _rms(network.tokens(smaller, extra=False)[-1], other.tokens(larger, extra=False)[-1])
    layout = KINDS.get(source.kind)
    if isinstance(layout, Kind) and layout.interpolation and not shape.registers:
        side = other_grid(shape.grid)
        batch = _picture(source, side * shape.patch_size)
        tensors = source.backbone | {"pos_embed": resized_positions(source, side, layout.interpolation)}
        theirs = build_vit(replace(source, shape=replace(shape, grid=side), backbone=tensors))
        found[POSITIONS] = _rms(theirs.tokens(batch, extra=False)[-1], network.tokens(batch, extra=False)[-1])
    return found


def resized_positions(source: VitSource, side: int, how: str) -> torch.Tensor:
    """Return the table of positions for side x side patches, resized as in `INTERPOLATIONS`."""
    table, first = source.backbone["pos_embed"], int(source.shape.class_position)
    square = table[:, first:].unflatten(1, (source.shape.grid,) * 2).permute(0, 3, 1, 2)
    if how == "offset":  # DINO's: a factor that is a little larger, against rounding
        factor = (side + 0.1) / source.shape.grid
        resized = functional.interpolate(square, scale_factor=(factor, factor), mode="bicubic")
    else:
        resized = functional.interpolate(
            square,
            size=(side, side),
            mode="bicubic",
            antialias=how == "antialias",
            align_corners=how == "corners",
        )
    return torch.cat([table[:, :first], resized.flatten(2).transpose(1, 2)], dim=1)


def _picture(source: VitSource, side: int) -> torch.Tensor:
    return source_batch(source, sample_images(side, side)[:1]).float()


def _rms(expected: torch.Tensor, actual: torch.Tensor) -> float:
    return float((expected - actual).norm() / expected.norm())
