"""The second half of the views on whole batches, on any device: colours and blur (INPUT.VIEWS gpu).

The loader's workers decode, crop, resize and flip, and send with each view what is left to do
(`pretrain.data.views.pack`). Here it is done in float32 for all views at once: no branch on a value, so that nothing
waits for the device. The same choices give the CPU's view but for its rounding to bytes after each operation.
"""

from functools import lru_cache

import torch
from torch import nn

from pretrain.data.pixel_ops import BLUR_REACH, LUMA, OPERATIONS
from pretrain.data.views import MAX_SIGMA, PACKED, Recipe

_HUE = OPERATIONS.index("hue")
_REACH = int(BLUR_REACH * MAX_SIGMA)  # pixels, of the widest blur


@torch.no_grad()
def finish(images: torch.Tensor, choices: torch.Tensor, recipe: Recipe) -> torch.Tensor:
    """Change colours and blur.

    Args:
        images: (N, S, S, 3) uint8 of `pretrain.data.views.two_views(..., geometry_only=True)`.
        choices: (N, PACKED), or (N, 0) for views that are finished already; on the same device.
        recipe: that drew them.
    Returns:
        (N, S, S, 3) uint8; bytes again, for the keys' views travel to other processes for shuffling.
    """
    if choices.shape[1] != PACKED:
        return images
    size = images.shape[1]
    pixels = images.permute(0, 3, 1, 2).float().flatten(2)  # (N, 3, S*S)
    operations, factors = choices[:, 0:8:2], choices[:, 1:8:2]  # (N, 4) in the order of application
    gray, sigma = choices[:, 8], choices[:, 9]
    if recipe.gray_first and recipe.gray_probability:
        pixels = _gray(pixels, gray)
    if recipe.jitter_probability:
        pixels = _jitter(pixels, operations, factors)
    if not recipe.gray_first and recipe.gray_probability:
        pixels = _gray(pixels, gray)
    pixels = pixels.unflatten(2, (size, size))
    if recipe.blur_probability:
        pixels = _blur(pixels, sigma)
    return pixels.round_().clamp_(0, 255).byte().permute(0, 2, 3, 1).contiguous()


def _jitter(pixels: torch.Tensor, operations: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    """Each view's four operations in its own order.

    Every view turns its hue once, and only this costs much. So it happens to all views in the same moment, after
    as many of the other operations as come before it in each, which are linear, and before the rest of them.
    """
    hue_at = (operations == _HUE).int().argmax(1)  # 0 for views without jitter: they do nothing anyway
    turn = torch.where(operations == _HUE, factors, 0.0).sum(1)
    for step in range(3):
        pixels = _linear(pixels, operations[:, step], factors[:, step], active=step < hue_at)
    pixels = _turn_hue(pixels, turn)
    for step in range(1, 4):
        pixels = _linear(pixels, operations[:, step], factors[:, step], active=step > hue_at)
    return pixels


def _linear(
    pixels: torch.Tensor, operation: torch.Tensor, factor: torch.Tensor, *, active: torch.Tensor
) -> torch.Tensor:
    """Brightness, contrast or saturation of the `active` views; (N,) each."""
    brightness, contrast, saturation = (active & (operation == number) for number in range(3))
    factor = torch.where(brightness | contrast | saturation, factor, 1.0)
    luma, rest = _constant(LUMA, pixels.device), 1 - factor
    own = torch.eye(3, device=pixels.device) * factor[:, None, None]  # (N, 3, 3)
    matrix = own + (rest * saturation)[:, None, None] * luma
    offset = rest * contrast * (pixels.mean(2) @ luma)
    return torch.baddbmm(offset[:, None, None], matrix, pixels).clamp_(0, 255)


def _gray(pixels: torch.Tensor, gray: torch.Tensor) -> torch.Tensor:
    luma = _constant(LUMA, pixels.device)
    matrix = torch.eye(3, device=pixels.device) * (1 - gray)[:, None, None] + gray[:, None, None] * luma
    return torch.bmm(matrix, pixels)


def _turn_hue(pixels: torch.Tensor, turn: torch.Tensor) -> torch.Tensor:
    """By a share of the circle, (N,). A hexagon's corner is one unit of hue (Smith 1978, as in `colorsys`)."""
    high, low = pixels.amax(1), pixels.amin(1)  # (N, S*S)
    chroma = high - low
    red, green, blue = pixels.unbind(1)
    scale = chroma.clamp_min(1e-6)
    hue = torch.where(
        high == red,
        (green - blue) / scale,
        torch.where(high == green, (blue - red) / scale + 2, (red - green) / scale + 4),
    )
    # a channel falls from the highest to the lowest value between one and two units from its own corner
    hue = hue + 6 * turn[:, None]
    corners = _constant((0.0, 2.0, 4.0), pixels.device)[:, None]
    distance = ((hue[:, None] - corners + 3) % 6 - 3).abs()  # (N, 3, S*S), 0 to 3
    turned = high[:, None] - chroma[:, None] * (distance - 1).clamp_(0, 1)
    return torch.where((turn == 0)[:, None, None], pixels, turned)


def _blur(pixels: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """Gaussian blur, (N,) standard deviations, 0 for none: columns and rows by one matrix for each view."""
    size, offsets = pixels.shape[-1], torch.arange(-_REACH, _REACH + 1, device=pixels.device)
    width = sigma[:, None].clamp_min(1e-6)
    weights = torch.exp(-0.5 * (offsets / width) ** 2) * (offsets.abs() <= (BLUR_REACH * width).ceil())
    weights = weights / weights.sum(1, keepdim=True)
    matrix = (weights @ _shifts(size, pixels.device)).view(-1, 1, size, size)
    return matrix @ pixels @ matrix.transpose(2, 3)


@lru_cache(maxsize=8)
def _shifts(size: int, device: torch.device) -> torch.Tensor:
    """(2 _REACH + 1, size * size): for each offset the matrix that shifts pixels by it, mirrored at the rim."""
    place = torch.arange(size) + torch.arange(-_REACH, _REACH + 1)[:, None]
    period = max(2 * (size - 1), 1)
    place = torch.minimum(place % period, -place % period)
    return torch.nn.functional.one_hot(place, size).float().flatten(1).to(device)


@lru_cache(maxsize=8)
def _constant(values: tuple[float, ...], device: torch.device) -> torch.Tensor:
    """Copied to the device once: each copy would wait for it."""
    return torch.tensor(values, device=device)


class Pixels(nn.Module):
    """(N, H, W, 3) uint8 -> (N, 3, H, W) float32, normalised: images travel as bytes until here."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, mean: list[float], std: list[float], *, channels_last: bool = False) -> None:
        super().__init__()
        self.register_buffer("mean", 255 * torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(std).view(3, 1, 1), persistent=False)
        self.format = torch.channels_last if channels_last else torch.contiguous_format

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Normalise a batch."""
        planes = images.permute(0, 3, 1, 2).to(self.mean.dtype, memory_format=torch.contiguous_format)
        # Plane by plane, whatever comes out in the end: a loop over three channels in the innermost place is slow
        return planes.sub_(self.mean).div_(self.std).contiguous(memory_format=self.format)
