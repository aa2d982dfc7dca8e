"""ImageNet-1k (ILSVRC 2012) as class folders, from the three archives that need an account on image-net.org.

md5 sums: torchvision's `datasets.ImageNet`. It unpacks the archives too, but takes up twice the space of the
training images on the way, and does not go on after an interruption.
"""

import argparse
import os
import re
from pathlib import Path

from pretrain.common.errors import UserError
from transfer.data.on_disk import names_in, prepare_command
from transfer.prepare.archives import Archive
from transfer.prepare.by_hand import given
from transfer.prepare.imagenet_archives import unpack_train, unpack_val

IMAGES = {"train": 1_281_167, "val": 50_000}
CLASSES = 1_000
TRAIN = Archive(
    "ILSVRC2012_img_train.tar", size=147_897_477_120
)  # reading all of it for its md5 takes too long
VAL = Archive("ILSVRC2012_img_val.tar", size=6_744_924_160, md5="29b22e2961454d5413ddabcf34fc5622")
DEVKIT = Archive("ILSVRC2012_devkit_t12.tar.gz", md5="fa75699e90414af021442c21a62c3abf")
SOURCE = {"train": (TRAIN,), "val": (VAL, DEVKIT)}
HOW = "download from https://image-net.org/download.php (ILSVRC 2012) into it"
WNID = re.compile(r"n\d{8}")


def build(root: Path, args: argparse.Namespace) -> None:
    """Unpack to ROOT/imagenet/{train,val}/nXXXXXXXX/*.JPEG what is not there yet.

    Raises:
        UserError: which archive to put where, or what is wrong with it.
    """
    folder = root / "imagenet"
    absent = [split for split in IMAGES if not _is_complete(folder, split)]
    archives = [archive for split in absent for archive in SOURCE[split]]
    paths = dict(zip(archives, given(archives, root, args, how=HOW), strict=True))
    if "val" in absent:
        unpack_val(paths[VAL], paths[DEVKIT], folder / "val")
    if "train" in absent:
        unpack_train(paths[TRAIN], folder / "train")
    print(check(root, args))


def check(root: Path, args: argparse.Namespace) -> str:
    """Count classes and images, and find files that are empty."""
    said = check_imagenet(root)
    for split in IMAGES:
        for name in sorted(names_in(root / "imagenet" / split)):
            with os.scandir(root / "imagenet" / split / name) as entries:
                for entry in entries:
                    if entry.name.endswith(".JPEG") and not entry.stat().st_size:
                        raise UserError(
                            f"{entry.path} is empty: remove its folder, then {prepare_command('imagenet', root)}"
                        )
    return said


def check_imagenet(root: Path) -> str:
    """Whether all class folders and images are there: names and counts only."""
    for split in IMAGES:
        _check_split(root / "imagenet", split)
    return (
        f"{root / 'imagenet'} is whole: "
        + " and ".join(f"{n} {split}" for split, n in IMAGES.items())
        + " images"
    )


def _check_split(folder: Path, split: str) -> None:
    archives = " and ".join(archive.name for archive in SOURCE[split])
    where = f"it comes from {archives}: {prepare_command('imagenet', folder.parent)}"
    classes = {name for name in names_in(folder / split) if WNID.fullmatch(name)}
    other = {
        name for name in names_in(folder / ("val" if split == "train" else "train")) if WNID.fullmatch(name)
    }
    if len(other) == CLASSES and other - classes:  # the other split can say which one
        raise UserError(f"{folder / split / min(other - classes)} is missing: {where}")
    if len(classes) != CLASSES:
        raise UserError(f"{folder / split} holds {len(classes)} of {CLASSES} class folders: {where}")
    counts = {
        name: sum(image.endswith(".JPEG") for image in names_in(folder / split / name)) for name in classes
    }
    if sum(counts.values()) != IMAGES[split]:
        least = min(sorted(counts), key=lambda name: counts[name])
        raise UserError(
            f"{folder / split} holds {sum(counts.values())} images, not {IMAGES[split]} (fewest, {counts[least]}, in "
            f"{least}): remove what is not whole; {where}"
        )


def _is_complete(folder: Path, split: str) -> bool:
    try:
        _check_split(folder, split)
    except UserError:
        return False
    return True
