"""A tiny ViT with a simple feature pyramid, its weights by a formula, and what its maps then sum up to."""

import contextlib
from contextlib import AbstractContextManager

import torch
from torch import nn

from transfer.models.feature_pyramid import SimpleFeaturePyramid
from transfer.models.vit import ViT

SHAPE = {"width": 24, "depth": 3, "heads": 3}
IMAGE_SIZE, PRETRAIN_SIZE, WINDOW, CHANNELS, EPS = 96, 64, 4, 8, 1e-6


def pyramid(**changes: object) -> SimpleFeaturePyramid:
    """Build the model in float64: block 1 attends globally, the others in windows that do not divide the map."""
    options = SHAPE | {
        "pretrain_size": PRETRAIN_SIZE, "image_size": IMAGE_SIZE, "window": WINDOW, "global_blocks": (1,), "eps": EPS,
    } | changes  # fmt: skip
    return SimpleFeaturePyramid(ViT(**options), CHANNELS, norm="LN", square=IMAGE_SIZE).double()


def fill(model: nn.Module) -> None:
    """Set each parameter to sines that depend on its name's place in the alphabet."""
    with torch.no_grad():
        for place, (_, parameter) in enumerate(sorted(model.named_parameters())):
            numbers = torch.arange(parameter.numel(), dtype=torch.float64)
            parameter.copy_((0.2 * torch.sin(1.7 * numbers + place)).view_as(parameter))


def images(height: int = 96, width: int = 96) -> torch.Tensor:
    """Return two images (2, 3, height, width) by a formula."""
    return torch.sin(0.37 * torch.arange(2 * 3 * height * width, dtype=torch.float64)).view(
        2, 3, height, width
    )


def numbers(model: nn.Module, pictures: torch.Tensor) -> dict[str, list[float]]:
    """Return the mean and the root mean square of each map, and those of some gradients of the maps' sum of squares."""
    maps = model(pictures)
    sum((each**2).sum() for each in maps.values()).backward()
    found = {name: each.detach() for name, each in maps.items()}
    for name, parameter in model.named_parameters():
        if name.endswith(
            ("pos_embed", "blocks.0.attn.rel_pos_h", "blocks.1.attn.rel_pos_w", "blocks.2.mlp.fc1.weight")
        ):
            found[name] = parameter.grad
    return {name: [t.mean().item(), t.pow(2).mean().sqrt().item()] for name, t in found.items()}


def maps_and_gradients(
    device: torch.device,
    dtype: torch.dtype,
    *,
    precision: AbstractContextManager[object] | None = None,
    watch: AbstractContextManager[object] | None = None,
    **changes: object,
) -> dict[str, torch.Tensor]:
    """Return the maps of `images` and the gradients of all parameters by the maps' mean squares, on the CPU.

    The forward pass runs under `precision`; both passes, but no copy from or to the device, run under `watch`.
    """
    model = pyramid(**changes)
    fill(model)
    model.to(device, dtype)
    pictures = images().to(device, dtype)
    with watch or contextlib.nullcontext():
        with precision or contextlib.nullcontext():
            maps = model(pictures)
        sum((each.to(dtype) ** 2).mean() for each in maps.values()).backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    return {name: value.detach().cpu() for name, value in (maps | gradients).items()}
