"""Imagenette: ten easy classes of ImageNet, in three sizes. md5 sums: torchvision's `datasets.Imagenette`."""

import argparse
from functools import partial
from pathlib import Path

from pretrain.common.errors import UserError
from transfer.data.on_disk import names_in, prepare_command
from transfer.prepare.sets.archives import Archive, install

URL = "https://s3.amazonaws.com/fast-ai-imageclas"
ARCHIVES = {
    "full": Archive(f"{URL}/imagenette2.tgz", md5="fe2fc210e6bb7c5664d602c3cd71e612"),
    "320": Archive(f"{URL}/imagenette2-320.tgz", md5="3df6f0d01a2c9592104656642f5e78a3"),
    "160": Archive(f"{URL}/imagenette2-160.tgz", md5="e793b78cc4c9e9a4ccc0c1155377a412"),
}
IMAGES = {"train": 9_469, "val": 3_925}
CLASSES = (
    "n01440764", "n02102040", "n02979186", "n03000684", "n03028079",
    "n03394916", "n03417042", "n03425413", "n03445777", "n03888257",
)  # fmt: skip


def build(root: Path, args: argparse.Namespace) -> None:
    """Download the size `args.size` and unpack it into ROOT/imagenette2[-320|-160]/{train,val}/CLASS/*.JPEG."""
    install(ARCHIVES[args.size], root, args, check=partial(check_imagenette, root, args.size))
    print(check(root, args))


def check(root: Path, args: argparse.Namespace) -> str:
    """Count the images of size `args.size` and look for empty files. Return a one-line summary."""
    summary = check_imagenette(root, args.size)
    for file in sorted(_folder(root, args.size).glob("*/*/*.JPEG")):
        if not file.stat().st_size:
            raise UserError(f"{file} is empty: remove it, then {_again(root, args.size)}")
    return summary


def check_imagenette(root: Path, size: str) -> str:
    """Raise `UserError` unless all class folders and images are there. Return a one-line summary."""
    folder = _folder(root, size)
    for split, count in IMAGES.items():
        found = 0
        for name in CLASSES:
            if not (folder / split / name).is_dir():
                raise UserError(
                    f"{folder / split / name} is missing: it comes from {ARCHIVES[size].url}: {_again(root, size)}"
                )
            found += sum(image.endswith(".JPEG") for image in names_in(folder / split / name))
        if found != count:
            raise UserError(
                f"{folder / split} holds {found} images, not {count}; they come from {ARCHIVES[size].url}: "
                f"{_again(root, size)}"
            )
    return f"{folder} is complete: {IMAGES['train']} train and {IMAGES['val']} val images of {len(CLASSES)} classes"


def _folder(root: Path, size: str) -> Path:
    return root / ARCHIVES[size].name.removesuffix(".tgz")


def _again(root: Path, size: str) -> str:
    return prepare_command(f"imagenette --size {size}", root)
