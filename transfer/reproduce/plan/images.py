"""The folders of images, with and without class folders, that pre-training and linear probes read."""

import json
from dataclasses import dataclass
from pathlib import Path

from pretrain.common.errors import UserError
from pretrain.common.files import read_json
from transfer.data.on_disk import check_demo
from transfer.reproduce.plan.tables import data_set


@dataclass(frozen=True)
class Images:
    """Folders of images.

    Attributes:
        unlabelled: for pre-training.
        train, val: folders of class folders, for a linear probe or kNN.
        missing: why they cannot be used: what is not there, and where it comes from; empty if all is there.
        made_of: what determines the images apart from their names, for a set that is made here.
    """

    unlabelled: Path
    train: Path
    val: Path
    missing: str
    made_of: tuple[str, ...] = ()


def images(config: str, root: Path) -> Images:
    """Return the images of a config of pre-training or of the linear probe; `root` is the folder of the data sets."""
    root = root.resolve()
    if data_set(config) == "demo":
        folder = root / "demo_standard"
        pretrain, train, val = (folder / part for part in ("pretrain", "knn/train", "knn/val"))
        state = read_json(folder / "demo.json")
        made_of = json.dumps([state.get("key"), state.get("source")], sort_keys=True)
        return Images(pretrain, train, val, _missing_demo(folder, [pretrain, train, val]), (made_of,))
    train, val = root / "imagenet/train", root / "imagenet/val"
    needed = (train,) if config.startswith("pretrain/") else (train, val)
    gone = next((folder for folder in needed if not folder.is_dir()), None)
    missing = (
        f"{gone}: no such folder; python tools/prepare_data.py imagenet shows how to get it" if gone else ""
    )
    return Images(train, train, val, missing)


def _missing_demo(folder: Path, parts: list[Path]) -> str:
    try:
        check_demo(folder)
    except UserError as error:
        return str(error)
    gone = next((part for part in parts if not part.is_dir()), None)
    return f"{gone}: no such folder; run 'python tools/prepare_data.py demo' again" if gone else ""
