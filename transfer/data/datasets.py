"""Prepare the data sets of a run: register and check them by name, and choose the records to train on."""

import logging
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog, get_detection_dataset_dicts

from pretrain.common.console import say
from pretrain.common.errors import UserError
from transfer.data import catalog, on_disk, own_coco, subset
from transfer.data.coco.read import read

COCO_KEYPOINTS = 17  # pycocotools has the sigmas of the metric for this number
# meta architecture -> pairs of (config node with NUM_CLASSES, metadata with the class names)
CLASS_COUNTS = {
    "GeneralizedRCNN": (("ROI_HEADS", "thing_classes"),),
    "RetinaNet": (("RETINANET", "thing_classes"),),
    "SemanticSegmentor": (("SEM_SEG_HEAD", "stuff_classes"),),
    "PanopticFPN": (("ROI_HEADS", "thing_classes"), ("SEM_SEG_HEAD", "stuff_classes")),
}


def prepare(cfg: CfgNode, *, train: bool = True) -> None:
    """Register the data sets of a config under `DATASETS.ROOT` and check them, before anything is computed.

    Sets `DATASETS.TRAIN`, `DATASETS.TEST` and the class count if `DATASETS.TRAIN_JSON` is set, and the class count
    for the demo sets.

    Args:
        cfg: not frozen.
        train: whether the training sets are needed.
    Raises:
        UserError: an unknown name, a missing file (which one, and how to get it), an annotation that cannot be
            used, or a number of classes or keypoints that differs from the model's.
    """
    logging.getLogger("detectron2").setLevel(logging.ERROR)  # its messages are about its own defaults
    root = Path(cfg.DATASETS.ROOT).expanduser()
    catalog.register_builtin(root)
    own_coco.use(cfg)
    key = "TRAIN" if train else "TEST"
    if not cfg.DATASETS[key]:
        raise UserError(
            f"DATASETS.{key} is empty: name a data set, or for your own data set DATASETS.TRAIN_JSON, "
            "TRAIN_IMAGES, TEST_JSON and TEST_IMAGES"
        )
    wanted = [("TRAIN", name) for name in cfg.DATASETS.TRAIN if train]
    wanted += [("TEST", name) for name in cfg.DATASETS.TEST]
    for key, name in wanted:
        _check_files(name, root)
        if match := catalog.DEMO.fullmatch(name):
            folder, split = root / match[1], match[2]
            # four if the set shows photographs, more if it had to be made of the fallback's shapes
            classes = read(folder / "demo.json").content["classes"]
            cfg.MODEL.ROI_HEADS.NUM_CLASSES = len(classes)
            catalog.register_coco(
                name,
                folder / "annotations" / f"instances_{split}.json",
                folder / split,
                thing_classes=classes,
            )
        catalog.require(key, name)
        catalog.count(name)
    names = dict.fromkeys(name for _, name in wanted)
    _check_classes(cfg, names)
    if cfg.MODEL.KEYPOINT_ON:
        _check_keypoints(cfg, names)


def _check_files(name: str, root: Path) -> None:
    """Raise `UserError` if a file of the data set is missing, with the two settings that name the folder."""
    try:
        catalog.check_files(name, root)
    except on_disk.MissingFile as error:
        raise UserError(
            f"{error}; if your data sets are elsewhere, set DATASETS.ROOT to their folder (its default is the "
            "environment variable DETECTRON2_DATASETS)"
        ) from None


