"""All public masks on the images of VOC 2012, from VOC itself and from SBD, as COCO files and as per-pixel labels.

ROOT/VOC2012/annotations_masks/instances_{train_aug,val}.json   for `voc_2012_masks_{train,val}`
ROOT/VOC2012/semseg/{train_aug,val}/NAME.png, {train_aug,val}.txt   for `voc_2012_semseg_{train,val}`

train_aug consists of VOC's segmentation train and all of SBD, without VOC's segmentation val (10 582 images); val is
VOC's (1 449). VOC draws a void band around its objects, SBD ("Semantic contours from inverse detectors", Hariharan et
al., ICCV 2011) does not. For instance masks in training, SBD is used if both have masks of an image, so that nearly all
follow one convention. For per-pixel labels, VOC's own are used if they exist, since training and evaluation leave its
void band out.
"""

import argparse
import io
import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as rle

from pretrain.common import pool
from pretrain.common.errors import UserError
from pretrain.common.files import write_bytes, write_json
from pretrain.data.decode import image_at
from transfer.data import on_disk, voc_boxes, voc_labels
from transfer.prepare.sets import voc
from transfer.prepare.sets.archives import Archive, install

SBD = Archive(
    "https://www2.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/semantic_contours/benchmark.tgz",
    1_419_539_633,
    "82b4d87ceb2ed10f6038a1cba92111cb",
)
IMAGES = {"train_aug": 10_582, "val": 1_449}
ABOUT = {
    "boxes": "of VOC's XML, minus 1, for the mask whose box overlaps it most (IoU >= 0.5, each box once); else the "
    f"mask's own, grown by {voc_labels.HALF_BAND} pixels for masks of VOC, whose void band hides the object's rim",
    "difficult": "objects that VOC calls difficult are iscrowd 1: training leaves them out, evaluation ignores them",
}


@dataclass(frozen=True)
class Split:
    """Where the images of a split come from and where their labels go."""

    name: str
    voc: Path  # ROOT/VOC2012
    sbd: Path | None  # folder with inst/ and cls/; None uses VOC's own masks only

    @property
    def unfinished(self) -> Path:
        """Folder where the label PNGs are collected; it is renamed when it is complete."""
        return self.voc / "semseg" / f".{self.name}.part"


def build(root: Path, args: argparse.Namespace) -> None:
    """Download and unpack both archives, then convert them. A finished set is left as it is.

    Raises:
        UserError: a file is missing or broken, or the number of images differs from the published one (which is not
            checked with `args.no_checksum`).
    """
    try:
        print(f"{check(root, args)} already")
        return
    except UserError:
        pass
    voc.install_split(root, "2012", "trainval", args, check=partial(on_disk.check_voc_segmentation, root))
    install(SBD, root / "SBD", args, check=partial(check_sbd, root), leave_out="/img/")
    folder, sbd = root / "VOC2012", _sbd(root)
    for split in (Split("train_aug", folder, sbd), Split("val", folder, None)):
        names = names_of(split.name, root)
        if len(names) != IMAGES[split.name] and not args.no_checksum:
            raise UserError(
                f"{split.name}: the archives' lists name {len(names)} images, not {IMAGES[split.name]}"
            )
        _convert_all(split, names, args.workers)
    print(check(root, args))


def check(root: Path, args: argparse.Namespace) -> str:
    """Check the converted files and their images. Return a summary."""
    return f"{on_disk.check_voc_masks(root)}\n{on_disk.check_voc_semseg(root)}"


def check_sbd(root: Path) -> None:
    """Raise `UserError` unless SBD's lists and the .mat files that they name are under ROOT/SBD."""
    where = f"{SBD.url}, unpacked in {root / 'SBD'}"
    for listing in ("train.txt", "val.txt"):
        if not (_sbd(root) / listing).is_file():
            raise UserError(f"{_sbd(root) / listing} is missing: it comes from {where}")
    names = _names(_sbd(root) / "train.txt") | _names(_sbd(root) / "val.txt")
    for part in ("inst", "cls"):
        present = {file.stem for file in (_sbd(root) / part).glob("*.mat")}
        if missing := sorted(names - present):
            raise UserError(f"{_sbd(root) / part / missing[0]}.mat is missing: it comes from {where}")


def names_of(split: str, root: Path) -> list[str]:
    """Return the names of a split's images, sorted, from the lists in the archives."""
    lists = root / "VOC2012" / "ImageSets" / "Segmentation"
    val = _names(lists / "val.txt")
    if split == "val":
        return sorted(val)
    sbd = _names(_sbd(root) / "train.txt") | _names(_sbd(root) / "val.txt")
    return sorted((_names(lists / "train.txt") | sbd) - val)


