"""Features of fixed views, computed once and kept on disk; features of random crops, computed as they come."""

import hashlib
import json
import shutil
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import torch
from fvcore.common.config import CfgNode

from pretrain.common import distributed
from pretrain.common.console import say
from pretrain.common.errors import UserError
from pretrain.common.files import write_atomic, write_text
from pretrain.common.signals import Signals
from pretrain.data.class_folders import CentreCrops, LabelledImages, collate_centres
from pretrain.data.loader import Batches, make_loader
from transfer.linear.backbone import Backbone, Extractor
from transfer.linear.crops import RandomCrops, collate_crops

_BATCH = 128  # images of one process at a time
_VERSION = "1"  # of the views and the file: another number makes all files be computed anew


class Fixed(NamedTuple):
    """Features of the central views of all images of a folder.

    Attributes:
        features: (N, C) float32, a memory map; rows of unreadable images are zero.
        labels: (N,) int64.
        usable: indices of the rows of readable images.
        unreadable: indices of the others.
    """

    features: np.ndarray
    labels: np.ndarray
    usable: np.ndarray
    unreadable: list[int]


class Features(NamedTuple):
    """What the classifiers are trained on: (N, C) float32, (N,) int64, indices of unreadable images met."""

    features: torch.Tensor
    labels: torch.Tensor
    broken: list[int]


def fixed(
    images: LabelledImages,
    backbone: Backbone,
    extract: Extractor,
    cfg: CfgNode,
    *,
    signals: Signals,
    retry: bool,
) -> Fixed:
    """The central views' features, from OUTPUT_DIR/features where the same ones were computed before.

    A file belongs to the weights, their preprocessing, the images' paths, sizes and times of change, and INPUT.SIZE.
    Every process calls this and computes its share; the main one writes.

    Args:
        retry: compute them anew where an image that could not be read before can be read now.
    """
    changed = torch.tensor([images.changed], dtype=torch.float64, device=extract.device)
    distributed.copy_from_main([changed])  # machines may have copies of the images, of other times
    identity = f"{_VERSION} {backbone.digest} {images.digest} {int(changed)} {cfg.INPUT.SIZE}"
    path = Path(cfg.OUTPUT_DIR) / "features" / f"{hashlib.sha256(identity.encode()).hexdigest()[:16]}.npy"
    shape = len(images), extract.channels
    known = _read(path, shape)
    mended = known is not None and retry and _any_readable(images, known[1], size=cfg.INPUT.SIZE)
    if any(distributed.any_process(known is None, mended)):
        _compute(path, images, extract, cfg, signals=signals)
    else:
        say(f"{images.name}: features of {len(images)} images are in {path}")
    found = _read(path, shape)
    if found is None:
        raise UserError(f"OUTPUT_DIR {cfg.OUTPUT_DIR}: put it on storage that all machines share")
    features, unreadable = found
    usable = np.setdiff1d(np.arange(len(images)), unreadable)
    return Fixed(features, images.labels, usable, unreadable)


def _read(path: Path, shape: tuple[int, int]) -> tuple[np.ndarray, list[int]] | None:
    """Features and unreadable images; None where there are none, or none that this could have written."""
    try:
        features = np.load(path, mmap_mode="r")
        unreadable = json.loads(path.with_suffix(".json").read_text())["unreadable"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    right = features.shape == shape and features.dtype == np.float32 and isinstance(unreadable, list)
    return (features, unreadable) if right else None


def _any_readable(images: LabelledImages, indices: list[int], *, size: int) -> bool:
    crops = CentreCrops(images.files, size=size)
    return any(crops[index][1] for index in indices)


def _compute(
    path: Path, images: LabelledImages, extract: Extractor, cfg: CfgNode, *, signals: Signals
) -> None:
    count, channels = len(images), extract.channels
    say(f"{images.name}: computing features of {count} images ({count * channels * 4 / 1e6:.0f} MB) ...")
    rows = _rows(images, extract, cfg, signals)
    if distributed.is_main():
        _make_folder(path.parent, cfg)
        free = shutil.disk_usage(path.parent).free
        if free < count * channels * 4:
            raise UserError(
                f"OUTPUT_DIR {cfg.OUTPUT_DIR}: {free / 1e9:.1f} GB are free, the features take "
                f"{count * channels * 4 / 1e9:.1f} GB; name a larger disk"
            )
        write_atomic(path, lambda file: _write(file, rows, path, images, channels))
    else:
        for _ in rows:
            pass
    distributed.barrier()


def _make_folder(folder: Path, cfg: CfgNode) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"OUTPUT_DIR {cfg.OUTPUT_DIR}: cannot be written: {error.strerror or error}; name another folder"
        ) from error


