"""What a run's data were: digests of the annotation files, numbers of images and annotations, the chosen part."""

import hashlib
from functools import lru_cache
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from pretrain.common.files import file_digest
from transfer import catalog


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
