"""The user's own COCO-format data: check it before a run, repair it on request, and set class and keypoint counts."""

import re
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode

from pretrain.common.console import say
from pretrain.common.errors import UserError, brief, label
from pretrain.common.files import write_json
from transfer.data import catalog
from transfer.data.coco import problems as coco_problems
from transfer.data.coco.read import read
from transfer.data.coco.remarks import remarks

KEYS = ("TRAIN_JSON", "TRAIN_IMAGES", "TEST_JSON", "TEST_IMAGES")
SHOWN = 10  # how many problems are printed
# What `use` sets in a config: a property of the data, not a choice.
SETS = (
    "DATASETS.TRAIN", "DATASETS.TEST", "INPUT.MASK_FORMAT", "MODEL.ROI_HEADS.NUM_CLASSES",
    "MODEL.RETINANET.NUM_CLASSES", "MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS",
)  # fmt: skip


@dataclass(frozen=True)
class Own:
    """What a config needs to know about one file.

    Attributes:
        path: the file to read: the user's, or a copy that is repaired, or has the encoding and types that detectron2
            expects.
        ids: of the categories, sorted.
        classes: the names of the categories, in the order of their ids.
        keypoints: names; empty if keypoints are not trained.
    """

    path: Path
    ids: tuple[int | str, ...]
    classes: tuple[str, ...]
    keypoints: tuple[str, ...]


def use(cfg: CfgNode) -> None:
    """Register `DATASETS.{TRAIN,TEST}_{JSON,IMAGES}`, if they are set, instead of DATASETS.TRAIN and TEST.

    Sets the class counts and the number of keypoints in `cfg`. Raises `UserError` if files are missing or cannot be
    used.
    """
    if not any(cfg.DATASETS[key] for key in KEYS):
        return
    for key in KEYS:
        path = Path(cfg.DATASETS[key] or "-").expanduser()
        if not (path.is_dir() if key.endswith("IMAGES") else path.is_file()):
            raise UserError(
                f"DATASETS.{key} {brief(cfg.DATASETS[key])}: no such {'folder' if key.endswith('IMAGES') else 'file'}; "
                f"your own data needs all of {', '.join(KEYS)}"
            )
    train, test = _own(cfg, "TRAIN"), _own(cfg, "TEST")
    if train.classes != test.classes:
        raise UserError(
            f"DATASETS.TEST_JSON: its categories {brief(test.classes)} differ from those of TRAIN_JSON, "
            f"{brief(train.classes)} (in the order of their ids)"
        )
    if train.keypoints != test.keypoints:
        raise UserError(
            f"DATASETS.TEST_JSON: its keypoints {brief(test.keypoints)} differ from those of TRAIN_JSON, "
            f"{brief(train.keypoints)}"
        )
    for (name, part), own in zip(catalog.CUSTOM.items(), (train, test), strict=True):
        metadata: dict[str, Any] = {
            "thing_classes": list(own.classes),
            "thing_dataset_id_to_contiguous_id": {key: index for index, key in enumerate(own.ids)},
        }
        if own.keypoints:
            metadata |= {"keypoint_names": list(own.keypoints), "keypoint_flip_map": _flips(own.keypoints)}
        images = Path(cfg.DATASETS[f"{part}_IMAGES"]).expanduser()
        catalog.register_coco(name, own.path, images, **metadata)
    cfg.INPUT.MASK_FORMAT = "bitmask"  # accepts both polygons and RLE
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = tuple(catalog.CUSTOM)[:1], tuple(catalog.CUSTOM)[1:]
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = cfg.MODEL.RETINANET.NUM_CLASSES = len(train.classes)
    if train.keypoints:
        cfg.MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS = len(train.keypoints)


def _own(cfg: CfgNode, part: str) -> Own:
    path = Path(cfg.DATASETS[f"{part}_JSON"]).expanduser()
    images = Path(cfg.DATASETS[f"{part}_IMAGES"]).expanduser()
    copy = Path(cfg.OUTPUT_DIR) / "repaired" / f"{part.lower()}.json"
    stamp = path.stat()
    return _checked(
        f"DATASETS.{part}_JSON {path}", path, images, copy, stamp.st_mtime_ns, stamp.st_size,
        repair=cfg.DATASETS.REPAIR, masks=cfg.MODEL.MASK_ON, keypoints=cfg.MODEL.KEYPOINT_ON,
    )  # fmt: skip


