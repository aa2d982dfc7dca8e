"""PASCAL VOC 2007 (trainval and test) and 2012 (trainval): ROOT/VOC2007 and ROOT/VOC2012.

The archives unpack to ROOT/VOCdevkit, but detectron2 looks in ROOT, so links in ROOT lead there. The md5 sums are
those of torchvision's `VOCDetection`.
"""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path

from pretrain.common.errors import UserError
from transfer.data import on_disk
from transfer.prepare.sets.archives import Archive, install

KNOWN = {  # bytes, md5
    ("2007", "trainval"): (460_032_000, "c52e279531787c972589f7e41ab4ae64"),
    ("2007", "test"): (451_020_800, "b6e924de25625d8de591ea690078ad9f"),
    ("2012", "trainval"): (1_999_639_040, "6cd6e144f989b92b3379bac3b3de84fd"),
}
ARCHIVES = {key: Archive(on_disk.VOC_ARCHIVE[key], *known) for key, known in KNOWN.items()}


def build(root: Path, args: argparse.Namespace) -> None:
    """Download, unpack and link what is missing."""
    for year, split in ARCHIVES:
        install_split(root, year, split, args, check=partial(on_disk.check_voc_split, root, year, split))
    print(check(root, args))


def check(root: Path, args: argparse.Namespace) -> str:
    """Check that every image and XML file named in the lists is there. Return a summary."""
    return on_disk.check_voc(root)


def install_split(
    root: Path, year: str, split: str, args: argparse.Namespace, *, check: Callable[[], object]
) -> None:
    """Install the content of one archive as ROOT/VOC<year>, unless `check()` already passes.

    Raises:
        UserError: a download failed, or ROOT/VOC<year> is not our link but the user's own folder and is incomplete.
    """
    folder, unpacked = root / f"VOC{year}", root / "VOCdevkit" / f"VOC{year}"

    def linked() -> None:
        if unpacked.is_dir() and not folder.exists() and not folder.is_symlink():
            _link(folder, unpacked)
        check()

    if folder.exists() and not (unpacked.exists() and folder.samefile(unpacked)):
        try:
            check()
        except UserError as error:
            raise UserError(f"{error}, after moving {folder} away, which this tool did not make") from None
    install(ARCHIVES[year, split], root, args, check=linked)


def _link(folder: Path, unpacked: Path) -> None:
    try:
        folder.symlink_to(unpacked.relative_to(folder.parent), target_is_directory=True)
    except OSError as error:
        raise UserError(
            f"{folder} cannot be created as a link to {unpacked} ({error}): move {unpacked} to {folder} instead"
        ) from None
