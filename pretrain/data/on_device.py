"""The second half of the views, colours, blur and solarizing, on whole batches and any device (INPUT.VIEWS gpu).

The loader's workers decode, crop, resize and flip, and send the remaining operations with each view
(`pretrain.data.views.pack`). These are applied here in float32 to all views at once, without branching on a value, so
nothing waits for the device. The results equal those of the CPU path up to its rounding to bytes after each operation.
"""

from functools import lru_cache

import torch
from torch import nn

from pretrain.data.pixel_ops import BLUR_REACH, LUMA, OPERATIONS
from pretrain.data.views import MAX_SIGMA, PACKED, Recipe

_HUE = OPERATIONS.index("hue")
_REACH = int(BLUR_REACH * MAX_SIGMA)  # radius of the widest blur, pixels


@torch.no_grad()
def finish(images: torch.Tensor, choices: torch.Tensor, recipe: Recipe) -> torch.Tensor:
    """Apply the colour changes, the blur and the solarizing.

    Args:
        images: (N, S, S, 3) uint8 of `pretrain.data.views.two_views(..., geometry_only=True)`.
        choices: (N, PACKED), or (N, 0) if the views are finished already; on the same device.
        recipe: the recipe that the choices were drawn from.
    Returns:
        (N, S, S, 3) uint8; bytes again, because the keys' views are sent to other processes for shuffling.
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
    pixels = pixels.round_().clamp_(0, 255)
    if recipe.solarize_probability:
        pixels = torch.where(
            choices[:, 10, None, None, None] > 0, torch.minimum(pixels, 255 - pixels), pixels
        )
    return pixels.byte().permute(0, 2, 3, 1).contiguous()


def _jitter(pixels: torch.Tensor, operations: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    """Apply each view's four operations in its own order.

    Only the hue is expensive, and each view changes it once. So it is done for all views together, after those of the
    other, linear, operations that come before it in each view, and before the rest.
    """
    # 0 for views without jitter, where all operations do nothing
    hue_at = (operations == _HUE).int().argmax(1)
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
    """Change brightness, contrast or saturation of the `active` views; all arguments but the pixels are (N,)."""
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
    """Rotate the hue by a share of the circle, (N,). The circle has six units of hue (Smith 1978, as in `colorsys`)."""
    high, low = pixels.amax(1), pixels.amin(1)  # (N, S*S)
    chroma = high - low
    red, green, blue = pixels.unbind(1)
    scale = chroma.clamp_min(1e-6)
    hue = torch.where(
        high == red,
        (green - blue) / scale,
        torch.where(high == green, (blue - red) / scale + 2, (red - green) / scale + 4),
    )
    # A channel falls from the highest to the lowest value between one and two units away from its own hue.
    hue = hue + 6 * turn[:, None]
    corners = _constant((0.0, 2.0, 4.0), pixels.device)[:, None]
    distance = ((hue[:, None] - corners + 3) % 6 - 3).abs()  # (N, 3, S*S), 0 to 3
    turned = high[:, None] - chroma[:, None] * (distance - 1).clamp_(0, 1)
    return torch.where((turn == 0)[:, None, None], pixels, turned)


def _blur(pixels: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """Blur with (N,) standard deviations, 0 for no blur; one matrix per view blurs both columns and rows."""
    size, offsets = pixels.shape[-1], torch.arange(-_REACH, _REACH + 1, device=pixels.device)
    width = sigma[:, None].clamp_min(1e-6)
    weights = torch.exp(-0.5 * (offsets / width) ** 2) * (offsets.abs() <= (BLUR_REACH * width).ceil())
    weights = weights / weights.sum(1, keepdim=True)
    matrix = (weights @ _shifts(size, pixels.device)).view(-1, 1, size, size)
    return matrix @ pixels @ matrix.transpose(2, 3)


@lru_cache(maxsize=8)
def _shifts(size: int, device: torch.device) -> torch.Tensor:
    """Return (2 _REACH + 1, size * size): for each offset the matrix that shifts by it, mirrored at the border."""
    place = torch.arange(size) + torch.arange(-_REACH, _REACH + 1)[:, None]
    period = max(2 * (size - 1), 1)
    place = torch.minimum(place % period, -place % period)
    return torch.nn.functional.one_hot(place, size).float().flatten(1).to(device)


@lru_cache(maxsize=8)
def _constant(values: tuple[float, ...], device: torch.device) -> torch.Tensor:
    """Return a tensor that is copied to the device only once, because each copy waits for the device."""
    return torch.tensor(values, device=device)


class Pixels(nn.Module):
    """Normalisation, (N, H, W, 3) uint8 -> (N, 3, H, W) float32: up to here images are kept as bytes."""

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
        # Compute on contiguous planes in any case: an innermost loop over three channels is slow.
        return planes.sub_(self.mean).div_(self.std).contiguous(memory_format=self.format)
