"""The same views by torchvision, to measure ours against: what people run today."""

import io
import random
from collections.abc import Callable

import torch
from fvcore.common.config import CfgNode
from PIL import Image, ImageFilter
from torchvision import transforms as v1
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms import v2

from pretrain.data.views import MAX_SIGMA, MIN_SIGMA, Recipe

Pipeline = Callable[[bytes], object]
_BLUR_SIZE = 13  # pixels: the width of our kernel at MAX_SIGMA


class _PillowBlur:
    """As the published MoCo v2 recipe blurs: Pillow's approximation by three box filters."""

    def __call__(self, image: Image.Image) -> Image.Image:
        return image.filter(ImageFilter.GaussianBlur(random.uniform(MIN_SIGMA, MAX_SIGMA)))


def pillow(recipe: Recipe, cfg: CfgNode) -> Pipeline:
    """torchvision's first transforms, on `PIL.Image`: bytes -> two normalised tensors."""
    transform = v1.Compose(
        [
            v1.RandomResizedCrop(cfg.INPUT.SIZE, scale=(cfg.INPUT.MIN_SCALE, 1.0)),
            *_in_order(
                recipe,
                v1.RandomApply([v1.ColorJitter(*recipe.jitter)], p=recipe.jitter_probability),
                v1.RandomGrayscale(recipe.gray_probability),
            ),
            v1.RandomApply([_PillowBlur()], p=recipe.blur_probability),
            v1.RandomHorizontalFlip(recipe.flip_probability),
            v1.ToTensor(),
            v1.Normalize(cfg.INPUT.MEAN, cfg.INPUT.STD),
        ]
    )

    def views(data: bytes) -> object:
        image = Image.open(io.BytesIO(data)).convert("RGB")
        return transform(image), transform(image)

    return views


def tensors(recipe: Recipe, cfg: CfgNode) -> Pipeline:
    """torchvision's second transforms, on uint8 tensors: bytes -> two normalised tensors."""
    transform = v2.Compose(
        [
            v2.RandomResizedCrop(cfg.INPUT.SIZE, scale=(cfg.INPUT.MIN_SCALE, 1.0), antialias=True),
            *_in_order(
                recipe,
                v2.RandomApply([v2.ColorJitter(*recipe.jitter)], p=recipe.jitter_probability),
                v2.RandomGrayscale(recipe.gray_probability),
            ),
            v2.RandomApply([v2.GaussianBlur(_BLUR_SIZE, (MIN_SIGMA, MAX_SIGMA))], p=recipe.blur_probability),
            v2.RandomHorizontalFlip(recipe.flip_probability),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(cfg.INPUT.MEAN, cfg.INPUT.STD),
        ]
    )

    def views(data: bytes) -> object:
        image = decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), mode=ImageReadMode.RGB)
        return transform(image), transform(image)

    return views


def _in_order(recipe: Recipe, jitter: object, gray: object) -> list[object]:
    return [gray, jitter] if recipe.gray_first else [jitter, gray]
