"""Labelled images of the linear probe: class folders, random crops to train on, centre crops to test on."""

import filecmp
import hashlib
import os
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset

from pretrain import views
from pretrain.common import rng
from pretrain.common.errors import UserError
from pretrain.decode import ImageFile, centre_view
from pretrain.images import ImageFiles, find_images

MIN_SCALE = (
    0.08  # smallest share of the image in a crop: torchvision's RandomResizedCrop, unless told otherwise
)
_CROP_AND_FLIP = views.Recipe(
    (0.0, 0.0, 0.0, 0.0), jitter_probability=0, blur_probability=0, gray_first=False, gray_probability=0
)
_REPLACEMENTS = 16  # other images tried in the place of an unreadable one
_STRIDE = 7919  # a prime: neighbours in the list may all sit in the same broken folder


class LabelledImages:
    """The images of a folder of class folders.

    Attributes:
        name: key and folder, for messages.
        files: sorted by path.
        classes: names of the class folders, sorted.
        labels: (N,) int64, numbers of classes.
        digest: SHA-256 of the paths inside of the folder and the sizes of the files.
        changed: a number of 52 bits, of the times when the files were changed: other ones in a copy.
    """

    def __init__(self, folder: str, *, key: str) -> None:
        self.name, self.folder = f"{key} {folder}", folder
        self.files = find_images([folder], key=key)
        start, digest, times = len(os.path.join(folder, "")), hashlib.sha256(), hashlib.sha256()
        names: list[str] = []
        for path in self.files:
            inside = path[start:]
            if os.sep not in inside:
                raise UserError(
                    f"{self.name}: an image beside the class folders: {inside}; one folder a class"
                )
            names.append(inside.split(os.sep, 1)[0])
            size, changed = _size_and_time(path)
            digest.update(os.fsencode(f"{inside}\0{size}\n"))
            times.update(b"%d\n" % changed)
        self.classes = sorted(set(names))
        number = {name: n for n, name in enumerate(self.classes)}
        self.labels = np.array([number[name] for name in names], np.int64)
        self.digest, self.changed = digest.hexdigest(), int(times.hexdigest()[:13], 16)

    def __len__(self) -> int:
        return len(self.files)


def _size_and_time(path: str) -> tuple[int, int]:
    """In bytes and nanoseconds; -1 for a link to nowhere, which counts as an unreadable image later."""
    try:
        found = os.stat(path)
    except OSError:
        return -1, -1
    return found.st_size, found.st_mtime_ns


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
        for attempt in range(_REPLACEMENTS):
            index = (wanted + attempt * _STRIDE) % len(self.images)
            try:
                data = self.images.files.read(index)
                pixels = random_crop(data, self.size, counters=(self.seed, epoch, index))
                return Crop(pixels, int(self.images.labels[index]), broken)
            except Exception:  # Pillow's plugins raise a dozen classes on damaged files
                broken.append(index)
        raise UserError(
            f"{self.images.name}: {_REPLACEMENTS} images in a row cannot be read, the first is "
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


class CentreCrops(Dataset[tuple[np.ndarray, bool]]):
    """Item index -> the central view of image `index` and True, or black and False if it cannot be read."""

    def __init__(self, files: ImageFiles, *, size: int) -> None:
        self.files, self.size = files, size

    def __getitem__(self, index: int) -> tuple[np.ndarray, bool]:
        try:
            return centre_view(self.files.read(index), self.size), True
        except Exception:  # as above
            return np.zeros((self.size, self.size, 3), np.uint8), False


def collate_centres(samples: list[tuple[np.ndarray, bool]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (N, size, size, 3) uint8, and whether each could be read (N,) bool."""
    images = torch.from_numpy(np.stack([image for image, _ in samples]))
    return images, torch.tensor([good for _, good in samples])