def convert(split: Split, name: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Write one image's label PNG. Return its COCO record and its annotations, both without ids."""
    own = {part: split.voc / part / f"{name}.png" for part in ("SegmentationClass", "SegmentationObject")}
    mat = split.sbd / "inst" / f"{name}.mat" if split.sbd else None
    if own["SegmentationClass"].is_file():
        label = voc_labels.read_palette(own["SegmentationClass"])
    else:
        assert mat  # images without masks of VOC are only in SBD's lists
        label = np.asarray(voc_labels.read_sbd(mat.parents[1] / "cls" / mat.name, "GTcls").Segmentation)
    if mat and mat.is_file():
        masks, grow = voc_labels.sbd_masks(voc_labels.read_sbd(mat, "GTinst")), 0
    else:
        objects = voc_labels.read_palette(own["SegmentationObject"])
        masks, grow = voc_labels.voc_masks(objects, label), voc_labels.HALF_BAND
    height, width = label.shape
    _check_size(split, name, (width, height), masks)
    _write_label(split.unfinished / f"{name}.png", label)
    boxes = voc_labels.match(
        masks, voc_boxes.read_boxes(split.voc / "Annotations" / f"{name}.xml"), grow=grow
    )
    annotations = [_annotation(mask, box) for mask, box in zip(masks, boxes, strict=True)]
    return {"file_name": f"{name}.jpg", "width": width, "height": height}, annotations


def _convert_all(split: Split, names: list[str], workers: int) -> None:
    print(f"converting the {len(names)} images of {split.name} with {workers} processes", flush=True)
    shutil.rmtree(split.unfinished, ignore_errors=True)  # left by an interrupted run
    split.unfinished.mkdir(parents=True)
    (split.voc / "annotations_masks").mkdir(exist_ok=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    with pool.Progress(len(names)) as progress:
        for image, found in pool.each(partial(convert, split), names, workers=workers, chunk=16):
            images.append(image | {"id": len(images) + 1})
            for annotation in found:
                annotations.append(annotation | {"id": len(annotations) + 1, "image_id": len(images)})
            progress.advance()
    content = {
        "info": {"description": f"VOC2012 {split.name}, masks of VOC and SBD", **ABOUT},
        "categories": [{"id": i, "name": name} for i, name in enumerate(voc_boxes.CLASSES, 1)],
        "images": images,
        "annotations": annotations,
    }
    write_json(
        split.voc / "annotations_masks" / f"instances_{split.name}.json", content, indent=None, sort_keys=True
    )
    finished = split.voc / "semseg" / split.name
    shutil.rmtree(finished, ignore_errors=True)
    split.unfinished.rename(finished)
    write_bytes(split.voc / "semseg" / f"{split.name}.txt", "".join(f"{name}\n" for name in names).encode())
    crowds = sum(annotation["iscrowd"] for annotation in annotations)
    print(
        f"{split.name}: {len(images)} images, {len(annotations)} masks, {crowds} of them difficult (iscrowd)"
    )
    if leaked := sum(name.startswith("2007_") for name in names):
        print(
            f"{leaked} of these images are VOC2007's, including its test set: never evaluate a model that was trained "
            "with VOC2012's masks on voc_2007_test"
        )


def _annotation(mask: voc_labels.Mask, box: voc_boxes.Box) -> dict[str, Any]:
    encoded = rle.encode(np.asfortranarray(mask.pixels, dtype=np.uint8))
    left, top, right, bottom = box.xyxy
    return {
        "category_id": mask.category,
        "iscrowd": int(box.difficult),
        "area": int(rle.area(encoded)),
        "bbox": [left, top, right - left, bottom - top],
        "segmentation": {"size": list(encoded["size"]), "counts": encoded["counts"].decode("ascii")},
    }


def _check_size(split: Split, name: str, size: tuple[int, int], masks: list[voc_labels.Mask]) -> None:
    file = split.voc / "JPEGImages" / f"{name}.jpg"
    try:
        with image_at(file) as image:
            found = image.size
    except ValueError as error:
        raise UserError(f"{file}: {error}: it comes from {voc.ARCHIVES['2012', 'trainval'].url}") from None
    if found != size or any(mask.pixels.shape != size[::-1] for mask in masks):
        raise UserError(f"{file} is {found[0]}x{found[1]}, but its masks are not: unpack the archives again")


def _write_label(file: Path, label: np.ndarray) -> None:
    """Write `label`, uint8 (H, W), as a PNG of mode L: 0 background, 1..20 VOC's classes, 255 void."""
    content = io.BytesIO()
    Image.fromarray(label.astype(np.uint8)).save(content, format="PNG")
    write_bytes(file, content.getvalue())


def _sbd(root: Path) -> Path:
    return root / "SBD" / "benchmark_RELEASE" / "dataset"


def _names(listing: Path) -> set[str]:
    return set(listing.read_text().split())
