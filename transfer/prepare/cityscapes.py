"""Cityscapes' finely annotated images: unpacked, with the label images of the 19 training classes.

The archives need an account (https://www.cityscapes-dataset.com). The label images `*_labelTrainIds.png` are not
in them; the authors' `cityscapesscripts` draws them from the polygons.
"""

import argparse
import os
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from pretrain.common.errors import UserError
from pretrain.common.files import is_whole_png
from pretrain.common.pool import Progress, each
from transfer.prepare.archives import Archive
from transfer.prepare.by_hand import command, folder_for, given, names_in
from transfer.prepare.download import unpack

IMAGES = {"train": 2_975, "val": 500}
ARCHIVES = {  # by the folder that each holds; 11 GB and 241 MB
    "leftImg8bit": Archive("leftImg8bit_trainvaltest.zip"),
    "gtFine": Archive("gtFine_trainvaltest.zip"),
}
ENDINGS = {  # of the files of one frame, in the archives
    "leftImg8bit": ("_leftImg8bit.png",),
    "gtFine": ("_gtFine_polygons.json", "_gtFine_instanceIds.png", "_gtFine_labelIds.png"),
}
TRAIN_IDS = "_gtFine_labelTrainIds.png"  # drawn here


def build(root: Path, args: argparse.Namespace) -> None:
    """Unpack the two archives into ROOT/cityscapes and draw the label images that are missing.

    Raises:
        UserError: which archive to put where, or what is wrong with it.
    """
    folder = root / "cityscapes"
    absent = [ARCHIVES[kind] for kind in ARCHIVES if not _is_complete(folder, kind)]
    names = " ".join(archive.name for archive in absent)
    how = (
        f"download with 'csDownload -d {folder_for(root, args)} {names}' of the package cityscapesscripts (11 GB of "
        "images, 241 MB of annotations)"
    )
    for path in given(absent, root, args, how=how):
        print(f"unpacking {path} into {folder}", flush=True)
        unpack(path, folder)
    for temporary in folder.glob("*/*/*/.*.tmp*"):  # of a run that was killed
        temporary.unlink()
    check_cityscapes(root, semantic=False)
    stems = [folder / "gtFine" / split / city / stem for split, city, stem in _frames(folder)]
    _draw_all([stem for stem in stems if not is_whole_png(_with_ending(stem, TRAIN_IDS))], args.workers)
    print(check(root, args))


def check(root: Path, args: argparse.Namespace) -> str:
    """Names and counts, and whether each image is whole and as large as its annotations."""
    said = check_cityscapes(root)
    folder, again = root / "cityscapes", command("cityscapes", root)
    for split, city, stem in _frames(folder):
        files = [folder / "leftImg8bit" / split / city / f"{stem}{ENDINGS['leftImg8bit'][0]}"]
        for ending in (*ENDINGS["gtFine"][1:], TRAIN_IDS):
            files.append(folder / "gtFine" / split / city / f"{stem}{ending}")
        sizes = {}
        for file in files:
            if not is_whole_png(file):
                raise UserError(f"{file} is no whole PNG: remove it, then {again}")
            with Image.open(file) as image:
                sizes[image.size] = file
        if len(sizes) > 1:
            (first, file), (second, other), *_ = sizes.items()
            raise UserError(
                f"{other} is {second[0]}x{second[1]}, but {file} {first[0]}x{first[1]}: remove both, then {again}"
            )
    return said


def check_cityscapes(root: Path, *, semantic: bool = True) -> str:
    """The files of `cityscapes_fine_{instance_seg,sem_seg}_{train,val}`: names and counts only.

    Args:
        semantic: whether the label images that semantic segmentation is trained on are needed too.
    """
    folder = root / "cityscapes"
    for kind, endings in ENDINGS.items():
        _check_files(folder, kind, endings, ARCHIVES[kind].name)
    if semantic:
        _check_files(folder, "gtFine", (TRAIN_IDS,), "cityscapesscripts, which draws it from the polygons")
    _check_strays(folder / "leftImg8bit")
    return f"{folder} is in place: " + " and ".join(
        f"{count} {split} images" for split, count in IMAGES.items()
    )


