"""Operations of the views on (H, W, 3) uint8 RGB: torchvision's ColorJitter, RandomGrayscale, blur, solarize, crop.

Each function equals torchvision's up to rounding to bytes. Pillow, which torchvision calls for `PIL.Image`, truncates
instead of rounding, so its values are half a level lower after each operation.
"""

import math
from collections.abc import Sequence

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

OPERATIONS = ("brightness", "contrast", "saturation", "hue")
GRAY = ("saturation", 0.0)  # removes the colours
BLUR_REACH = 3.0  # standard deviations at which the Gaussian is cut off
LUMA = (0.299, 0.587, 0.114)  # weights of red, green and blue, ITU-R 601
_SOLARIZED = np.minimum(np.arange(256), 255 - np.arange(256)).astype(np.uint8)


def adjust(pixels: np.ndarray, steps: Sequence[tuple[str, float]]) -> np.ndarray:
    """Apply each (operation, factor) in this order; every result is clipped to 0..255.

    All operations but the hue turn a value x of a pixel with luma y into a x + b y + c. With a factor up to 1 the
    result cannot leave the range, so the next operation can share the same pass over the pixels. If the first operation
    removes the colours, the rest works on one channel, which has neither hue nor saturation.
    """
    if steps and steps[0] == GRAY:
        luma = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
        steps = [step for step in steps if step[0] not in ("saturation", "hue")]
        return cv2.cvtColor(adjust(luma, steps), cv2.COLOR_GRAY2RGB)
    a, b, c, may_clip = 1.0, 0.0, 0.0, False
    for name, factor in steps:
        if may_clip or name == "hue":
            pixels, a, b, c, may_clip = _blend(pixels, a, b, c), 1.0, 0.0, 0.0, False
        if name == "hue":
            pixels = turn_hue(pixels, factor)
            continue
        rest = 1 - factor
        if name == "saturation":  # away from the luma of each pixel
            a, b = factor * a, factor * b + rest * (a + b)
        else:  # contrast: away from the mean luma of the picture; brightness: from black
            mean = (a + b) * mean_luma(pixels) + c if name == "contrast" else 0.0
            a, b, c = factor * a, factor * b, factor * c + rest * mean
        may_clip = factor > 1
    return _blend(pixels, a, b, c)


def mean_luma(pixels: np.ndarray) -> float:
    """Return the mean luma of the picture, 0 to 255."""
    if pixels.ndim == 2:
        return cv2.mean(pixels)[0]
    return sum(weight * mean for weight, mean in zip(LUMA, cv2.mean(pixels), strict=False))


def _blend(pixels: np.ndarray, a: float, b: float, c: float) -> np.ndarray:
    if (a, b, c) == (1, 0, 0):
        return pixels
    if pixels.ndim == 2:
        return cv2.transform(pixels, np.array([[a, c]]))
    red, green, blue = (b * weight for weight in LUMA)
    rows = [[a + red, green, blue, c], [red, a + green, blue, c], [red, green, a + blue, c]]
    return cv2.transform(pixels, np.array(rows))


def turn_hue(pixels: np.ndarray, turn: float) -> np.ndarray:
    """Rotate the hue by a share of the full circle, in [-0.5, 0.5]."""
    pixels = pixels.astype(np.float32, order="C")  # exact, and faster in OpenCV than bytes
    hsv = cv2.cvtColor(pixels, cv2.COLOR_RGB2HSV, pixels)
    hue = hsv.reshape(-1)[::3]
    np.add(hue, turn % 1 * 360, out=hue)
    return cv2.convertScaleAbs(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB, hsv))


def blur(pixels: np.ndarray, sigma: float) -> np.ndarray:
    """Apply a Gaussian blur of `sigma` pixels, mirrored at the border."""
    reach = math.ceil(BLUR_REACH * sigma)
    kernel = cv2.getGaussianKernel(2 * reach + 1, sigma)
    return cv2.sepFilter2D(pixels, -1, kernel, kernel)  # takes half the time of cv2.GaussianBlur


def solarize(pixels: np.ndarray) -> np.ndarray:
    """Invert the values from 128 up, in each channel."""
    return cv2.LUT(pixels, _SOLARIZED)


def resized_crop(
    pixels: np.ndarray, box: tuple[int, int, int, int], size: int, *, scale: float = 1.0
) -> np.ndarray:
    """Crop a box and resize it to a square: (H, W, 3) uint8 -> (size, size, 3) uint8.

    The filter is bilinear with antialiasing. PyTorch's kernel for bytes gives Pillow's values within 1/255 in a quarter
    of the time. OpenCV has no such filter: its bilinear one aliases, and its area filter is sharper (p99 of 5/255) and
    slower.

    Args:
        box: left, top, width and height.
        scale: size of `pixels` divided by the size that `box` was chosen for, if a JPEG was decoded smaller. Box edges
            then fall between pixels, which Pillow supports and PyTorch does not.
    """
    left, top, width, height = box
    if scale == 1:
        crop = torch.from_numpy(pixels[top : top + height, left : left + width])[None]
        crop = crop.permute(0, 3, 1, 2)  # channels-last, where the kernel is fast
        resized = F.interpolate(crop, (size, size), mode="bilinear", antialias=True, align_corners=False)
        return np.ascontiguousarray(resized[0].permute(1, 2, 0).numpy())
    x0, y0, x1, y1 = scale * left, scale * top, scale * (left + width), scale * (top + height)
    x1, y1 = min(x1, pixels.shape[1]), min(y1, pixels.shape[0])
    first_x, first_y = int(x0), int(y0)  # crop first: the filter must not read beyond the box
    cut = Image.fromarray(pixels[first_y : math.ceil(y1), first_x : math.ceil(x1)])
    edges = (x0 - first_x, y0 - first_y, x1 - first_x, y1 - first_y)
    return np.asarray(cut.resize((size, size), Image.Resampling.BILINEAR, box=edges))