@lru_cache(maxsize=8)  # each process parses a large file once
def _checked(
    where: str, path: Path, images: Path, copy: Path, *stamp: int, repair: bool, masks: bool, keypoints: bool
) -> Own:
    content, notes, plain = read(path)
    found = coco_problems.problems(content, images, masks=masks, keypoints=keypoints)
    if found and not repair:
        _refuse(where, content, found)
    for note in notes:
        say(f"{where}: {note}")
    if found:
        content = _repair(where, content, found, images, masks=masks, keypoints=keypoints)
    if found or not plain:
        write_json(copy, content, indent=None)
        say(f"{where}: detectron2 reads the {'repaired ' if found else ''}copy {copy}")
    for line in remarks(content):
        say(f"{where}: {line}")
    categories = sorted(content["categories"], key=lambda category: category["id"])
    names = _keypoint_names(where, content) if keypoints else ()
    ids, classes = zip(*((category["id"], category["name"]) for category in categories), strict=True)
    return Own(copy if found or not plain else path, ids, classes, names)


def _repair(
    where: str,
    content: Any,
    found: list[coco_problems.Problem],
    images: Path,
    *,
    masks: bool,
    keypoints: bool,
) -> Any:
    done: Counter[str] = Counter()
    for _ in range(3):  # once the size of an image is known, its boxes may turn out to lie outside
        try:
            content = coco_problems.repaired(content, found)
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
        done.update(f"{problem.part}: {problem.remedy}" for problem in found)
        found = coco_problems.problems(content, images, masks=masks, keypoints=keypoints)
        if not found:
            break
    else:
        _refuse(where, content, found)
    say(f"{where}: DATASETS.REPAIR: " + ", ".join(f"{n} {what}" for what, n in done.items()))
    return content


def _refuse(where: str, content: Any, found: list[coco_problems.Problem]) -> None:
    """Print the first problems, then raise `UserError`."""
    first = next((problem for problem in found if not problem.repair), found[0])
    remedy = coco_problems.refused(content, found) or "fix the file, or set DATASETS.REPAIR True"
    if not first.repair:
        remedy = first.advice
    advice = f"; {remedy}" if remedy else ""
    if len(found) == 1:
        raise UserError(f"{where}: {found[0].text}{advice}")
    for problem in found[:SHOWN]:
        say(f"{where}: {problem.text}")
    if len(found) > SHOWN:
        say(f"... and {len(found) - SHOWN} more")
    raise UserError(f"{where}: {first.text}, and {len(found) - 1} more problem(s){advice}")


def _keypoint_names(where: str, content: Any) -> tuple[str, ...]:
    """Return the names; the check has made sure that no two categories have different ones."""
    for category in content["categories"]:
        if isinstance(category.get("keypoints"), list) and category["keypoints"]:
            return tuple(map(label, category["keypoints"]))
    numbers = len(content["annotations"][0]["keypoints"]) // 3
    say(
        f"{where}: keypoints have no names, so left and right are not swapped in mirrored images; if they differ, "
        "name them in the category's 'keypoints' (left_x, right_x), or set INPUT.RANDOM_FLIP none"
    )
    return tuple(f"point{i}" for i in range(1, numbers + 1))


def _flips(names: tuple[str, ...]) -> list[tuple[str, str]]:
    """Return the pairs that are swapped in a mirrored image: names that differ only in left and right."""
    pairs = []
    for name in names:
        match = re.search("left", name, flags=re.IGNORECASE)
        if match:
            right = {"left": "right", "Left": "Right", "LEFT": "RIGHT"}.get(match[0], "right")
            partner = name[: match.start()] + right + name[match.end() :]
            if partner in names:
                pairs.append((name, partner))
    return pairs
