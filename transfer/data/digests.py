"""What a run's data were: digests of the annotation files, numbers of images and annotations, the chosen part."""

import contextlib
import hashlib
import json
import os
from functools import lru_cache
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from pretrain.common.files import file_digest, read_json, write_json
from pretrain.data.folders import is_image
from transfer.data import catalog


def data_record(cfg: CfgNode, *, train: bool = True) -> dict[str, Any]:
    """The data of a prepared config (`datasets.prepare`), for `results.json`. At once if they were loaded before.

    Returns:
        `sets`: data set -> `images`, `annotations`, `sha256` (see `data_digests`);
        `subset`: settings of the part that was trained on, None for all of it.
    """
    sets = {}
    for name, digest in data_digests(cfg, train=train).items():
        images, annotations = catalog.counts(name)
        sets[name] = {"images": images, "annotations": annotations, "sha256": digest}
    return {"sets": sets, "subset": subset(cfg) if train else None}


def data_digests(cfg: CfgNode, *, train: bool = True) -> dict[str, str | None]:
    """Data set -> SHA-256 of its annotation file; where it has many, of their names and sizes. Reads no record.

    None for a data set of which nothing is known. A resumed run must find the same.
    """
    names = dict.fromkeys((*(cfg.DATASETS.TRAIN if train else ()), *cfg.DATASETS.TEST))
    return {name: _digest(cfg, name) for name in names}


def subset(cfg: CfgNode) -> dict[str, Any] | None:
    """The settings that choose a part of the training set, None where it is used whole."""
    data = cfg.DATASETS
    if data.FRACTION == 1 and not data.SHOTS:
        return None
    return {"fraction": float(data.FRACTION), "shots": data.SHOTS, "seed": data.SUBSET_SEED}


def _digest(cfg: CfgNode, name: str) -> str | None:
    metadata = MetadataCatalog.get(name)
    part = catalog.CUSTOM.get(name)
    file = (
        cfg.DATASETS[f"{part}_JSON"] if part else metadata.get("json_file") or metadata.get("panoptic_json")
    )
    if file:
        path = Path(file).expanduser()
        return _of_file(path, path.stat().st_mtime_ns) if path.is_file() else None
    if metadata.get("evaluator_type") == "pascal_voc":
        folder = Path(metadata.dirname)
        names = (folder / "ImageSets" / "Main" / f"{metadata.split}.txt").read_text().split()
        return _of_files([folder / "Annotations" / f"{name}.xml" for name in names], folder)
    for root, pattern in (("sem_seg_root", "*.png"), ("gt_dir", "*/*_gtFine_polygons.json")):
        if metadata.get(root):
            folder = Path(metadata.get(root))
            return _of_files(sorted(folder.glob(pattern)), folder)
    return None


@lru_cache
def _of_file(path: Path, _: int) -> str:
    return file_digest(path)


def _of_files(paths: list[Path], root: Path) -> str:
    """Of the names and sizes of many small files: reading them all would take longer than it tells."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(f"{path.relative_to(root)} {path.stat().st_size if path.exists() else '-'}\n".encode())
    return digest.hexdigest()


def names_digest(folder: Path, cache: Path | None = None) -> str:
    """SHA-256 of the images' names in a folder and in its folders; where it lies does not matter.

    Args:
        folder: one that is gone has the digest that it had at the last look, or none ("").
        cache: JSON file that keeps digests, each with the times at which its folders were changed.
    """
    found, stamp = recall(cache, str(folder)), _stamp(folder)
    if isinstance(found, list) and len(found) == 2 and (stamp is None or found[0] == stamp):
        return str(found[1])
    if stamp is None:
        return ""
    digest = hashlib.sha256()
    for place in _folders(folder):
        names = sorted(name for name in os.listdir(place) if is_image(name) and not name.startswith("."))
        if names:  # not a folder that some program keeps its own files in
            digest.update(json.dumps([place.name if place != folder else "", names]).encode())
    remember(cache, str(folder), [stamp, digest.hexdigest()])
    return digest.hexdigest()


def recall(cache: Path | None, name: str) -> Any:
    """What `remember` has kept under this name; None: nothing."""
    return read_json(cache).get(name) if cache else None


def remember(cache: Path | None, name: str, value: Any) -> None:
    """Keep it in a JSON file, where that can be written."""
    if cache and recall(cache, name) != value:
        with contextlib.suppress(OSError):  # it is made again next time
            cache.parent.mkdir(parents=True, exist_ok=True)
            write_json(cache, {**read_json(cache), name: value})


def _folders(folder: Path) -> list[Path]:
    """The folder itself and those in it, by name."""
    with os.scandir(folder) as entries:
        return [folder, *(folder / name for name in sorted(e.name for e in entries if e.is_dir()))]


def _stamp(folder: Path) -> str | None:
    """Changes with every file that is added to a class folder, removed or renamed. None: there is no such folder."""
    if not folder.is_dir():
        return None
    times = [[place.name, place.stat().st_mtime_ns] for place in _folders(folder)]
    return hashlib.sha256(json.dumps(times).encode()).hexdigest()
