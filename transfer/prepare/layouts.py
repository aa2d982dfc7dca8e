"""Whether a data set lies where detectron2 looks for it; if not, what is missing and where it comes from.

Cheap enough to run before every training: names and counts, no image is opened.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path

from pretrain.common.errors import UserError
from transfer.prepare import demo

COCO_IMAGES = {"train2017": 118287, "val2017": 5000}
COCO_URL = "http://images.cocodataset.org"
COCO_ARCHIVE = {
    "annotations": f"{COCO_URL}/annotations/annotations_trainval2017.zip",
    "val2017": f"{COCO_URL}/zips/val2017.zip",
    "train2017": f"{COCO_URL}/zips/train2017.zip",
}
VOC_URL = "https://thor.robots.ox.ac.uk/pascal/VOC"
VOC_ARCHIVE = {
    ("2007", "trainval"): f"{VOC_URL}/voc2007/VOCtrainval_06-Nov-2007.tar",
    ("2007", "test"): f"{VOC_URL}/voc2007/VOCtest_06-Nov-2007.tar",
    ("2012", "trainval"): f"{VOC_URL}/voc2012/VOCtrainval_11-May-2012.tar",
}
MASK_SPLITS = ("train_aug", "val")  # of VOC2012 with SBD


def check_coco(root: Path, *, thorough: bool = False) -> str:
    """COCO 2017 under ROOT/coco, for `coco_2017_{train,val}`; `thorough` looks for every image by its name."""
    _check_coco(root, "instances", thorough)
    return f"{root / 'coco'}: COCO 2017 is in place"


def check_keypoints(root: Path, *, thorough: bool = False) -> str:
    """COCO 2017 with its people's joints, for `keypoints_coco_2017_{train,val}`."""
    _check_coco(root, "person_keypoints", thorough)
    return f"{root / 'coco'}: COCO 2017 keypoints are in place"


def check_coco_images(root: Path, split: str) -> None:
    """The images of `train2017` or `val2017` by their number. Raises UserError."""
    _demand_images(root / "coco" / split, COCO_IMAGES[split], _coco_source(root, split))


def check_coco_annotations(root: Path, kinds: Sequence[str] = ("instances", "person_keypoints")) -> None:
    """The annotation files of both splits. Raises UserError."""
    for kind in kinds:
        for split in COCO_IMAGES:
            _demand(_coco_json(root, kind, split), _coco_source(root, "annotations"))


def _check_coco(root: Path, kind: str, thorough: bool) -> None:
    for split in COCO_IMAGES:
        _demand(_coco_json(root, kind, split), _coco_source(root, "annotations"))
        if thorough:
            _demand_listed(_coco_json(root, kind, split), root / "coco" / split, _coco_source(root, split))
        check_coco_images(root, split)


def _coco_json(root: Path, kind: str, split: str) -> Path:
    return root / "coco" / "annotations" / f"{kind}_{split}.json"


def _coco_source(root: Path, part: str) -> str:
    return f"{COCO_ARCHIVE[part]}, unpacked in {root / 'coco'}; {_command('coco', root)} does it"


def check_voc(root: Path, years: Sequence[str] = ("2007", "2012")) -> str:
    """PASCAL VOC under ROOT/VOC2007 and ROOT/VOC2012: the images and annotations that its lists name."""
    for year, split in VOC_ARCHIVE:
        if year in years:
            check_voc_split(root, year, split)
    return f"{root}: PASCAL VOC {' and '.join(years)} is in place"


def check_voc_split(root: Path, year: str, split: str) -> None:
    """What one of VOC's archives brings for detection. Raises UserError naming the first missing file."""
    files = {"JPEGImages": ".jpg", "Annotations": ".xml"}
    _demand_voc(root / f"VOC{year}", f"Main/{split}.txt", files, _voc_source(root, year, split))


def check_voc_segmentation(root: Path) -> None:
    """What VOC2012's archive brings for segmentation: its lists' images, masks and boxes. Raises UserError."""
    folder, where = root / "VOC2012", _voc_source(root, "2012", "trainval")
    files = {
        "JPEGImages": ".jpg", "Annotations": ".xml", "SegmentationObject": ".png", "SegmentationClass": ".png",
    }  # fmt: skip
    for split in ("train", "val"):
        _demand_voc(folder, f"Segmentation/{split}.txt", files, where)


def check_voc_masks(root: Path) -> str:
    """COCO files of VOC 2012's instance masks, for `voc_2012_masks_{train,val}`, and the images they name."""
    folder, where = root / "VOC2012", _voc_source(root, "2012", "trainval")
    if not _names_in(folder / "JPEGImages"):
        raise UserError(f"{folder / 'JPEGImages'} is missing: it comes from {where}")
    for split in MASK_SPLITS:
        file = folder / "annotations_masks" / f"instances_{split}.json"
        if not file.is_file():
            raise UserError(f"{file} is missing: {_command('voc-masks', root)} makes it")
        _demand_listed(file, folder / "JPEGImages", where)
    return f"{folder}: instance masks are in place"


def check_voc_semseg(root: Path, splits: Sequence[str] = MASK_SPLITS) -> str:
    """Labels per pixel, for `voc_2012_semseg_{train,val}`: those that the lists `semseg/SPLIT.txt` name."""
    folder, where = root / "VOC2012", _voc_source(root, "2012", "trainval")
    images, made = _names_in(folder / "JPEGImages"), f"{_command('voc-masks', root)} makes it"
    for split in splits:
        names, labels = folder / "semseg" / f"{split}.txt", folder / "semseg" / split
        if not names.is_file():
            raise UserError(f"{names} is missing: {made}")
        present = _names_in(labels)
        for name in names.read_text().split():
            if f"{name}.png" not in present:
                raise UserError(f"{labels / name}.png is missing: {made}")
            if f"{name}.jpg" not in images:
                raise UserError(f"{folder / 'JPEGImages' / name}.jpg is missing: it comes from {where}")
    return f"{folder}: labels per pixel are in place"


def _demand_voc(folder: Path, listing: str, files: dict[str, str], where: str) -> None:
    names = folder / "ImageSets" / listing
    _demand(names, where)
    present = {part: _names_in(folder / part) for part in files}
    for name in names.read_text().split():
        for part, ending in files.items():
            if name + ending not in present[part]:
                raise UserError(f"{folder / part / name}{ending} is missing: it comes from {where}")


def _voc_source(root: Path, year: str, split: str) -> str:
    return (
        f"{VOC_ARCHIVE[year, split]}, unpacked in {root}, with a link {root / f'VOC{year}'} -> VOCdevkit/VOC{year}; "
        f"{_command('voc', root)} does it"
    )


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


def _command(name: str, root: Path) -> str:
    return f"'python tools/prepare_data.py {name} --root {root}'"


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


def _demand_listed(file: Path, folder: Path, where: str) -> None:
    """Every image that a COCO json names lies in `folder`."""
    present = _names_in(folder)
    for image in _read_json(file)["images"]:
        if image["file_name"] not in present:
            raise UserError(f"{folder / image['file_name']} is missing: it comes from {where}")


def _read_json(file: Path) -> dict[str, list[dict[str, str]]]:
    try:
        content = json.loads(file.read_text())
    except ValueError as error:
        raise UserError(f"{file} is no whole JSON file ({error}): remove it, then prepare it again") from None
    if not isinstance(content, dict) or "images" not in content:
        raise UserError(f"{file} has no list 'images': it is no COCO annotation file")
    return content