def _check_files(folder: Path, kind: str, endings: tuple[str, ...], where: str) -> None:
    """Every frame of which anything is there has its files in ROOT/cityscapes/KIND, and all frames are there."""
    again = command("cityscapes", folder.parent)
    present: dict[Path, set[str]] = {}
    found = dict.fromkeys(IMAGES, 0)
    for split, city, stem in _frames(folder):
        place = folder / kind / split / city
        if place not in present:
            present[place] = names_in(place)
        found[split] += 1
        for ending in endings:
            if stem + ending not in present[place]:
                raise UserError(f"{place / (stem + ending)} is missing: it comes from {where}: {again}")
    for split, count in IMAGES.items():
        if found[split] != count:
            raise UserError(
                f"{folder / kind / split} holds {found[split]} of {count} images; they come from {where}: {again}"
            )


def _check_strays(photos: Path) -> None:
    """detectron2 takes everything in there for a city or an image of one, and stops at anything else."""
    for split in IMAGES:
        for city in sorted(names_in(photos / split)):
            if not (photos / split / city).is_dir():
                raise UserError(f"{photos / split / city} is no part of Cityscapes: remove it")
            for name in sorted(names_in(photos / split / city)):
                if not name.endswith(ENDINGS["leftImg8bit"]):
                    raise UserError(f"{photos / split / city / name} is no part of Cityscapes: remove it")


def _frames(folder: Path) -> Iterator[tuple[str, str, str]]:
    """(split, city, stem of the file names) of each frame that has a photo or polygons."""
    for split in IMAGES:
        photos, labels = (folder / kind / split for kind in ENDINGS)
        for city in sorted(names_in(photos) | names_in(labels)):
            stems = {
                name.removesuffix(ending)
                for place, ending in ((photos, "_leftImg8bit.png"), (labels, "_gtFine_polygons.json"))
                for name in names_in(place / city)
                if name.endswith(ending)
            }
            for stem in sorted(stems):
                yield split, city, stem


def _is_complete(folder: Path, kind: str) -> bool:
    try:
        _check_files(folder, kind, ENDINGS[kind], "")
    except UserError:
        return False
    return True


def _draw_all(stems: list[Path], workers: int) -> None:
    """Draw the label images of the frames that `stems` begin the names of."""
    if not stems:
        return
    try:
        import cityscapesscripts.preparation.json2labelImg  # noqa: F401 (so that its absence is said here)
    except ImportError:
        raise UserError("drawing Cityscapes' label images needs 'pip install cityscapesscripts'") from None
    print(f"drawing {len(stems)} label images with {workers} processes", flush=True)
    with Progress(len(stems)) as progress:
        for _ in each(_draw, stems, workers=workers, chunk=8):
            progress.advance()


def _draw(stem: Path) -> None:
    """Write one label image, whole or not at all."""
    from cityscapesscripts.preparation.json2labelImg import json2labelImg

    polygons = _with_ending(stem, ENDINGS["gtFine"][0])
    temporary = stem.with_name(f".{stem.name}.{os.getpid()}.tmp.png")
    try:
        json2labelImg(str(polygons), str(temporary), "trainIds")
        temporary.replace(_with_ending(stem, TRAIN_IDS))
    except (SystemExit, ValueError, KeyError) as error:  # it exits at a label that it does not know
        raise UserError(
            f"{polygons} cannot be drawn ({error!r}): it comes from {ARCHIVES['gtFine'].name}"
        ) from None
    finally:
        temporary.unlink(missing_ok=True)


def _with_ending(stem: Path, ending: str) -> Path:
    return stem.with_name(stem.name + ending)
