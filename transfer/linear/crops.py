"""Labelled images of the linear probe: checks of the class folders, and random crops for training."""

import filecmp
import os
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset

from pretrain.common import rng
from pretrain.common.errors import UserError
from pretrain.data import views
from pretrain.data.broken_images import attempts
from pretrain.data.class_folders import LabelledImages
from pretrain.data.decode import ImageFile

# Smallest share of the image's area in a crop: the default of torchvision's RandomResizedCrop.
MIN_SCALE = 0.08
_CROP_AND_FLIP = views.Recipe(
    (0.0, 0.0, 0.0, 0.0), jitter_probability=0, blur_probability=0, gray_first=False, gray_probability=0
)


def check_classes(train: LabelledImages, val: LabelledImages) -> None:
    """Raise `UserError` unless both have the same classes, at least two."""
    if len(train.classes) < 2:
        raise UserError(
            f"{train.name}: holds only one class folder, {train.classes[0]}; two or more are needed"
        )
    for one, other in ((train, val), (val, train)):
        missing = sorted(set(one.classes) - set(other.classes))
        if missing:
            raise UserError(
                f"{other.name}: {len(missing)} of the {len(one.classes)} class folders of {one.name} are missing, "
                f"such as {missing[0]}; both need the same class folders"
            )


def check_separate(train: LabelledImages, val: LabelledImages) -> None:
    """Raise `UserError` if both hold the same images: one folder given twice, or a copy of it."""
    pairs = zip(train.files, val.files, strict=True)
    # Digests cover names and sizes of files, and uncompressed images of equal size have equal file sizes.
    if train.digest == val.digest and all(_same_file(*pair) for pair in pairs):
        raise UserError(
            f"{val.name}: the same images as {train.name}: accuracy would be measured on training images; give others"
        )


def _same_file(one: str, other: str) -> bool:
    try:
        return os.path.samefile(one, other) or filecmp.cmp(one, other, shallow=False)
    except OSError:  # An unreadable file is reported when the images are read.
        return False


class Crop(NamedTuple):
    """A random crop: (size, size, 3) uint8, its class index, and the unreadable images that it replaces."""

    pixels: np.ndarray
    label: int
    broken: list[int]


class RandomCrops(Dataset[Crop]):
    """Maps (epoch, index) to a random crop of image `index`, resized and randomly flipped.

    An unreadable image is replaced by another one, whose class label is used then.
    """

    def __init__(self, images: LabelledImages, *, size: int, seed: int) -> None:
        self.images, self.size, self.seed = images, size, seed

    def __getitem__(self, item: tuple[int, int]) -> Crop:
        epoch, wanted = item
        broken: list[int] = []
        for index in attempts(wanted, len(self.images)):
            try:
                data = self.images.files.read(index)
                pixels = random_crop(data, self.size, counters=(self.seed, epoch, index))
                return Crop(pixels, int(self.images.labels[index]), broken)
            except Exception:  # Pillow's plugins raise many different exceptions for damaged files.
                broken.append(index)
        raise UserError(
            f"{self.images.name}: {len(broken)} images in a row cannot be read, the first is "
            f"{self.images.files[wanted]}; repair or remove them"
        )


def random_crop(data: bytes, size: int, *, counters: tuple[int, int, int]) -> np.ndarray:
    """Apply RandomResizedCrop(size) and RandomHorizontalFlip to an image file; return (size, size, 3) uint8.

    Args:
        data: the content of the file.
        counters: seed, epoch and index of the image; they determine all random numbers.
    """
    file = ImageFile(data)
    random = rng.quick("linear", *counters)
    view = views.draw(random, _CROP_AND_FLIP, width=file.width, height=file.height, min_scale=MIN_SCALE)
    pixels = file.decode(shrink=min(view.box[2:]) / size)
    return views.crop(pixels, view, size=size, scale=pixels.shape[1] / file.width)


def collate_crops(crops: list[Crop]) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
    """Return images (N, size, size, 3) uint8, labels (N,), and the unreadable images of all crops."""
    pixels = torch.from_numpy(np.stack([crop.pixels for crop in crops]))
    labels = torch.tensor([crop.label for crop in crops])
    return pixels, labels, [index for crop in crops for index in crop.broken]
