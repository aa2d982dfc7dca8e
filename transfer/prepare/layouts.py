"""Whether a data set lies where detectron2 looks for it; if not, what is missing and where it comes from.

Cheap enough to run before every training: names and counts, no image is opened.
"""

import json
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from pretrain.errors import UserError
from transfer.prepare import demo

COCO_IMAGES = {"train2017": 118287, "val2017": 5000}
COCO_URL = "http://images.cocodataset.org"
VOC_URL = "https://thor.robots.ox.ac.uk/pascal/VOC"
VOC_ARCHIVE = {
    ("2007", "trainval"): f"{VOC_URL}/voc2007/VOCtrainval_06-Nov-2007.tar",
    ("2007", "test"): f"{VOC_URL}/voc2007/VOCtest_06-Nov-2007.tar",
    ("2012", "trainval"): f"{VOC_URL}/voc2012/VOCtrainval_11-May-2012.tar",
}
HOW_TO = {
    "coco": f"Unpack {COCO_URL}/zips/train2017.zip, {COCO_URL}/zips/val2017.zip and "
    f"{COCO_URL}/annotations/annotations_trainval2017.zip in ROOT/coco, then run it with --check",
    "voc": f"Unpack {', '.join(VOC_ARCHIVE.values())} in ROOT, link ROOT/VOC2007 -> VOCdevkit/VOC2007 and "
    "ROOT/VOC2012 -> VOCdevkit/VOC2012, then run it with --check",
    "voc_masks": "The conversion of VOC's and SBD's masks is to come; until then bring your own COCO files "
    "ROOT/VOC2012/annotations_masks/instances_train_aug.json and instances_val.json",
}


def check_coco(root: Path, *, thorough: bool = False) -> str:
    """COCO 2017 under ROOT/coco, for `coco_2017_{train,val}`; `thorough` looks for every image by its name."""
    for split, count in COCO_IMAGES.items():
        annotations = root / "coco" / "annotations" / f"instances_{split}.json"
        archive = f"{COCO_URL}/annotations/annotations_trainval2017.zip, unpacked in {root / 'coco'}"
        _demand(annotations, archive)
        images = root / "coco" / split
        where = f"{COCO_URL}/zips/{split}.zip, unpacked in {root / 'coco'}"
        if thorough:
            present = _names_in(images)
            for image in _read_json(annotations)["images"]:
                if image["file_name"] not in present:
                    raise UserError(f"{images / image['file_name']} is missing: it comes from {where}")
        _demand_images(images, count, where)
    return f"{root / 'coco'}: COCO 2017 is in place"


def check_voc(root: Path, years: Sequence[str] = ("2007", "2012")) -> str:
    """PASCAL VOC under ROOT/VOC2007 and ROOT/VOC2012: the images and annotations that its lists name."""
    for (year, split), archive in VOC_ARCHIVE.items():
        if year not in years:
            continue
        folder = root / f"VOC{year}"
        where = f"{archive}, unpacked in {root}, with a link {folder} -> VOCdevkit/VOC{year}"
        names = folder / "ImageSets" / "Main" / f"{split}.txt"
        _demand(names, where)
        images, xmls = _names_in(folder / "JPEGImages"), _names_in(folder / "Annotations")
        for name in names.read_text().split():
            for present, file in ((images, f"JPEGImages/{name}.jpg"), (xmls, f"Annotations/{name}.xml")):
                if Path(file).name not in present:
                    raise UserError(f"{folder / file} is missing: it comes from {where}")
    return f"{root}: PASCAL VOC {' and '.join(years)} is in place"


def check_voc_masks(root: Path) -> str:
    """COCO files of VOC 2012's instance masks, for `voc_2012_masks_{train,val}`, and the images they name."""
    folder = root / "VOC2012"
    where = (
        f"{VOC_ARCHIVE['2012', 'trainval']}, unpacked in {root}, with a link {folder} -> VOCdevkit/VOC2012"
    )
    images = _names_in(folder / "JPEGImages")
    if not images:
        raise UserError(f"{folder / 'JPEGImages'} is missing: it comes from {where}")
    for split in ("train_aug", "val"):
        file = folder / "annotations_masks" / f"instances_{split}.json"
        if not file.is_file():
            raise UserError(f"{file} is missing. {HOW_TO['voc_masks']}")
        for image in _read_json(file)["images"]:
            if image["file_name"] not in images:
                raise UserError(
                    f"{folder / 'JPEGImages' / image['file_name']} is missing: it comes from {where}"
                )
    return f"{folder}: instance masks are in place"


def check_demo(folder: Path) -> str:
    """A finished demo set with all its images (`prepare_data.py demo --check` looks into each of them)."""
    size = folder.name.removeprefix("demo_")
    again = f"run 'python tools/prepare_data.py demo --root {folder.parent} --size {size}'"
    state = demo.read_state(folder)
    if not state or not state["complete"]:
        raise UserError(f"{folder} holds no finished demo set: {again}")
    for split in ("train", "val"):
        _demand(folder / "annotations" / f"instances_{split}.json", again)
        _demand_images(folder / split, state["counts"][split], again)
    return f"{folder} is in place"


CHECKS: dict[str, Callable[[Path], str]] = {
    "coco": partial(check_coco, thorough=True),
    "voc": check_voc,
    "voc_masks": check_voc_masks,
}


def _names_in(folder: Path) -> set[str]:
    return set(os.listdir(folder)) if folder.is_dir() else set()


def _demand(file: Path, where: str) -> None:
    if not file.is_file():
        raise UserError(f"{file} is missing: it comes from {where}")


def _demand_images(folder: Path, count: int, where: str) -> None:
    if not folder.is_dir():
        raise UserError(f"{folder} is missing: it comes from {where}")
    found = sum(name.endswith(".jpg") for name in os.listdir(folder))
    if found < count:
        raise UserError(f"{folder} holds {found} of {count} images: the rest comes from {where}")


def _read_json(file: Path) -> dict[str, list[dict[str, str]]]:
    try:
        content = json.loads(file.read_text())
    except ValueError as error:
        raise UserError(f"{file} is no whole JSON file ({error})") from None
    if not isinstance(content, dict) or "images" not in content:
        raise UserError(f"{file} has no list 'images': it is no COCO annotation file")
    return content
