"""Data sets by name, in detectron2's catalogs: registering them, counting their records, checking their files.

`register_builtin` and `register_coco` connect names with folders. `check_files` looks for the files of a registered
data set; the checks of each layout are in `transfer.data.on_disk`.
"""

import difflib
import importlib.util
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import builtin, register_coco_instances

from pretrain.common.errors import UserError
from transfer import d2_compat
from transfer.data import on_disk
from transfer.data.coco.safe_masks import BadMask
from transfer.data.readers import cityscapes_instances, voc_labels, voc_objects
from transfer.data.voc_boxes import CLASSES

# metadata that hold paths
_PATHS = (
    "json_file", "image_root", "image_dir", "gt_dir", "dirname", "panoptic_json", "panoptic_root", "sem_seg_root",
)  # fmt: skip
# sets that tools/prepare_data.py prepares, by the first word of their names
_PREPARED = ("coco", "lvis", "cityscapes")

# Train on all public masks of VOC2012 and SBD except those of VOC2012's segmentation val, and test on that val.
VOC_MASKS = {"voc_2012_masks_train": "train_aug", "voc_2012_masks_val": "val"}
VOC_LABELS = {"voc_2012_semseg_train": "train_aug", "voc_2012_semseg_val": "val"}
CUSTOM = {"custom_train": "TRAIN", "custom_test": "TEST"}
DEMO = re.compile(r"(demo\w*)_(train|val)")
VOC = re.compile(r"voc_(2007|2012)_(train|val|trainval|test)")
# What detectron2 registers when it is imported, under the folder that was current then.
BUILTIN = re.compile(
    rf"(keypoints_)?coco_20(14|17)_.*|{VOC.pattern}|lvis_v(0\.5|1)_.*|cityscapes_fine_.*|ade20k_sem_seg_.*"
)


def register_builtin(root: Path) -> None:
    """Register detectron2's own data sets and our two of VOC2012, all under `root`."""
    for name in list(DatasetCatalog.list()):
        if BUILTIN.fullmatch(name):
            _forget(name)
    builtin.register_all_coco(str(root))
    builtin.register_all_lvis(str(root))
    builtin.register_all_cityscapes(str(root))
    builtin.register_all_cityscapes_panoptic(str(root))
    builtin.register_all_pascal_voc(str(root))
    builtin.register_all_ade20k(str(root))
    for name in list(DatasetCatalog.list()):
        metadata = MetadataCatalog.get(name)
        if VOC.fullmatch(name):
            DatasetCatalog.remove(name)  # see transfer.data.readers
            DatasetCatalog.register(name, partial(voc_objects, Path(metadata.dirname), metadata.split))
        elif name.startswith("cityscapes_fine_instance_seg_"):
            DatasetCatalog.remove(name)  # see transfer.data.readers
            DatasetCatalog.register(name, partial(cityscapes_instances, metadata.image_dir, metadata.gt_dir))
    folder = root / "VOC2012"
    for name, split in VOC_MASKS.items():
        annotations = folder / "annotations_masks" / f"instances_{split}.json"
        register_coco(name, annotations, folder / "JPEGImages", thing_classes=list(CLASSES))
    for name, split in VOC_LABELS.items():
        _register_labels(name, folder, split)
    d2_compat.alias_cityscapes()


def register_coco(name: str, annotations: Path, images: Path, **metadata: Any) -> None:
    """Register a COCO-format set. It replaces a set that already has the name."""
    _forget(name)
    register_coco_instances(name, metadata, str(annotations), str(images))


def require(key: str, name: str) -> None:
    """Raise `UserError` with similar names if `name`, the value of a config key, is not registered."""
    demo = (f"demo_{size}_{split}" for size in ("standard", "quick") for split in ("train", "val"))
    known = [*DatasetCatalog.list(), *demo]
    if name in known:
        return
    near = difflib.get_close_matches(name, known, n=3)
    choices = f"did you mean {' or '.join(near)}?" if near else (
        "choose one of detectron2's (coco_2017_train, voc_2007_trainval, lvis_v0.5_train, ...)."
    )  # fmt: skip
    raise UserError(
        f"DATASETS.{key}: unknown data set {name}; {choices} For your own data, set DATASETS.TRAIN_JSON, "
        "TRAIN_IMAGES, TEST_JSON and TEST_IMAGES"
    )


