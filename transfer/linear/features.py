"""Features of central views, computed once and stored on disk; features of random crops, computed on the fly."""

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
from pretrain.common.console import Bar, Pace, say
from pretrain.common.errors import UserError
from pretrain.common.files import write_atomic, write_text
from pretrain.common.signals import Signals
from pretrain.data.class_folders import CentreCrops, LabelledImages, SomeImages, collate_centres
from pretrain.data.loader import Batches, make_loader
from transfer.linear.backbone import Backbone, Extractor
from transfer.linear.crops import RandomCrops, collate_crops

_BATCH = 128  # images per process and step
_VERSION = "2"  # of the views and the file format: increase it to have all features recomputed


class Fixed(NamedTuple):
    """Features of the fixed, central views of all images in a folder.

    Attributes:
        features: (N, C) float32, a memory map. The rows of unreadable images are zero.
        labels: (N,) int64.
        usable: row indices of the readable images.
        unreadable: row indices of the other images.
    """

    features: np.ndarray
    labels: np.ndarray
    usable: np.ndarray
    unreadable: list[int]


class Features(NamedTuple):
    """One batch for the classifiers: features (N, C) float32, labels (N,) int64, and new unreadable images."""

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
    """Return the features of the central views, read from OUTPUT_DIR/features if they were computed before.

    A file is identified by the weights, their preprocessing, the paths, sizes and modification times of the images,
    and INPUT.SIZE. Collective: every process computes its share, and the main process writes the file.

    Args:
        retry: recompute the features if an image that was unreadable before can be read now.
    """
    changed = torch.tensor([images.changed], dtype=torch.float64, device=extract.device)
    # Each machine may have its own copy of the images, with other modification times.
    distributed.copy_from_main([changed])
    identity = f"{_VERSION} {backbone.digest} {images.digest} {int(changed)} {cfg.INPUT.SIZE}"
    path = Path(cfg.OUTPUT_DIR) / "features" / f"{hashlib.sha256(identity.encode()).hexdigest()[:16]}.npy"
    shape = len(images), extract.channels
    stored = _read(path, shape)
    repaired = stored is not None and retry and _any_readable(images, stored[1], size=cfg.INPUT.SIZE)
    if any(distributed.any_process(stored is None, repaired)):
        _compute(path, images, extract, cfg, signals=signals)
    else:
        say(f"{images.name}: using stored features of {len(images)} images from {path}")
    found = _read(path, shape)
    if found is None:
        raise UserError(
            f"OUTPUT_DIR {cfg.OUTPUT_DIR}: {path} cannot be read by every process: put OUTPUT_DIR on storage that all "
            "machines share"
        )
    features, unreadable = found
    usable = np.setdiff1d(np.arange(len(images)), unreadable)
    return Fixed(features, images.labels, usable, unreadable)


def _read(path: Path, shape: tuple[int, int]) -> tuple[np.ndarray, list[int]] | None:
    """Return stored features and unreadable images; None if there are none or the files do not fit or are damaged."""
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
    rows = compute(images, extract, cfg, signals)
    if distributed.is_main():
        _make_folder(path.parent, cfg)
        free = shutil.disk_usage(path.parent).free
        if free < count * channels * 4:
            raise UserError(
                f"OUTPUT_DIR {cfg.OUTPUT_DIR}: {free / 1e9:.1f} GB are free, but the features need "
                f"{count * channels * 4 / 1e9:.1f} GB; choose a folder on a larger disk"
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
    """Write an .npy file row by row, and the list of unreadable images as JSON next to it."""
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


def compute(
    images: LabelledImages | SomeImages, extract: Extractor, cfg: CfgNode, signals: Signals
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield features (n, C) and readability (n,) of all images in order. Process i mod W computes image i."""
    count, processes = len(images.files), distributed.world_size()
    mine = [i % count for i in range(distributed.rank(), -(-count // processes) * processes, processes)]
    batches: Any = [mine[start : start + _BATCH] for start in range(0, len(mine), _BATCH)]
    dataset = CentreCrops(images.files, size=cfg.INPUT.SIZE)
    loader = iter(make_loader(dataset, cfg, batches=batches, device=extract.device, collate=collate_centres))
    left, pace, bar = count, Pace(len(batches)), Bar(len(batches), what="features")
    try:
        pace.begin()
        for pixels, readable in loader:
            own, good = extract(pixels), readable.to(extract.device)
            own = own.where(good[:, None], 0)
            (infinite,) = distributed.any_process(not bool(own.isfinite().all()))
            if infinite:
                raise UserError(
                    f"{images.name}: some features are infinite or NaN: these weights cannot be used"
                )
            features = distributed.all_gather_interleaved(own)[:left].cpu().numpy()
            yield features, distributed.all_gather_interleaved(good.to(torch.uint8))[:left].cpu().numpy() > 0
            left -= len(features)
            pace.end()
            bar.show(pace.done, pace.text())
            pace.begin()
            if any(distributed.any_process(signals.requested)):
                say("stopped; the next run computes the features of this folder from the beginning")
                signals.leave()
    finally:
        bar.close()
        getattr(loader, "_shutdown_workers", lambda: None)()


def random_crops(
    images: LabelledImages, extract: Extractor, cfg: CfgNode, *, start: int, stop: int
) -> Generator[Features, None, None]:
    """Yield this process's share of the batches of iterations `start` to `stop`, with each image cropped at random."""
    crops = RandomCrops(images, size=cfg.INPUT.SIZE, seed=cfg.SEED)
    batches = Batches(len(images), cfg, start=start, stop=stop)
    loader = iter(make_loader(crops, cfg, batches=batches, device=extract.device, collate=collate_crops))
    try:
        for pixels, labels, broken in loader:
            yield Features(extract(pixels), labels.to(extract.device, non_blocking=True), broken)
    finally:
        getattr(loader, "_shutdown_workers", lambda: None)()


def cached(
    known: Fixed, cfg: CfgNode, *, start: int, stop: int, device: torch.device
) -> Generator[Features, None, None]:
    """Yield the same batches, taken from features that were computed before."""
    for pairs in Batches(len(known.usable), cfg, start=start, stop=stop):
        rows = known.usable[[index for _, index in pairs]]
        features, labels = torch.from_numpy(known.features[rows]), torch.from_numpy(known.labels[rows])
        yield Features(features.to(device), labels.to(device), [])