def training_records(cfg: CfgNode) -> list[dict[str, Any]]:
    """Return the records of `DATASETS.TRAIN` to train on, and print what was chosen.

    Images without annotations, or without enough keypoints, are left out first, as in detectron2. Then
    `DATASETS.FRACTION` and `SHOTS` choose a part of the rest (`transfer.data.subset`).
    """
    model = cfg.MODEL
    try:
        records: list[dict[str, Any]] = get_detection_dataset_dicts(
            list(cfg.DATASETS.TRAIN),
            filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS,
            min_keypoints=model.ROI_KEYPOINT_HEAD.MIN_KEYPOINTS_PER_IMAGE if model.KEYPOINT_ON else 0,
            proposal_files=cfg.DATASETS.PROPOSAL_FILES_TRAIN if model.LOAD_PROPOSALS else None,
        )
    except AssertionError as error:  # "No valid data found", "Dataset is empty", ...
        raise UserError(f"DATASETS.TRAIN {', '.join(cfg.DATASETS.TRAIN)}: {error}") from None
    data = cfg.DATASETS
    if data.FRACTION == 1 and not data.SHOTS:
        return records
    if data.SHOTS and "annotations" not in records[0]:
        raise UserError(
            "DATASETS.SHOTS counts objects, but this data set has labels per pixel: use DATASETS.FRACTION"
        )
    classes = [
        [a["category_id"] for a in record.get("annotations", ()) if not a.get("iscrowd")]
        for record in records
    ]
    if data.SHOTS:
        _check_each_class_occurs(data.TRAIN[0], classes)
    chosen = subset.choose(classes, fraction=data.FRACTION, shots=data.SHOTS, seed=data.SUBSET_SEED)
    shots = f", until each class had {data.SHOTS} objects" if data.SHOTS else ""
    say(
        f"training on {len(chosen)} of {len(records)} images (DATASETS.FRACTION {data.FRACTION:g}{shots}; seed "
        f"{data.SUBSET_SEED}), with {sum(len(classes[i]) for i in chosen)} of {sum(map(len, classes))} objects"
    )
    objects = Counter(kind for i in chosen for kind in classes[i])
    if few := sum(number < data.SHOTS for number in objects.values()):
        say(
            f"note: {few} class(es) have fewer than DATASETS.SHOTS {data.SHOTS} objects: all of these are used"
        )
    return [records[i] for i in chosen]


def class_names(name: str, kind: str = "thing_classes") -> list[str]:
    """Return the class names of a registered data set, in the order of the model's outputs.

    `kind`: thing_classes (objects) or stuff_classes (labels per pixel). Raises `UserError` if the set has none.
    """
    metadata = MetadataCatalog.get(name)
    if not hasattr(metadata, kind):  # the names in a COCO json are known once it is read
        DatasetCatalog.get(name)
    if not hasattr(metadata, kind):
        what = "objects" if kind == "thing_classes" else "labels per pixel"
        raise UserError(
            f"{name} has no {what} ({kind} in its metadata): choose another data set or another model"
        )
    return list(getattr(metadata, kind))


def _check_classes(cfg: CfgNode, names: Iterable[str]) -> None:
    """Raise `UserError` if the model's class count differs from the data's: detectron2 would fail in a step."""
    for name in names:
        for node, kind in CLASS_COUNTS.get(cfg.MODEL.META_ARCHITECTURE, ()):
            count, expected = cfg.MODEL[node].NUM_CLASSES, len(class_names(name, kind))
            if count != expected:
                raise UserError(
                    f"MODEL.{node}.NUM_CLASSES {count}: {name} has {expected} classes; set it to {expected}"
                )


def _check_keypoints(cfg: CfgNode, names: Iterable[str]) -> None:
    """Raise `UserError` if the number of keypoints differs from the data's, or the metric has no sigmas for it."""
    count, sigmas = cfg.MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS, len(cfg.TEST.KEYPOINT_OKS_SIGMAS)
    for name in names:
        points = MetadataCatalog.get(name).get("keypoint_names")
        if points is None:
            raise UserError(f"{name} has no keypoints: choose another data set, or MODEL.KEYPOINT_ON False")
        if len(points) != count:
            raise UserError(
                f"MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS {count}: {name} has {len(points)} keypoints; "
                f"set it to {len(points)}"
            )
    if sigmas != count and (sigmas or count != COCO_KEYPOINTS):
        raise UserError(
            f"TEST.KEYPOINT_OKS_SIGMAS has {sigmas} numbers: give {count}, one for each keypoint (COCO's range from "
            ".025 for eyes to .107 for hips; .05 for all is a good start)"
        )


def _check_each_class_occurs(name: str, classes: list[list[int]]) -> None:
    occurring = {kind for kinds in classes for kind in kinds}
    absent = [kind for i, kind in enumerate(class_names(name)) if i not in occurring]
    if absent:
        shown = ", ".join(absent[:5]) + (", ..." if len(absent) > 5 else "")
        say(f"DATASETS.SHOTS: {len(absent)} classes have no object in {name}: {shown}")
