"""Labelled images of the linear probe: class folders, random crops to train on, centre crops to test on."""

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

MIN_SCALE = (
    0.08  # smallest share of the image in a crop: torchvision's RandomResizedCrop, unless told otherwise
)
_CROP_AND_FLIP = views.Recipe(
    (0.0, 0.0, 0.0, 0.0), jitter_probability=0, blur_probability=0, gray_first=False, gray_probability=0
)


def check_classes(train: LabelledImages, val: LabelledImages) -> None:
    """Raise `UserError` unless both have the same classes, two or more."""
    if len(train.classes) < 2:
        raise UserError(f"{train.name}: holds one class folder, {train.classes[0]}; needs two or more")
    for one, other in ((train, val), (val, train)):
        missing = sorted(set(one.classes) - set(other.classes))
        if missing:
            raise UserError(
                f"{other.name}: {len(missing)} of the {len(one.classes)} class folders of {one.name} are not "
                f"in it, such as {missing[0]}; both need the same"
            )


def check_separate(train: LabelledImages, val: LabelledImages) -> None:
    """Raise `UserError` if both are the same images, in one folder or in copies of one."""
    pairs = zip(train.files, val.files, strict=True)
    # equal digests are not enough: uncompressed images of one size have files of one size
    if train.digest == val.digest and all(_same_file(*pair) for pair in pairs):
        raise UserError(
            f"{val.name}: the same images as {train.name}: accuracy would be that of images trained on; name others"
        )


def _same_file(one: str, other: str) -> bool:
    try:
        return os.path.samefile(one, other) or filecmp.cmp(one, other, shallow=False)
    except OSError:  # unreadable; reported when images are read
        return False


class Crop(NamedTuple):
    """A random crop: (size, size, 3) uint8, number of its class, images that could not be read on the way."""

    pixels: np.ndarray
    label: int
    broken: list[int]


class RandomCrops(Dataset[Crop]):
    """Item (epoch, index) -> a random resized crop of image `index`, flipped or not.

    An unreadable image is replaced by another one, with that one's class.
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
            except Exception:  # Pillow's plugins raise a dozen classes on damaged files
                broken.append(index)
        raise UserError(
            f"{self.images.name}: {len(broken)} images in a row cannot be read, the first is "
            f"{self.images.files[wanted]}; mend or remove them"
        )


def random_crop(data: bytes, size: int, *, counters: tuple[int, int, int]) -> np.ndarray:
    """RandomResizedCrop(size) and RandomHorizontalFlip of an image file -> (size, size, 3) uint8.

    Args:
        data: the file.
        counters: seed, epoch and index of the image; everything drawn is a function of them.
    """
    file = ImageFile(data)
    random = rng.quick("linear", *counters)
    view = views.draw(random, _CROP_AND_FLIP, width=file.width, height=file.height, min_scale=MIN_SCALE)
    pixels = file.decode(shrink=min(view.box[2:]) / size)
    return views.crop(pixels, view, size=size, scale=pixels.shape[1] / file.width)


def collate_crops(crops: list[Crop]) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
    """Images (N, size, size, 3) uint8, labels (N,), unreadable images of all."""
    pixels = torch.from_numpy(np.stack([crop.pixels for crop in crops]))
    labels = torch.tensor([crop.label for crop in crops])
    return pixels, labels, [index for crop in crops for index in crop.broken]
