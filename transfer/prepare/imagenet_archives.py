"""Unpacks ImageNet's archives: tars in a tar for training, one flat tar and a list of classes for validation."""

import re
import tarfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from pretrain.common.errors import UserError
from pretrain.common.files import write_bytes
from transfer.prepare.download import BROKEN, demand_space

CLASS_TAR = re.compile(r"(n\d{8})\.tar")
TRAIN_IMAGE = re.compile(r"n\d{8}_\d+\.JPEG")
VAL_IMAGE = re.compile(r"ILSVRC2012_val_(\d{8})\.JPEG")
SHOWN = 50  # classes, between two lines of progress


def unpack_train(archive: Path, folder: Path) -> None:
    """Write FOLDER/nXXXXXXXX/*.JPEG from a tar of class tars, reading straight from the outer one.

    Images that are there already, with their size, are kept; each is whole or absent.
    """
    _demand_space(archive, folder)
    try:
        with tarfile.open(archive, "r:") as outer:
            for number, member in enumerate(outer, 1):
                match, content = CLASS_TAR.fullmatch(member.name), outer.extractfile(member)
                if not match or content is None:
                    raise UserError(f"{archive}: {member.name!r} is no class of ImageNet")
                with tarfile.open(fileobj=content, mode="r:") as inner:
                    _write_images(archive, inner, partial(_train_place, folder / match[1]))
                if number % SHOWN == 0:
                    print(f"{archive.name}: {number} classes", flush=True)
    except BROKEN as error:
        raise UserError(f"{archive} is no whole archive ({error}): get it again") from None
    except OSError as error:
        raise UserError(f"{archive} cannot be unpacked into {folder}: {error}") from None


def unpack_val(archive: Path, devkit: Path, folder: Path) -> None:
    """Write FOLDER/nXXXXXXXX/*.JPEG from a flat tar; the devkit says which class each image is of."""
    classes = val_classes(devkit)
    _demand_space(archive, folder)

    def place(name: str) -> Path | None:
        match = VAL_IMAGE.fullmatch(name)
        number = int(match[1]) if match else 0
        return folder / classes[number - 1] / name if 0 < number <= len(classes) else None

    try:
        with tarfile.open(archive, "r:") as images:
            _write_images(archive, images, place)
    except BROKEN as error:
        raise UserError(f"{archive} is no whole archive ({error}): get it again") from None
    except OSError as error:
        raise UserError(f"{archive} cannot be unpacked into {folder}: {error}") from None


def val_classes(devkit: Path) -> list[str]:
    """The WordNet id of each validation image, in the order of their numbers, from ILSVRC2012_devkit_t12.tar.gz.

    `meta.mat` numbers the synsets; those without children are the classes that are told apart.
    """
    try:
        from scipy.io import loadmat
    except ImportError:
        raise UserError("reading ImageNet's devkit needs 'pip install scipy'") from None
    data = "ILSVRC2012_devkit_t12/data"
    try:
        with tarfile.open(devkit) as files:
            meta = files.extractfile(f"{data}/meta.mat")
            numbers = files.extractfile(f"{data}/ILSVRC2012_validation_ground_truth.txt")
            if meta is None or numbers is None:
                raise KeyError(data)
            synsets = loadmat(meta, squeeze_me=True)["synsets"]
            truth = [int(line) for line in numbers.read().split()]
        wnids = {int(s["ILSVRC2012_ID"]): str(s["WNID"]) for s in synsets if s["num_children"] == 0}
        return [wnids[number] for number in truth]
    except (*BROKEN, OSError, KeyError, ValueError) as error:
        raise UserError(f"{devkit} is no whole ImageNet devkit ({error!r}): get it again") from None


def _demand_space(archive: Path, folder: Path) -> None:
    if not folder.exists():  # else a part of it is there, and counting that takes long
        demand_space(folder, archive.stat().st_size, f"unpacking {archive.name}")


def _train_place(folder: Path, name: str) -> Path | None:
    return folder / name if TRAIN_IMAGE.fullmatch(name) else None


def _write_images(archive: Path, tar: tarfile.TarFile, place: Callable[[str], Path | None]) -> None:
    """Write each image of `tar`, which is `archive` or inside it, to `place(name)`; None refuses the name.

    Those that are there with their size are kept.
    """
    for member in tar:
        content, target = tar.extractfile(member), place(member.name)
        if content is None or target is None:
            raise UserError(f"{archive}: {member.name!r} is no image of ImageNet")
        if target.is_file() and target.stat().st_size == member.size:
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(target, content.read())
