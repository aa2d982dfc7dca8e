"""Crop and resize, as torchvision's transforms do with `antialias=True`."""

import math

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image


def resized_crop(
    pixels: np.ndarray, box: tuple[int, int, int, int], size: int, *, scale: float = 1.0
) -> np.ndarray:
    """Cut a box out and resize it to a square: (H, W, 3) uint8 -> (size, size, 3) uint8.

    Bilinear; where pixels get fewer, the weights widen with them, so that nothing aliases. PyTorch's kernel for
    bytes gives Pillow's values within 1/255 in a quarter of its time. OpenCV has no such filter: its bilinear
    one aliases, its area filter is sharper (p99 of 5/255) and slower.

    Args:
        box: left, top, width and height.
        scale: size of `pixels` over the size that `box` was chosen for (a JPEG decoded smaller). Edges then
            fall between pixels, which PyTorch cannot express and Pillow can.
    """
    left, top, width, height = box
    if scale == 1:
        crop = torch.from_numpy(pixels[top : top + height, left : left + width])[None]
        crop = crop.permute(0, 3, 1, 2)  # channels-last, for which the kernel is fast
        resized = F.interpolate(crop, (size, size), mode="bilinear", antialias=True, align_corners=False)
        return np.ascontiguousarray(resized[0].permute(1, 2, 0).numpy())
    x0, y0, x1, y1 = scale * left, scale * top, scale * (left + width), scale * (top + height)
    x1, y1 = min(x1, pixels.shape[1]), min(y1, pixels.shape[0])
    first_x, first_y = int(x0), int(y0)  # cut first: the filter must not see beyond the box
    cut = Image.fromarray(pixels[first_y : math.ceil(y1), first_x : math.ceil(x1)])
    edges = (x0 - first_x, y0 - first_y, x1 - first_x, y1 - first_y)
    return np.asarray(cut.resize((size, size), Image.Resampling.BILINEAR, box=edges))
