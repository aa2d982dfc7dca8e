"""Where each data set is stored under DATASETS.ROOT, and checks that its files are there.

For every public data set and the demo sets there is a `check_*` function. It returns one line that says that the set
is in place. Otherwise it raises `UserError`, which names the first missing file and says how to get it. The checks
compare names and counts, so they are cheap enough to run before every training run. Only the XML files of VOC, whose
folder may be the user's own, are read there as well.
`transfer.data.catalog.check_files` chooses the check for a data set's name; `tools/prepare_data.py` uses the same
checks, and the addresses, counts and paths of this module.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from pretrain.common.errors import UserError
from pretrain.common.files import load_json, read_json
from transfer.data import voc_boxes

# This file marks a root folder of tiny sets, made by transfer.reproduce.plan.smoke_data.
MINIATURE = "miniature.json"

CITYSCAPES_IMAGES = {"train": 2_975, "val": 500}
# folder -> the endings of each frame's files, as in the archives
CITYSCAPES_ENDINGS = {
    "leftImg8bit": ("_leftImg8bit.png",),
    "gtFine": ("_gtFine_polygons.json", "_gtFine_instanceIds.png", "_gtFine_labelIds.png"),
}
# folder -> the archive that contains it; 11 GB and 241 MB
CITYSCAPES_ARCHIVES = {
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


class MissingFile(UserError):
    """Files of a data set are not where they are looked for."""


class LvisVersion(NamedTuple):
    """What a version of LVIS contains.

    Attributes:
        categories: how many; their ids are 1 to this number.
        images: split -> the least number of images. The number for v0.5's train split is published only as "57k".
        folders: split -> the folders of COCO that hold its images.
    """

    categories: int
    images: dict[str, int]
    folders: dict[str, tuple[str, ...]]


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
    """Check COCO 2017 in ROOT/coco, for `coco_2017_{train,val}`; `thorough` looks for every image by its name."""
    _check_coco(root, "instances", thorough)
    return f"{root / 'coco'}: COCO 2017 is in place"


def check_keypoints(root: Path, *, thorough: bool = False) -> str:
    """Check COCO 2017 and its keypoints, for `keypoints_coco_2017_{train,val}`; `thorough` as in `check_coco`."""
    _check_coco(root, "person_keypoints", thorough)
    return f"{root / 'coco'}: COCO 2017 keypoints are in place"


def check_coco_images(root: Path, split: str) -> None:
    """Raise UserError unless the folder of `train2017` or `val2017` holds the right number of images."""
    _demand_images(root / "coco" / split, COCO_IMAGES[split], _get_coco(root, split))


def check_coco_annotations(root: Path, kinds: Sequence[str] = ("instances", "person_keypoints")) -> None:
    """Raise UserError unless the annotation files of both splits are there."""
    for kind in kinds:
        for split in COCO_IMAGES:
            _demand(_coco_json(root, kind, split), _get_coco(root, "annotations"))


def _check_coco(root: Path, kind: str, thorough: bool) -> None:
    for split in COCO_IMAGES:
        annotations = _coco_json(root, kind, split)
        _demand(annotations, _get_coco(root, "annotations"))
        if thorough:
            _demand_listed(annotations, root / "coco" / split, _get_coco(root, split))
        check_coco_images(root, split)


def _coco_json(root: Path, kind: str, split: str) -> Path:
    return root / "coco" / "annotations" / f"{kind}_{split}.json"


def _get_coco(root: Path, part: str) -> str:
    return f"unpack {COCO_ARCHIVE[part]} in {root / 'coco'}, or {prepare_command('coco', root)}"


def check_voc(root: Path, years: Sequence[str] = ("2007", "2012")) -> str:
    """Check the lists of PASCAL VOC's archives in ROOT/VOC2007 and ROOT/VOC2012 as `check_voc_boxes` does."""
    for year, split in VOC_ARCHIVE:
        if year in years:
            check_voc_boxes(root, year, split)
    return f"{root}: PASCAL VOC {' and '.join(years)} is in place"


def check_voc_boxes(root: Path, year: str, split: str) -> None:
    """Raise UserError unless the images and XML files of a list are there and can be used in training and testing."""
    check_voc_split(root, year, split)
    voc_boxes.read_split(root / f"VOC{year}", split)


def check_voc_split(root: Path, year: str, split: str) -> None:
    """Raise UserError unless the images and XML files that a list names are there; none is opened."""
    archive = split if (year, split) in VOC_ARCHIVE else "trainval"
    _demand_voc(
        root / f"VOC{year}", f"Main/{split}.txt", {"Annotations": ".xml"}, _get_voc(root, year, archive)
    )


