"""Images of a folder with one subfolder per class, as in ImageNet, and images whose classes do not matter."""

import hashlib
import os

import numpy as np
import torch
from torch.utils.data import Dataset

from pretrain.common.errors import UserError
from pretrain.data.decode import centre_view
from pretrain.data.folders import ALL, Endings, ImageFiles, find_images


class LabelledImages:
    """All images of a folder of class folders.

    Attributes:
        name: key and folder, for messages.
        files: the images, sorted by path.
        classes: names of the class folders, sorted.
        labels: (N,) int64, class numbers.
        digest: SHA-256 of the paths inside the folder and the file sizes.
        changed: a 52-bit number made from the files' modification times; it differs for a copy of the folder.
    """

    def __init__(self, folder: str, *, key: str) -> None:
        self.name, self.folder = f"{key} {folder}", folder
        self.files, names = _files_and_classes(folder, key=key)
        start, digest, times = len(os.path.join(folder, "")), hashlib.sha256(), hashlib.sha256()
        for path in self.files:
            size, changed = _size_and_time(path)
            digest.update(os.fsencode(f"{path[start:]}\0{size}\n"))
            times.update(b"%d\n" % changed)
        self.classes = sorted(set(names))
        number = {name: n for n, name in enumerate(self.classes)}
        self.labels = np.array([number[name] for name in names], np.int64)
        self.digest, self.changed = digest.hexdigest(), int(times.hexdigest()[:13], 16)

    def __len__(self) -> int:
        return len(self.files)


class SpreadImages:
    """At most `limit` evenly spaced images of a folder of class folders, plus one of each class these miss.

    Attributes:
        name: key and folder, for messages.
        files: the chosen images, sorted by path.
        labels: the class name of each.
    """

    def __init__(self, folder: str, *, key: str, limit: int, endings: Endings = ALL) -> None:
        self.name = f"{key} {folder}"
        files, names = _files_and_classes(folder, key=key, endings=endings)
        first: dict[str, int] = {}
        for index, name in enumerate(names):
            first.setdefault(name, index)
        chosen = set(np.linspace(0, len(files) - 1, min(limit, len(files))).round().astype(int).tolist())
        seen = {names[index] for index in chosen}
        chosen |= {index for name, index in first.items() if name not in seen}
        self.files = ImageFiles([files[index] for index in sorted(chosen)])
        self.labels = [names[index] for index in sorted(chosen)]


class SomeImages:
    """At most `limit` evenly spaced images below a folder, whatever its subfolders mean.

    Attributes:
        name: key and folder, for messages.
        files: the chosen images, sorted by path.
    """

    def __init__(self, folder: str, *, key: str, limit: int) -> None:
        self.name = f"{key} {folder}"
        files = find_images([folder], key=key, endings=ALL)
        chosen = np.linspace(0, len(files) - 1, min(limit, len(files))).round().astype(int).tolist()
        self.files = ImageFiles([files[index] for index in chosen])


class CentreCrops(Dataset[tuple[np.ndarray, bool]]):
    """Map an index to the central view of that image and True, or to black pixels and False if it cannot be read."""

    def __init__(self, files: ImageFiles, *, size: int) -> None:
        self.files, self.size = files, size

    def __getitem__(self, index: int) -> tuple[np.ndarray, bool]:
        try:
            return centre_view(self.files.read(index), self.size), True
        except Exception:  # Pillow raises many different classes on damaged files
            return np.zeros((self.size, self.size, 3), np.uint8), False


def collate_centres(samples: list[tuple[np.ndarray, bool]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return images (N, size, size, 3) uint8, and whether each could be read (N,) bool."""
    images = torch.from_numpy(np.stack([image for image, _ in samples]))
    return images, torch.tensor([good for _, good in samples])


def _files_and_classes(folder: str, *, key: str, endings: Endings = ALL) -> tuple[ImageFiles, list[str]]:
    """Return the images below a folder and the class of each. Raises UserError for an image outside the classes."""
    files = find_images([folder], key=key, endings=endings)
    start = len(os.path.join(folder, ""))
    names = []
    for path in files:
        name, *inside = path[start:].split(os.sep, 1)
        if not inside:
            raise UserError(
                f"{key} {folder}: {name} is not in a class folder: put every image into a folder named after its class"
            )
        names.append(name)
    return files, names


def _size_and_time(path: str) -> tuple[int, int]:
    """Return bytes and nanoseconds; -1 for a dangling link, which counts as an unreadable image later."""
    try:
        found = os.stat(path)
    except OSError:
        return -1, -1
    return found.st_size, found.st_mtime_ns
