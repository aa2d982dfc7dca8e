"""The files in a fine-tuning run's folder from which its detector is rebuilt, wherever the folder has been moved to.

`config.yaml` holds every setting, among them the preprocessing; `model_final.pth` the weights; `categories.json` the
ids and names of the classes, which otherwise only the training data know.
"""

import os
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from pretrain.common.errors import UserError, brief, label
from pretrain.common.files import load_json, write_json
from transfer.config.load import load_config
from transfer.data.coco.read import read
from transfer.data.coco.values import is_id
from transfer.data.datasets import CLASS_COUNTS

CONFIG = "config.yaml"
FINAL = "model_final.pth"
CATEGORIES = "categories.json"
_CHECKPOINTS = ("model_best.pth", "model_last.pth")  # of an unfinished run, the better one first

Category = dict[str, Any]


def write_categories(cfg: CfgNode, folder: Path) -> None:
    """Write the classes of the loaded set `DATASETS.TRAIN[0]` as COCO's `categories`, in the order of the outputs.

    The ids are those of the user's json; a set whose files have no ids (VOC) gets 1, 2, ... Nothing is written for
    labels per pixel.
    """
    metadata = MetadataCatalog.get(cfg.DATASETS.TRAIN[0])
    names = list(metadata.get("thing_classes", None) or ())
    if not names or not class_count(cfg):
        return
    of_index = {i: key for key, i in (metadata.get("thing_dataset_id_to_contiguous_id", None) or {}).items()}
    points = {"keypoints": list(metadata.get("keypoint_names", ()))} if cfg.MODEL.KEYPOINT_ON else {}
    categories = [{"id": of_index.get(i, i + 1), "name": name, **points} for i, name in enumerate(names)]
    write_json(folder / CATEGORIES, categories)


def class_count(cfg: CfgNode) -> int:
    """Return the number of classes of a model's detections; 0 if it detects no objects of classes."""
    nodes = [n for n, kind in CLASS_COUNTS.get(cfg.MODEL.META_ARCHITECTURE, ()) if kind == "thing_classes"]
    return int(cfg.MODEL[nodes[0]].NUM_CLASSES) if nodes else 0


def config_file(run: Path) -> Path:
    """Return the `config.yaml` of a run. Raises `UserError` if the folder has none."""
    if not os.path.isdir(run):
        raise UserError(f"--run {run}: no such folder; give the OUTPUT_DIR of a run of tools/train_net.py")
    if not os.path.isfile(run / CONFIG):
        raise UserError(
            f"--run {run}: it holds no {CONFIG}; give the OUTPUT_DIR of a run of tools/train_net.py"
        )
    return run / CONFIG


def weights_file(run: Path, flag: str) -> Path:
    """Return the `model_final.pth` of a run.

    Args:
        flag: what names another file, `--weights` or a config key, for the message.
    Raises:
        UserError: the run is not finished; names the checkpoints that it has.
    """
    if os.path.isfile(run / FINAL):
        return run / FINAL
    there = [f"{flag} {run / name}" for name in _CHECKPOINTS if os.path.isfile(run / name)]
    remedy = (
        f"continue it with --resume, or use a checkpoint, {' or '.join(there)}"
        if there
        else "it has no checkpoint yet either; start it again"
    )
    raise UserError(f"--run {run}: this run is not finished, it has no {FINAL}: {remedy}")


def read_run(run: Path, *, train_json: Path | None = None) -> tuple[CfgNode, list[Category]]:
    """Return the config of a run's detector, and its categories (`id`, `name`, ...) in the order of its outputs.

    Nothing else is read: neither the training data nor any file outside the folder.

    Args:
        train_json: take the categories from this COCO json instead, for runs that have no `categories.json`.
    Raises:
        UserError: a file is missing or damaged, or the model is not a detector.
    """
    overrides = ["MODEL.INIT", "weights", "MODEL.WEIGHTS", ""]
    cfg = load_config(str(config_file(run)), overrides, need_weights=False)
    count = class_count(cfg)
    if not count:
        raise UserError(
            f"--run {run}: MODEL.META_ARCHITECTURE {cfg.MODEL.META_ARCHITECTURE} does not detect objects of classes; "
            f"give the run of one of {', '.join(kind for kind in CLASS_COUNTS if kind != 'SemanticSegmentor')}"
        )
    categories = _of_json(train_json) if train_json else _of_run(run)
    if len(categories) != count:
        source = f"--train-json {train_json}" if train_json else f"{run / CATEGORIES}"
        raise UserError(f"{source}: it has {len(categories)} categories, but the model of {run} has {count}")
    return cfg, categories


def _of_run(run: Path) -> list[Category]:
    path = run / CATEGORIES
    if not os.path.isfile(path):
        raise UserError(
            f"--run {run}: it has no {CATEGORIES}, so the names of its classes are unknown (an older version wrote "
            "it): name the COCO json that it was trained on by --train-json FILE"
        )
    return _checked(load_json(path), str(path))


def _of_json(path: Path) -> list[Category]:
    """Return the categories of a COCO json in the order of the model's outputs, which is that of their ids."""
    content = read(path).content
    categories = content.get("categories") if isinstance(content, dict) else None
    found = _checked(categories, f"--train-json {path}")
    if len({isinstance(category["id"], str) for category in found}) > 1:
        raise UserError(
            f"--train-json {path}: its category ids are integers and strings; give the file of the run"
        )
    return sorted(found, key=lambda category: category["id"])


def _checked(categories: Any, where: str) -> list[Category]:
    """Return the categories, each once, with printable names. Raises `UserError` if they are not a list of such."""
    if not isinstance(categories, list):
        raise UserError(f"{where}: it has no list of categories")
    found: dict[Any, Category] = {}
    for category in categories:
        if not (
            isinstance(category, dict) and is_id(category.get("id")) and isinstance(category.get("name"), str)
        ):
            raise UserError(f"{where}: a category is {brief(category)}, not an object with an id and a name")
        plain = {**category, "name": label(category["name"])}
        if found.setdefault(category["id"], plain) != plain:
            raise UserError(f"{where}: two categories have the id {brief(category['id'])}")
    return list(found.values())
