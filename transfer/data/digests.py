"""A record of the data used by a run: digests of the annotation files, counts, and the chosen part."""

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
from transfer.data import catalog, voc_boxes


def data_record(cfg: CfgNode, *, train: bool = True) -> dict[str, Any]:
    """Return the record of the data of a prepared config (`datasets.prepare`), for `results.json`.

    This loads every set that has not been loaded yet.

    Returns:
        `sets`: data set -> `images`, `annotations`, `sha256` (see `data_digests`);
        `subset`: the settings that chose a part of the training set; None if all of it is used.
    """
    sets = {}
    for name, digest in data_digests(cfg, train=train).items():
        images, annotations = catalog.counts(name)
        sets[name] = {"images": images, "annotations": annotations, "sha256": digest}
    return {"sets": sets, "subset": subset(cfg) if train else None}


def data_digests(cfg: CfgNode, *, train: bool = True) -> dict[str, str | None]:
    """Return data set -> SHA-256 of its annotation file, or of the names and sizes if it has many files.

    The value is None if the annotations of a set are not known. No record is loaded. A resumed run must find the
    same digests.
    """
    names = dict.fromkeys((*(cfg.DATASETS.TRAIN if train else ()), *cfg.DATASETS.TEST))
    return {name: _digest(cfg, name) for name in names}


def subset(cfg: CfgNode) -> dict[str, Any] | None:
    """Return the settings that choose a part of the training set; None if all of it is used."""
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
        names = voc_boxes.names(folder, f"Main/{metadata.split}.txt")
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
    """Return the digest of the names and sizes of many small files: reading all of them would take too long."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(f"{path.relative_to(root)} {path.stat().st_size if path.exists() else '-'}\n".encode())
    return digest.hexdigest()


def names_digest(folder: Path, cache: Path | None = None) -> str:
    """Return the SHA-256 of the names of the images in a folder and its subfolders; its own path does not matter.

    Args:
        folder: if it no longer exists, the cached digest is returned, or "" if there is none.
        cache: a JSON file that stores digests, each with the modification times of its folders.
    """
    found, stamp = recall(cache, str(folder)), _stamp(folder)
    if isinstance(found, list) and len(found) == 2 and (stamp is None or found[0] == stamp):
        return str(found[1])
    if stamp is None:
        return ""
    digest = hashlib.sha256()
    for place in _folders(folder):
        names = sorted(name for name in os.listdir(place) if is_image(name) and not name.startswith("."))
        if names:  # skips folders in which some program keeps its own files
            digest.update(json.dumps([place.name if place != folder else "", names]).encode())
    remember(cache, str(folder), [stamp, digest.hexdigest()])
    return digest.hexdigest()


def recall(cache: Path | None, name: str) -> Any:
    """Return what `remember` stored under this name; None if there is nothing."""
    return read_json(cache).get(name) if cache else None


def remember(cache: Path | None, name: str, value: Any) -> None:
    """Store a value in a JSON file, if that can be written."""
    if cache and recall(cache, name) != value:
        with contextlib.suppress(OSError):  # then the value is computed again next time
            cache.parent.mkdir(parents=True, exist_ok=True)
            write_json(cache, {**read_json(cache), name: value})


def _folders(folder: Path) -> list[Path]:
    """Return the folder itself and its subfolders, sorted by name."""
    with os.scandir(folder) as entries:
        return [folder, *(folder / name for name in sorted(e.name for e in entries if e.is_dir()))]


def _stamp(folder: Path) -> str | None:
    """Return a digest that changes if a file is added, removed or renamed; None if the folder does not exist."""
    if not folder.is_dir():
        return None
    times = [[place.name, place.stat().st_mtime_ns] for place in _folders(folder)]
    return hashlib.sha256(json.dumps(times).encode()).hexdigest()
