"""ImageNet-1k (ILSVRC 2012) as class folders, from the three archives that need an account on image-net.org.

The md5 sums are those of torchvision's `datasets.ImageNet`. That class unpacks the archives too, but temporarily needs
twice the space of the training images and cannot resume after an interruption.
"""

import argparse
import io
import os
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import IO

from pretrain.common.errors import UserError, brief, label
from pretrain.common.files import write_bytes
from pretrain.data.tar_index import content, members
from transfer.data.on_disk import names_in, prepare_command
from transfer.prepare.sets.archives import Archive, given
from transfer.prepare.sets.download import BROKEN, demand_space

CLASS_TAR = re.compile(r"(n\d{8})\.tar")
TRAIN_IMAGE = re.compile(r"n\d{8}_\d+\.JPEG")
VAL_IMAGE = re.compile(r"ILSVRC2012_val_(\d{8})\.JPEG")
SHOWN = 50  # classes between two lines of progress

IMAGES = {"train": 1_281_167, "val": 50_000}
CLASSES = 1_000
# Without an md5 sum: reading all of the file takes too long.
TRAIN = Archive("ILSVRC2012_img_train.tar", size=147_897_477_120)
VAL = Archive("ILSVRC2012_img_val.tar", size=6_744_924_160, md5="29b22e2961454d5413ddabcf34fc5622")
DEVKIT = Archive("ILSVRC2012_devkit_t12.tar.gz", md5="fa75699e90414af021442c21a62c3abf")
SOURCE = {"train": (TRAIN,), "val": (VAL, DEVKIT)}
HOW = "download from https://image-net.org/download.php (ILSVRC 2012) into it"
META, TRUTH = (
    f"ILSVRC2012_devkit_t12/data/{name}" for name in ("meta.mat", "ILSVRC2012_validation_ground_truth.txt")
)
MOST = 1 << 26  # bytes of either; meta.mat has about 1 MB
WNID = re.compile(r"n\d{8}")


def build(root: Path, args: argparse.Namespace) -> None:
    """Unpack the missing splits to ROOT/imagenet/{train,val}/nXXXXXXXX/*.JPEG.

    Raises:
        UserError: an archive is missing or wrong; the message says where to put which file.
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
    """Count classes and images, and look for empty files. Return a one-line summary."""
    summary = check_imagenet(root)
    for split in IMAGES:
        for name in sorted(names_in(root / "imagenet" / split)):
            with os.scandir(root / "imagenet" / split / name) as entries:
                for entry in entries:
                    if entry.name.endswith(".JPEG") and not entry.stat().st_size:
                        raise UserError(
                            f"{entry.path} is empty: remove its folder, then {prepare_command('imagenet', root)}"
                        )
    return summary


def check_imagenet(root: Path) -> str:
    """Raise `UserError` unless the names and counts of class folders and images are right. Return a summary."""
    for split in IMAGES:
        _check_split(root / "imagenet", split)
    return (
        f"{root / 'imagenet'} is complete: "
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
    if len(other) == CLASSES and other - classes:  # the other split shows which one
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
            f"{least}): remove incomplete class folders; {where}"
        )


def _is_complete(folder: Path, split: str) -> bool:
    try:
        _check_split(folder, split)
    except UserError:
        return False
    return True


def unpack_train(archive: Path, folder: Path) -> None:
    """Write FOLDER/nXXXXXXXX/*.JPEG from a tar of class tars, reading directly from the outer one.

    Existing images of the right size are kept. An image is never left incomplete.
    """
    _demand_space(archive, folder)
    try:
        with archive.open("rb") as file:
            for number, (outer, member) in enumerate(members(file), 1):
                match, inner = CLASS_TAR.fullmatch(member.name), content(outer, member)
                if not match or inner is None:
                    raise UserError(
                        f"{archive}: {brief(member.name)} is not an ImageNet class: download the archive again"
                    )
                _write_images(archive, inner, partial(_train_place, folder / match[1]))
                if number % SHOWN == 0:
                    print(f"{archive.name}: {number} classes", flush=True)
    except BROKEN as error:
        raise UserError(
            f"{archive} is not a complete archive ({label(str(error))}): download it again"
        ) from None
    except OSError as error:
        raise UserError(f"{archive} cannot be unpacked into {folder}: {label(str(error))}") from None


def unpack_val(archive: Path, devkit: Path, folder: Path) -> None:
    """Write FOLDER/nXXXXXXXX/*.JPEG from a flat tar; the devkit lists the class of each image."""
    classes = val_classes(devkit)
    _demand_space(archive, folder)

    def place(name: str) -> Path | None:
        match = VAL_IMAGE.fullmatch(name)
        number = int(match[1]) if match else 0
        return folder / classes[number - 1] / name if 0 < number <= len(classes) else None

    try:
        with archive.open("rb") as images:
            _write_images(archive, images, place)
    except BROKEN as error:
        raise UserError(
            f"{archive} is not a complete archive ({label(str(error))}): download it again"
        ) from None
    except OSError as error:
        raise UserError(f"{archive} cannot be unpacked into {folder}: {label(str(error))}") from None


def val_classes(devkit: Path) -> list[str]:
    """Return the WordNet id of each validation image, in the order of their numbers, from the devkit's tar.gz.

    `meta.mat` numbers the synsets; those without children are the classes.
    """
    try:
        from scipy.io import loadmat
    except ImportError:
        raise UserError("reading ImageNet's devkit needs 'pip install scipy'") from None
    found: dict[str, bytes] = {}
    try:
        with devkit.open("rb") as file:
            for tar, member in members(file, packed=True):
                if member.name in (META, TRUTH) and (part := content(tar, member)):
                    found[member.name] = part.read(MOST)
        synsets = loadmat(io.BytesIO(found[META]), squeeze_me=True)["synsets"]
        truth = [int(line) for line in found[TRUTH].split()]
        wnids = {int(s["ILSVRC2012_ID"]): str(s["WNID"]) for s in synsets if s["num_children"] == 0}
        return [wnids[number] for number in truth]
    except (*BROKEN, OSError, KeyError, ValueError) as error:
        raise UserError(
            f"{devkit} is not a complete ImageNet devkit ({label(repr(error))}): download it again"
        ) from None


def _demand_space(archive: Path, folder: Path) -> None:
    if not folder.exists():  # otherwise part of it exists, and counting that takes too long
        demand_space(folder, archive.stat().st_size, f"unpacking {archive.name}")


def _train_place(folder: Path, name: str) -> Path | None:
    return folder / name if TRAIN_IMAGE.fullmatch(name) else None


def _write_images(archive: Path, file: IO[bytes], place: Callable[[str], Path | None]) -> None:
    """Write each image of a tar to `place(name)`, which is None for a wrong name.

    `file` is `archive` or inside it. Existing images of the right size are kept.
    """
    for tar, member in members(file):
        image, target = content(tar, member), place(member.name)
        if image is None or target is None:
            raise UserError(
                f"{archive}: {brief(member.name)} is not an ImageNet image: download the archive again"
            )
        if target.is_file() and target.stat().st_size == member.size:
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(target, image.read())
