"""Whether a data set lies where detectron2 looks for it; if not, what is missing and where it comes from.

Cheap enough to run before every training: names and counts, no image is opened.
"""

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from pretrain.common.errors import UserError
from pretrain.common.files import read_json

MINIATURE = "miniature.json"  # beside sets of a few pictures, which transfer.reproduce.plan.smoke_data made


CITYSCAPES_IMAGES = {"train": 2_975, "val": 500}
CITYSCAPES_ENDINGS = {  # of the files of one frame, in the archives
    "leftImg8bit": ("_leftImg8bit.png",),
    "gtFine": ("_gtFine_polygons.json", "_gtFine_instanceIds.png", "_gtFine_labelIds.png"),
}
CITYSCAPES_ARCHIVES = {  # by the folder that each holds; 11 GB and 241 MB
    "leftImg8bit": "leftImg8bit_trainvaltest.zip",
    "gtFine": "gtFine_trainvaltest.zip",
}
CITYSCAPES_TRAIN_IDS = "_gtFine_labelTrainIds.png"  # drawn by tools/prepare_data.py cityscapes

COCO_IMAGES = {"train2017": 118_287, "val2017": 5_000}
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
LVIS_URL = "https://dl.fbaipublicfiles.com/LVIS"


class LvisVersion(NamedTuple):
    categories: int  # their ids are 1 to this
    images: dict[str, int]  # per split, at least; v0.5's train split is published as "57k" only
    folders: dict[str, tuple[str, ...]]  # per split, COCO's folders that its images lie in


LVIS_VERSIONS = {
    "v0.5": LvisVersion(
        1230, {"train": 57_000, "val": 5_000}, {"train": ("train2017",), "val": ("val2017",)}
    ),
    "v1": LvisVersion(
        1203,
        {"train": 100_170, "val": 19_809},
        {"train": ("train2017",), "val": ("train2017", "val2017")},
    ),
}


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
            demand(_coco_json(root, kind, split), _coco_source(root, "annotations"))


def _check_coco(root: Path, kind: str, thorough: bool) -> None:
    for split in COCO_IMAGES:
        demand(_coco_json(root, kind, split), _coco_source(root, "annotations"))
        if thorough:
            _demand_listed(_coco_json(root, kind, split), root / "coco" / split, _coco_source(root, split))
        check_coco_images(root, split)


def _coco_json(root: Path, kind: str, split: str) -> Path:
    return root / "coco" / "annotations" / f"{kind}_{split}.json"


def _coco_source(root: Path, part: str) -> str:
    return f"{COCO_ARCHIVE[part]}, unpacked in {root / 'coco'}; {prepare_command('coco', root)}"


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
    if not names_in(folder / "JPEGImages"):
        raise UserError(f"{folder / 'JPEGImages'} is missing: it comes from {where}")
    for split in MASK_SPLITS:
        file = folder / "annotations_masks" / f"instances_{split}.json"
        if not file.is_file():
            raise UserError(f"{file} is missing: {prepare_command('voc-masks', root)}")
        _demand_listed(file, folder / "JPEGImages", where)
    return f"{folder}: instance masks are in place"


def check_voc_semseg(root: Path, splits: Sequence[str] = MASK_SPLITS) -> str:
    """Labels per pixel, for `voc_2012_semseg_{train,val}`: those that the lists `semseg/SPLIT.txt` name."""
    folder, where = root / "VOC2012", _voc_source(root, "2012", "trainval")
    images, made = names_in(folder / "JPEGImages"), f"{prepare_command('voc-masks', root)}"
    for split in splits:
        names, labels = folder / "semseg" / f"{split}.txt", folder / "semseg" / split
        if not names.is_file():
            raise UserError(f"{names} is missing: {made}")
        present = names_in(labels)
        for name in names.read_text().split():
            if f"{name}.png" not in present:
                raise UserError(f"{labels / name}.png is missing: {made}")
            if f"{name}.jpg" not in images:
                raise UserError(f"{folder / 'JPEGImages' / name}.jpg is missing: it comes from {where}")
    return f"{folder}: labels per pixel are in place"


def _demand_voc(folder: Path, listing: str, files: dict[str, str], where: str) -> None:
    names = folder / "ImageSets" / listing
    demand(names, where)
    present = {part: names_in(folder / part) for part in files}
    for name in names.read_text().split():
        for part, ending in files.items():
            if name + ending not in present[part]:
                raise UserError(f"{folder / part / name}{ending} is missing: it comes from {where}")


def _voc_source(root: Path, year: str, split: str) -> str:
    return (
        f"{VOC_ARCHIVE[year, split]}, unpacked in {root}, with a link {root / f'VOC{year}'} -> VOCdevkit/VOC{year}; "
        f"{prepare_command('voc', root)}"
    )


def check_demo(folder: Path) -> str:
    """A finished demo set with all its images (`prepare_data.py demo --check` looks into each of them)."""
    size = folder.name.removeprefix("demo_")
    again = f"run 'python tools/prepare_data.py demo --root {folder.parent} --size {size}'"
    state = read_json(folder / "demo.json")
    if not state.get("complete"):
        raise UserError(f"{folder} holds no finished demo set: {again}")
    for split in ("train", "val"):
        demand(folder / "annotations" / f"instances_{split}.json", again)
        _demand_images(folder / split, state["counts"][split], again)
    return f"{folder} is in place"