class Counted:
    """A registered function that records how many images and annotations it returned.

    So no data set is read only in order to count it.
    """

    def __init__(self, name: str, load: Callable[[], list[dict[str, Any]]]) -> None:
        self.name, self.load = name, load
        self.counts: tuple[int, int] | None = None

    def __call__(self) -> list[dict[str, Any]]:
        try:
            records = self.load()
        except BadMask as error:
            raise UserError(f"{self.name}: {error}") from None
        self.counts = (len(records), sum(len(record.get("annotations", ())) for record in records))
        return records


def count(name: str) -> None:
    """Make a registered set record how many images and annotations it has whenever it is loaded."""
    load = DatasetCatalog[name]
    if not isinstance(load, Counted):
        metadata = MetadataCatalog.get(name)  # removing a set keeps its metadata
        DatasetCatalog.remove(name)
        DatasetCatalog.register(name, Counted(name, load))
        assert MetadataCatalog.get(name) is metadata


def counts(name: str) -> tuple[int, int]:
    """Return (images, annotations) of a set that `count` was called for. Load it if it has not been loaded."""
    load = DatasetCatalog[name]
    if load.counts is None:
        load()
    found: tuple[int, int] = load.counts
    return found


def _register_labels(name: str, folder: Path, split: str) -> None:
    _forget(name)
    DatasetCatalog.register(name, partial(voc_labels, folder, split))
    MetadataCatalog.get(name).set(
        stuff_classes=["background", *CLASSES],
        ignore_label=255,
        evaluator_type="sem_seg",
        image_root=str(folder / "JPEGImages"),
        sem_seg_root=str(folder / "semseg" / split),
    )


def _forget(name: str) -> None:
    for catalog in (DatasetCatalog, MetadataCatalog):
        if name in catalog.list():
            catalog.remove(name)


def check_files(name: str, root: Path) -> None:
    """Raise `UserError`, which names the first missing file and how to get it, if a data set is not complete.

    An unknown name passes. Only names and counts are checked and no image is opened, except for VOC's boxes, whose XML
    files are read, with the headers of their images. For the tiny sets that
    `tools/reproduce.py --smoke` makes, which have fewer images, the counts are not checked.
    """
    if (root / on_disk.MINIATURE).exists():
        if name in DatasetCatalog.list():
            _check_paths(name, root)
    elif name in VOC_MASKS:
        on_disk.check_voc_masks(root)
    elif name in VOC_LABELS:
        on_disk.check_voc_semseg(root, (VOC_LABELS[name],))
    elif match := VOC.fullmatch(name):
        on_disk.check_voc_boxes(root, match[1], match[2])
    elif re.fullmatch(r"coco_2017_(train|val)", name):
        on_disk.check_coco(root)
    elif re.fullmatch(r"keypoints_coco_2017_(train|val)", name):
        on_disk.check_keypoints(root)
    elif match := DEMO.fullmatch(name):
        on_disk.check_demo(root / match[1])
    elif match := re.fullmatch(r"lvis_(v0\.5|v1)_(train|val)", name):
        need("lvis", name)
        on_disk.check_lvis(root, match[1], (match[2],))
    elif match := re.fullmatch(r"cityscapes_fine_(instance|sem)_seg_(train|val)", name):
        need("cityscapesscripts", name)
        if match[1] == "instance":
            need("shapely", name)  # detectron2 uses it for overlapping polygons
        on_disk.check_cityscapes(root, semantic=match[1] == "sem")
    elif name in DatasetCatalog.list():
        _check_paths(name, root)


def need(package: str, name: str) -> None:
    """Raise `UserError` if a package that reads or evaluates a data set is not installed."""
    if importlib.util.find_spec(package) is None:
        raise UserError(f"{name} needs the package {package}: pip install {package}")


def _check_paths(name: str, root: Path) -> None:
    metadata = MetadataCatalog.get(name)
    for key in _PATHS:
        path = metadata.get(key)
        if path and "://" not in path and not Path(path).exists():
            kind = name.split("_")[0]
            hint = f": {on_disk.prepare_command(kind, root)}" if kind in _PREPARED else ""
            raise on_disk.MissingFile(f"{name}: {path} is missing{hint}")