def check_voc_segmentation(root: Path) -> None:
    """Raise UserError unless the images, masks and boxes of VOC2012's lists for segmentation are there."""
    parts = {"Annotations": ".xml", "SegmentationObject": ".png", "SegmentationClass": ".png"}
    remedy = _get_voc(root, "2012", "trainval")
    for split in ("train", "val"):
        _demand_voc(root / "VOC2012", f"Segmentation/{split}.txt", parts, remedy)


def check_voc_masks(root: Path) -> str:
    """Check the COCO files of VOC2012's instance masks, for `voc_2012_masks_{train,val}`, and their images."""
    folder, remedy = root / "VOC2012", _get_voc(root, "2012", "trainval")
    if not names_in(folder / "JPEGImages"):
        raise _missing(folder / "JPEGImages", remedy)
    for split in MASK_SPLITS:
        file = folder / "annotations_masks" / f"instances_{split}.json"
        _demand(file, prepare_command("voc-masks", root))
        _demand_listed(file, folder / "JPEGImages", remedy)
    return f"{folder}: instance masks are in place"


def check_voc_semseg(root: Path, splits: Sequence[str] = MASK_SPLITS) -> str:
    """Check the label images that `semseg/SPLIT.txt` lists, for `voc_2012_semseg_{train,val}`, and their images."""
    folder, draw = root / "VOC2012", prepare_command("voc-masks", root)
    for split in splits:
        names = folder / "semseg" / f"{split}.txt"
        _demand(names, draw)
        _demand_names(
            names.read_text().split(),
            (folder / "semseg" / split, ".png", draw),
            (folder / "JPEGImages", ".jpg", _get_voc(root, "2012", "trainval")),
        )
    return f"{folder}: labels per pixel are in place"


def _demand_voc(folder: Path, listing: str, parts: dict[str, str], remedy: str) -> None:
    """Raise UserError unless each name of a list has an image and, in each folder of `parts`, a file of that ending."""
    _demand(folder / "ImageSets" / listing, remedy)
    names = voc_boxes.names(folder, listing)
    images = voc_boxes.image_files(folder, names)
    for name in names:
        if name not in images:
            raise _missing(folder / "JPEGImages" / f"{name}.jpg", remedy)
    _demand_names(names, *((folder / part, ending, remedy) for part, ending in parts.items()))


def _get_voc(root: Path, year: str, split: str) -> str:
    return (
        f"unpack {VOC_ARCHIVE[year, split]} in {root}, and link {root / f'VOC{year}'} to VOCdevkit/VOC{year}, "
        f"or {prepare_command('voc', root)}"
    )


def check_demo(folder: Path) -> str:
    """Check that a demo set is complete, with all its images (`prepare_data.py demo --check` opens each of them)."""
    size = folder.name.removeprefix("demo_")
    remedy = prepare_command(f"demo --size {size}", folder.parent)
    state = read_json(folder / "demo.json")
    if not state.get("complete"):
        raise MissingFile(f"{folder} does not hold a complete demo set: {remedy}")
    for split in ("train", "val"):
        _demand(folder / "annotations" / f"instances_{split}.json", remedy)
        _demand_images(folder / split, state["counts"][split], remedy)
    return f"{folder} is in place"


def check_cityscapes(root: Path, *, semantic: bool = True) -> str:
    """Check the files of `cityscapes_fine_{instance_seg,sem_seg}_{train,val}`.

    Args:
        semantic: whether the label images for training semantic segmentation are needed too.
    """
    folder = root / "cityscapes"
    for kind, endings in CITYSCAPES_ENDINGS.items():
        check_cityscapes_files(folder, kind, endings, CITYSCAPES_ARCHIVES[kind])
    if semantic:
        check_cityscapes_files(
            folder, "gtFine", (CITYSCAPES_TRAIN_IDS,), "cityscapesscripts, which draws it from the polygons"
        )
    _refuse_strays(folder / "leftImg8bit")
    return f"{folder} is in place: " + " and ".join(
        f"{count} {split} images" for split, count in CITYSCAPES_IMAGES.items()
    )