def check_cityscapes(root: Path, *, semantic: bool = True) -> str:
    """The files of `cityscapes_fine_{instance_seg,sem_seg}_{train,val}`: names and counts only.

    Args:
        semantic: whether the label images that semantic segmentation is trained on are needed too.
    """
    folder = root / "cityscapes"
    for kind, endings in CITYSCAPES_ENDINGS.items():
        check_cityscapes_files(folder, kind, endings, CITYSCAPES_ARCHIVES[kind])
    if semantic:
        check_cityscapes_files(
            folder, "gtFine", (CITYSCAPES_TRAIN_IDS,), "cityscapesscripts, which draws it from the polygons"
        )
    _check_strays(folder / "leftImg8bit")
    return f"{folder} is in place: " + " and ".join(
        f"{count} {split} images" for split, count in CITYSCAPES_IMAGES.items()
    )


def check_cityscapes_files(folder: Path, kind: str, endings: tuple[str, ...], where: str) -> None:
    """Every frame of which anything is there has its files in ROOT/cityscapes/KIND, and all frames are there."""
    again = prepare_command("cityscapes", folder.parent)
    present: dict[Path, set[str]] = {}
    found = dict.fromkeys(CITYSCAPES_IMAGES, 0)
    for split, city, stem in cityscapes_frames(folder):
        place = folder / kind / split / city
        if place not in present:
            present[place] = names_in(place)
        found[split] += 1
        for ending in endings:
            if stem + ending not in present[place]:
                raise UserError(f"{place / (stem + ending)} is missing: it comes from {where}: {again}")
    for split, count in CITYSCAPES_IMAGES.items():
        if found[split] != count:
            raise UserError(
                f"{folder / kind / split} holds {found[split]} of {count} images; they come from {where}: {again}"
            )


def _check_strays(photos: Path) -> None:
    """detectron2 takes everything in there for a city or an image of one, and stops at anything else."""
    for split in CITYSCAPES_IMAGES:
        for city in sorted(names_in(photos / split)):
            if not (photos / split / city).is_dir():
                raise UserError(f"{photos / split / city} is no part of Cityscapes: remove it")
            for name in sorted(names_in(photos / split / city)):
                if not name.endswith(CITYSCAPES_ENDINGS["leftImg8bit"]):
                    raise UserError(f"{photos / split / city / name} is no part of Cityscapes: remove it")


def cityscapes_frames(folder: Path) -> Iterator[tuple[str, str, str]]:
    """(split, city, stem of the file names) of each frame that has a photo or polygons."""
    for split in CITYSCAPES_IMAGES:
        photos, labels = (folder / kind / split for kind in CITYSCAPES_ENDINGS)
        for city in sorted(names_in(photos) | names_in(labels)):
            stems = {
                name.removesuffix(ending)
                for place, ending in ((photos, "_leftImg8bit.png"), (labels, "_gtFine_polygons.json"))
                for name in names_in(place / city)
                if name.endswith(ending)
            }
            for stem in sorted(stems):
                yield split, city, stem


def check_lvis(root: Path, version: str, splits: tuple[str, ...] = ("train", "val")) -> str:
    """LVIS for `lvis_VERSION_{train,val}`: names and counts only, so cheap enough to run before a training."""
    for split in splits:
        demand(lvis_json(root, version, split), f"{lvis_url(version, split)}: {lvis_again(root, version)}")
        for folder in LVIS_VERSIONS[version].folders[split]:
            found = sum(name.endswith(".jpg") for name in names_in(root / "coco" / folder))
            if found < COCO_IMAGES[folder]:
                raise UserError(
                    f"{root / 'coco' / folder} holds {found} of COCO's {COCO_IMAGES[folder]} images, "
                    f"which LVIS {version} {split} needs: {prepare_command('coco', root)}"
                )
    return f"{root / 'lvis'}: LVIS {version} is in place"


def lvis_url(version: str, split: str) -> str:
    """Return the address of the zipped annotations of a split."""
    return f"{LVIS_URL}/lvis_{version}_{split}.json.zip"


def lvis_json(root: Path, version: str, split: str) -> Path:
    """Return where the annotations of a split lie."""
    return root / "lvis" / f"lvis_{version}_{split}.json"


def lvis_again(root: Path, version: str) -> str:
    """Return what to run to get this version of LVIS."""
    return prepare_command(f"lvis --version {version}", root)


def prepare_command(name: str, root: Path) -> str:
    """What to run to get a data set; `name` may have options behind it."""
    return f"run 'python tools/prepare_data.py {name} --root {root}'"


def demand(file: Path, where: str) -> None:
    """Raise UserError if `file` is not there."""
    if not file.is_file():
        raise UserError(f"{file} is missing: it comes from {where}")


def names_in(folder: Path) -> set[str]:
    """Names of what lies in a folder; of one that does not exist, none."""
    return set(os.listdir(folder)) if folder.is_dir() else set()


def _demand_images(folder: Path, count: int, where: str) -> None:
    if not folder.is_dir():
        raise UserError(f"{folder} is missing: it comes from {where}")
    found = sum(name.endswith(".jpg") for name in os.listdir(folder))
    if found < count:
        raise UserError(f"{folder} holds {found} of {count} images: the rest comes from {where}")


def _demand_listed(file: Path, folder: Path, where: str) -> None:
    """Every image that a COCO json names lies in `folder`."""
    present = names_in(folder)
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
