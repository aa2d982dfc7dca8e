"""Data sets by name: which folder each name means, registered with detectron2 and checked before a run."""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from transfer import d2_compat  # noqa: F401 (first)

# isort: split
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import builtin, register_coco_instances

from pretrain.errors import UserError
from transfer.prepare import layouts

# Train on every public VOC2012 + SBD mask outside VOC2012's segmentation val, test on that val.
VOC_MASKS = {"voc_2012_masks_train": "train_aug", "voc_2012_masks_val": "val"}
CUSTOM = {"custom_train": "TRAIN", "custom_test": "TEST"}
DEMO = re.compile(r"(demo\w*)_(train|val)")


def prepare(cfg: CfgNode, *, train: bool = True) -> None:
    """Register the data sets of a config under `DATASETS.ROOT` and check them, before anything is computed.

    Sets `DATASETS.TRAIN`, `DATASETS.TEST` and the class count where `DATASETS.TRAIN_JSON` is given, and the
    class count of the demo.

    Args:
        cfg: not frozen.
        train: whether the training sets are needed.
    Raises:
        UserError: an unknown name, a missing file (which one, and where it comes from), an annotation that
            cannot be used, or a class count that is not the model's.
    """
    root = Path(cfg.DATASETS.ROOT).expanduser()
    _use_custom(cfg)
    _move_builtin(str(root))
    names = dict.fromkeys((*(cfg.DATASETS.TRAIN if train else ()), *cfg.DATASETS.TEST))
    for name in names:
        _check_layout(name, root)
        if name in VOC_MASKS:
            folder = root / "VOC2012"
            annotations = folder / "annotations_masks" / f"instances_{VOC_MASKS[name]}.json"
            _register(name, annotations, folder / "JPEGImages")
        elif match := DEMO.fullmatch(name):
            folder, split = root / match[1], match[2]
            # four of photographs, more where only the fallback's shapes could be had
            cfg.MODEL.ROI_HEADS.NUM_CLASSES = len(_read(folder / "demo.json")["classes"])
            _register(name, folder / "annotations" / f"instances_{split}.json", folder / split)
        elif name in CUSTOM:
            annotations = Path(getattr(cfg.DATASETS, f"{CUSTOM[name]}_JSON"))
            _register(name, annotations, Path(getattr(cfg.DATASETS, f"{CUSTOM[name]}_IMAGES")))
        elif name not in DatasetCatalog.list():
            raise UserError(
                f"DATASETS: unknown data set {name}; for your own data give DATASETS.TRAIN_JSON, TRAIN_IMAGES, "
                "TEST_JSON and TEST_IMAGES"
            )
    _check_classes(cfg, names)


def class_names(name: str) -> list[str]:
    """Names of the classes of a registered data set, in the order of the model's outputs."""
    metadata = MetadataCatalog.get(name)
    if not hasattr(metadata, "thing_classes"):  # a COCO json names its classes when it is read
        DatasetCatalog.get(name)
    return list(metadata.thing_classes)


def _check_classes(cfg: CfgNode, names: Iterable[str]) -> None:
    """Refuse a model whose class count is not the data's: detectron2 would fail in the middle of a step."""
    for name in names:
        count = len(class_names(name))
        if count != cfg.MODEL.ROI_HEADS.NUM_CLASSES:
            raise UserError(
                f"MODEL.ROI_HEADS.NUM_CLASSES {cfg.MODEL.ROI_HEADS.NUM_CLASSES}: {name} has {count} classes; "
                f"set it to {count}"
            )


def _use_custom(cfg: CfgNode) -> None:
    keys = ("TRAIN_JSON", "TRAIN_IMAGES", "TEST_JSON", "TEST_IMAGES")
    if not any(cfg.DATASETS[key] for key in keys):
        return
    for key in keys:
        path = Path(cfg.DATASETS[key] or "-")
        if not (path.is_dir() if key.endswith("IMAGES") else path.is_file()):
            raise UserError(
                f"DATASETS.{key} {cfg.DATASETS[key]!r}: no such {'folder' if key.endswith('IMAGES') else 'file'}; "
                f"own data needs {', '.join(keys)} together"
            )
    train, test = (_check_json(cfg, part) for part in ("TRAIN", "TEST"))
    if train != test:
        raise UserError(
            f"DATASETS.TEST_JSON: its categories {test} are not those of TRAIN_JSON, {train}, in the order of their ids"
        )
    cfg.INPUT.MASK_FORMAT = "bitmask"  # reads polygons and RLE alike
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("custom_train",), ("custom_test",)
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = len(train)


def _check_json(cfg: CfgNode, part: str) -> list[str]:
    """Names of the categories of one's own COCO json, by id; everything that training or testing reads is there."""
    key = f"DATASETS.{part}_JSON"
    path, images = Path(cfg.DATASETS[f"{part}_JSON"]), Path(cfg.DATASETS[f"{part}_IMAGES"])
    content = _read(path)
    needed = ["image_id", "category_id", "bbox", "area", "iscrowd"] + ["segmentation"] * cfg.MODEL.MASK_ON
    try:
        for annotation in content["annotations"]:
            for field in needed:
                if annotation.get(field) in (None, [], ""):
                    hint = ": add MODEL.MASK_ON False" if field == "segmentation" else ""
                    raise UserError(f"{key} {path}: annotation {annotation.get('id')} has no {field}{hint}")
        if not content["annotations"]:
            raise UserError(f"{key} {path}: holds no annotation")
        for image in content["images"]:
            if not (images / image["file_name"]).is_file():
                raise UserError(f"{key} {path}: its image {images / image['file_name']} is missing")
        return [c["name"] for c in sorted(content["categories"], key=lambda category: category["id"])]
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{key} {path}: not a COCO json: {error!r}") from None


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: not a whole JSON file: {error}") from None


def _move_builtin(root: str) -> None:
    """detectron2 fixes the folder of COCO and VOC when it is imported: register them anew under `root`."""
    for name in list(DatasetCatalog.list()):
        if name.startswith(("coco_", "voc_20", "keypoints_coco_")):
            DatasetCatalog.remove(name)
            if name in MetadataCatalog.list():
                MetadataCatalog.remove(name)
    builtin.register_all_coco(root)
    builtin.register_all_pascal_voc(root)


def _check_layout(name: str, root: Path) -> None:
    if name in VOC_MASKS:
        layouts.check_voc_masks(root)
    elif name.startswith("voc_20"):
        layouts.check_voc(root, years=(name.split("_")[1],))
    elif name.startswith("coco_2017"):
        layouts.check_coco(root)
    elif match := DEMO.fullmatch(name):
        layouts.check_demo(root / match[1])


def _register(name: str, annotations: Path, images: Path) -> None:
    if name in DatasetCatalog.list():
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    register_coco_instances(name, {}, str(annotations), str(images))
