"""COCO 2017: photographs of 80 classes with boxes, masks and human keypoints, in ROOT/coco.

COCO does not publish checksums; the md5 sums are those that several public projects use for these files.
"""

import argparse
from functools import partial
from pathlib import Path

from transfer.data import on_disk
from transfer.prepare.sets.archives import Archive, install

ARCHIVES = {
    "annotations": Archive(
        on_disk.COCO_ARCHIVE["annotations"], 252_907_541, "f4bbac642086de4f52a3fdda2de5fa2c"
    ),
    "val2017": Archive(on_disk.COCO_ARCHIVE["val2017"], 815_585_330, "442b8da7639aecaf257c1dceb8ba8c80"),
    "train2017": Archive(
        on_disk.COCO_ARCHIVE["train2017"], 19_336_861_798, "cced6f7f71b7629ddf16f17bbcfab6b2"
    ),
}


def build(root: Path, args: argparse.Namespace) -> None:
    """Download and unpack what is missing."""
    for part, archive in ARCHIVES.items():
        check_part = (
            partial(on_disk.check_coco_annotations, root)
            if part == "annotations"
            else partial(on_disk.check_coco_images, root, part)
        )
        install(archive, root / "coco", args, check=check_part)
    print(check(root, args))


def check(root: Path, args: argparse.Namespace) -> str:
    """Check that every image named in the annotations is there. Return a summary."""
    return f"{on_disk.check_coco(root, thorough=True)}\n{on_disk.check_keypoints(root, thorough=True)}"