def check_cityscapes_files(folder: Path, kind: str, endings: tuple[str, ...], where: str) -> None:
    """Raise UserError unless every frame is there, with all its files in ROOT/cityscapes/KIND.

    Args:
        folder: ROOT/cityscapes.
        kind: a key of CITYSCAPES_ENDINGS.
        endings: of the files of each frame.
        where: the archive or program that the files come from.
    """
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
                raise _missing(place / (stem + ending), f"it comes from {where}; {again}")
    for split, count in CITYSCAPES_IMAGES.items():
        if found[split] != count:
            raise UserError(
                f"{folder / kind / split} holds {found[split]} of {count} images; they come from {where}; {again}"
            )


def _refuse_strays(photos: Path) -> None:
    """Raise UserError for any file that is not part of Cityscapes: detectron2 would take it for a city or an image."""
    for split in CITYSCAPES_IMAGES:
        for city in sorted(names_in(photos / split)):
            place = photos / split / city
            strays = [
                place / name
                for name in sorted(names_in(place))
                if not name.endswith(CITYSCAPES_ENDINGS["leftImg8bit"])
            ]
            if not place.is_dir():
                strays = [place]
            if strays:
                raise UserError(f"{strays[0]} is not part of Cityscapes: remove it")


def cityscapes_frames(folder: Path) -> Iterator[tuple[str, str, str]]:
    """Yield (split, city, stem of the file names) of each frame that has a photo or polygons."""
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
    """Check the annotations of LVIS, for `lvis_VERSION_{train,val}`, and the number of COCO's images."""
    for split in splits:
        demand(lvis_json(root, version, split), f"{lvis_url(version, split)}: {lvis_again(root, version)}")
        for folder in LVIS_VERSIONS[version].folders[split]:
            remedy = f"LVIS {version} {split} needs COCO's images; {prepare_command('coco', root)}"
            _demand_images(root / "coco" / folder, COCO_IMAGES[folder], remedy)
    return f"{root / 'lvis'}: LVIS {version} is in place"


def lvis_url(version: str, split: str) -> str:
    """Return the address of the zipped annotations of a split."""
    return f"{LVIS_URL}/lvis_{version}_{split}.json.zip"


def lvis_json(root: Path, version: str, split: str) -> Path:
    """Return the path of the annotations of a split."""
    return root / "lvis" / f"lvis_{version}_{split}.json"


def lvis_again(root: Path, version: str) -> str:
    """Return the advice to run the command that prepares this version of LVIS."""
    return prepare_command(f"lvis --version {version}", root)


def prepare_command(name: str, root: Path) -> str:
    """Return the advice to run the command that prepares a data set; options may follow the name in `name`."""
    return f"run 'python tools/prepare_data.py {name} --root {root}'"


def demand(file: Path, where: str) -> None:
    """Raise UserError, which names the source `where`, unless `file` exists."""
    _demand(file, f"it comes from {where}")


def names_in(folder: Path) -> set[str]:
    """Return the names of the files and folders in a folder; none if it does not exist."""
    return set(os.listdir(folder)) if folder.is_dir() else set()


def _missing(path: Path, remedy: str) -> MissingFile:
    return MissingFile(f"{path} is missing: {remedy}")


def _demand(file: Path, remedy: str) -> None:
    if not file.is_file():
        raise _missing(file, remedy)


def _demand_images(folder: Path, count: int, remedy: str) -> None:
    """Raise UserError unless `folder` holds at least `count` JPEG files."""
    if not folder.is_dir():
        raise _missing(folder, remedy)
    found = sum(name.endswith(".jpg") for name in os.listdir(folder))
    if found < count:
        raise MissingFile(f"{folder} holds {found} of {count} images: {remedy}")


def _demand_names(names: Iterable[str], *places: tuple[Path, str, str]) -> None:
    """Raise UserError unless each folder of `places` (folder, ending, remedy) holds each name with its ending."""
    present = {folder: names_in(folder) for folder, _, _ in places}
    for name in names:
        for folder, ending, remedy in places:
            if name + ending not in present[folder]:
                raise _missing(folder / (name + ending), remedy)


def _demand_listed(file: Path, folder: Path, remedy: str) -> None:
    """Raise UserError unless `folder` holds every image that a COCO json lists."""
    _demand_names((image["file_name"] for image in _read_coco(file)["images"]), (folder, "", remedy))


def _read_coco(file: Path) -> dict[str, list[dict[str, str]]]:
    try:
        content = load_json(file)
    except UserError as error:
        raise UserError(f"{error}: remove it, then prepare it again") from None
    if not isinstance(content, dict) or "images" not in content:
        raise UserError(f"{file} is not a COCO annotation file: it has no list 'images'")
    return content
