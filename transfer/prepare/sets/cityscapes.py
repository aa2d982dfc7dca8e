"""The finely annotated images of Cityscapes, with label images of the 19 training classes.

Downloading needs an account (https://www.cityscapes-dataset.com). The archives do not contain the label images
`*_labelTrainIds.png`; the authors' package `cityscapesscripts` draws them from the polygons.
"""

import argparse
import os
from pathlib import Path

from pretrain.common.errors import UserError, label
from pretrain.common.files import is_whole_png
from pretrain.common.pool import Progress, each
from pretrain.data.decode import image_at
from transfer.data.on_disk import (
    CITYSCAPES_ARCHIVES,
    CITYSCAPES_ENDINGS,
    CITYSCAPES_TRAIN_IDS,
    check_cityscapes,
    check_cityscapes_files,
    cityscapes_frames,
    prepare_command,
)
from transfer.prepare.sets.archives import Archive, folder_for, given
from transfer.prepare.sets.download import unpack

ARCHIVES = {kind: Archive(name) for kind, name in CITYSCAPES_ARCHIVES.items()}


def build(root: Path, args: argparse.Namespace) -> None:
    """Unpack the two archives into ROOT/cityscapes and draw the label images that are missing.

    Raises:
        UserError: an archive is missing or wrong; the message says where to put which file.
    """
    folder = root / "cityscapes"
    absent = [ARCHIVES[kind] for kind in ARCHIVES if not _is_complete(folder, kind)]
    names = " ".join(archive.name for archive in absent)
    how = (
        f"download with 'csDownload -d {folder_for(root, args)} {names}' from the package cityscapesscripts (11 GB of "
        "images, 241 MB of annotations)"
    )
    for path in given(absent, root, args, how=how):
        print(f"unpacking {path} into {folder}", flush=True)
        unpack(path, folder)
    for temporary in folder.glob("*/*/*/.*.tmp*"):  # left by a run that was killed
        temporary.unlink()
    check_cityscapes(root, semantic=False)
    stems = [folder / "gtFine" / split / city / stem for split, city, stem in cityscapes_frames(folder)]
    _draw_all(
        [stem for stem in stems if not is_whole_png(_with_ending(stem, CITYSCAPES_TRAIN_IDS))], args.workers
    )
    print(check(root, args))


def check(root: Path, args: argparse.Namespace) -> str:
    """Check names and counts, and that each image is complete and as large as its annotations. Return a summary."""
    summary = check_cityscapes(root)
    folder, again = root / "cityscapes", prepare_command("cityscapes", root)
    for split, city, stem in cityscapes_frames(folder):
        files = [folder / "leftImg8bit" / split / city / f"{stem}{CITYSCAPES_ENDINGS['leftImg8bit'][0]}"]
        for ending in (*CITYSCAPES_ENDINGS["gtFine"][1:], CITYSCAPES_TRAIN_IDS):
            files.append(folder / "gtFine" / split / city / f"{stem}{ending}")
        sizes = {}
        for file in files:
            if not is_whole_png(file):
                raise UserError(f"{file} is not a complete PNG: remove it, then {again}")
            try:
                with image_at(file) as image:
                    sizes[image.size] = file
            except ValueError as error:
                raise UserError(f"{file}: {error}: remove it, then {again}") from None
        if len(sizes) > 1:
            (first, file), (second, other), *_ = sizes.items()
            raise UserError(
                f"{other} is {second[0]}x{second[1]}, but {file} is {first[0]}x{first[1]}: remove both, then {again}"
            )
    return summary


def _is_complete(folder: Path, kind: str) -> bool:
    try:
        check_cityscapes_files(folder, kind, CITYSCAPES_ENDINGS[kind], "")
    except UserError:
        return False
    return True


def _draw_all(stems: list[Path], workers: int) -> None:
    """Draw the label images of the frames whose file names begin with `stems`."""
    if not stems:
        return
    try:
        import cityscapesscripts.preparation.json2labelImg  # noqa: F401 (to report here if it is missing)
    except ImportError:
        raise UserError("drawing Cityscapes' label images needs 'pip install cityscapesscripts'") from None
    print(f"drawing {len(stems)} label images with {workers} processes", flush=True)
    with Progress(len(stems)) as progress:
        for _ in each(_draw, stems, workers=workers, chunk=8):
            progress.advance()


def _draw(stem: Path) -> None:
    """Write one label image, whole or not at all."""
    from cityscapesscripts.preparation.json2labelImg import json2labelImg

    polygons = _with_ending(stem, CITYSCAPES_ENDINGS["gtFine"][0])
    temporary = stem.with_name(f".{stem.name}.{os.getpid()}.tmp.png")
    try:
        json2labelImg(str(polygons), str(temporary), "trainIds")
        temporary.replace(_with_ending(stem, CITYSCAPES_TRAIN_IDS))
    except (SystemExit, ValueError, KeyError) as error:  # it exits if it does not know a label
        raise UserError(
            f"{polygons} cannot be drawn ({label(repr(error))}): unpack it again from {ARCHIVES['gtFine'].name}"
        ) from None
    finally:
        temporary.unlink(missing_ok=True)


def _with_ending(stem: Path, ending: str) -> Path:
    return stem.with_name(stem.name + ending)