def _write(
    file: IO[bytes],
    rows: Iterator[tuple[np.ndarray, np.ndarray]],
    path: Path,
    images: LabelledImages,
    channels: int,
) -> None:
    """An .npy file, row by row, and the list of unreadable images beside it."""
    header: dict[str, Any] = {"descr": "<f4", "fortran_order": False, "shape": (len(images), channels)}
    np.lib.format.write_array_header_1_0(file, header)
    unreadable: list[int] = []
    start = 0
    for features, good in rows:
        unreadable += (start + np.flatnonzero(~good)).tolist()
        file.write(features.astype("<f4").tobytes())
        start += len(good)
    text = json.dumps({"images": images.folder, "unreadable": unreadable})
    write_text(path.with_suffix(".json"), text)


def _rows(
    images: LabelledImages, extract: Extractor, cfg: CfgNode, signals: Signals
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Features (n, C) and readability (n,) of all images in order; image i is computed by process i mod W."""
    count, processes = len(images), distributed.world_size()
    mine = [i % count for i in range(distributed.rank(), -(-count // processes) * processes, processes)]
    batches: Any = [mine[start : start + _BATCH] for start in range(0, len(mine), _BATCH)]
    dataset = CentreCrops(images.files, size=cfg.INPUT.SIZE)
    loader = iter(make_loader(dataset, cfg, batches=batches, device=extract.device, collate=collate_centres))
    left = count
    try:
        for pixels, readable in loader:
            own, good = extract(pixels), readable.to(extract.device)
            own = own.where(good[:, None], 0)
            (infinite,) = distributed.any_process(not bool(own.isfinite().all()))
            if infinite:
                raise UserError(f"{images.name}: features are infinite or NaN: the weights are of no use")
            features = distributed.all_gather_interleaved(own)[:left].cpu().numpy()
            yield features, distributed.all_gather_interleaved(good.to(torch.uint8))[:left].cpu().numpy() > 0
            left -= len(features)
            if any(distributed.any_process(signals.requested)):
                say("stopped; features of this folder are computed from the start next time")
                signals.leave()
    finally:
        getattr(loader, "_shutdown_workers", lambda: None)()


def random_crops(
    images: LabelledImages, extract: Extractor, cfg: CfgNode, *, start: int, stop: int
) -> Generator[Features, None, None]:
    """This process's share of the batches of iterations `start` to `stop`, each image cropped at random."""
    crops = RandomCrops(images, size=cfg.INPUT.SIZE, seed=cfg.SEED)
    batches = Batches(len(images), cfg, start=start, stop=stop)
    loader = iter(make_loader(crops, cfg, batches=batches, device=extract.device, collate=collate_crops))
    try:
        for pixels, labels, broken in loader:
            yield Features(extract(pixels), labels.to(extract.device, non_blocking=True), broken)
    finally:  # as in pretrain.train.loop
        getattr(loader, "_shutdown_workers", lambda: None)()


def cached(
    known: Fixed, cfg: CfgNode, *, start: int, stop: int, device: torch.device
) -> Generator[Features, None, None]:
    """The same batches of features that are there already."""
    for pairs in Batches(len(known.usable), cfg, start=start, stop=stop):
        rows = known.usable[[index for _, index in pairs]]
        features, labels = torch.from_numpy(known.features[rows]), torch.from_numpy(known.labels[rows])
        yield Features(features.to(device), labels.to(device), [])
