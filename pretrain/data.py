"""From a folder of images to batches of view pairs, in an order that is a pure function of (seed, epoch)."""

import os
import signal
from collections.abc import Iterator
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from fvcore.common.config import CfgNode
from torch.utils.data import DataLoader, Dataset, Sampler

from pretrain import dist, rng, views
from pretrain.errors import UserError
from pretrain.images import ImageFiles

_REPLACEMENTS = 16  # other images tried in the place of an unreadable one
_NOTHING_LEFT = np.zeros((2, 0), np.float32)
_STRIDE = 7919  # a prime: neighbours in the list may all sit in the same broken folder


class Sample(NamedTuple):
    """Both views of one image.

    Attributes:
        query, key: (size, size, 3) uint8.
        choices: (2, P) float32, what is left to do to them on the device; P is 0 where nothing is.
        image: index of the image that the views are of.
        broken: indices of the images that could not be read on the way to it.
    """

    query: np.ndarray
    key: np.ndarray
    choices: np.ndarray
    image: int
    broken: list[int]


class Batch(NamedTuple):
    """Samples of one process in one iteration: as `Sample`, with N in front; `broken` is of all of them."""

    query: torch.Tensor
    key: torch.Tensor
    choices: torch.Tensor
    images: torch.Tensor
    broken: list[int]


class ViewPairs(Dataset[Sample]):
    """Item (epoch, index) -> both views of image `index` in that epoch.

    An unreadable image is replaced by another one, always the same; 16 failures in a row give blank views.
    """

    def __init__(self, files: ImageFiles, cfg: CfgNode) -> None:
        self.files = files
        self.recipe = views.RECIPES[cfg.INPUT.AUG]
        self.size, self.min_scale, self.seed = cfg.INPUT.SIZE, cfg.INPUT.MIN_SCALE, cfg.SEED

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, item: tuple[int, int]) -> Sample:
        epoch, wanted = item
        broken: list[int] = []
        for attempt in range(_REPLACEMENTS):
            index = (wanted + attempt * _STRIDE) % len(self.files)
            try:
                query, key = views.two_views(
                    self.files.read(index), self.recipe, size=self.size, min_scale=self.min_scale,
                    counters=(self.seed, epoch, index),
                )  # fmt: skip
                return Sample(query, key, _NOTHING_LEFT, index, broken)
            except Exception:  # Pillow's plugins raise a dozen classes on damaged files
                broken.append(index)
        blank = np.zeros((self.size, self.size, 3), np.uint8)
        return Sample(blank, blank, _NOTHING_LEFT, wanted, broken)


class Batches(Sampler[list[tuple[int, int]]]):
    """This process's (epoch, index) pairs of each iteration from `start` to `stop`, over all epochs.

    Epoch e visits the images in a random order of (seed, e) and leaves out what does not fill a batch. Image
    i of the total batch goes to process i mod W.
    """

    def __init__(self, images: int, cfg: CfgNode, *, start: int, stop: int) -> None:
        self.images, self.batch, self.seed = images, cfg.SOLVER.IMS_PER_BATCH, cfg.SEED
        self.start, self.stop = start, stop

    def __len__(self) -> int:
        return self.stop - self.start

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order, order_epoch = np.empty(0), -1
        for iteration in range(self.start, self.stop):
            epoch, step = divmod(iteration, self.images // self.batch)
            if epoch != order_epoch:
                order, order_epoch = epoch_order(self.images, self.seed, epoch), epoch
            total = order[step * self.batch : (step + 1) * self.batch]
            yield [(epoch, int(index)) for index in total[dist.rank() :: dist.world_size()]]


def epoch_order(images: int, seed: int, epoch: int) -> np.ndarray:
    """The order in which an epoch visits the images: a permutation of `images` indices."""
    return rng.generator("order", seed, epoch).permutation(images)


def iterations_per_epoch(images: int, cfg: CfgNode) -> int:
    """Full batches in an epoch. Raises `UserError` when there is not even one."""
    batch = cfg.SOLVER.IMS_PER_BATCH
    if images < batch:
        raise UserError(
            f"SOLVER.IMS_PER_BATCH {batch} is more than the {images} images of DATA.TRAIN: "
            f"use SOLVER.IMS_PER_BATCH {2 ** int(np.log2(images))} or more images"
        )
    return images // batch


def loader(
    dataset: Dataset[Any], cfg: CfgNode, *, batches: Sampler[Any], device: torch.device, collate: Any
) -> DataLoader[Any]:
    """A DataLoader over ready-made batches, with at most as many workers as this machine has processors."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = min(cfg.DATA.NUM_WORKERS, cores)
    return DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=collate,
        pin_memory=device.type == "cuda",
        worker_init_fn=_start_worker,
        prefetch_factor=4 if workers else None,
    )


def train_loader(
    files: ImageFiles, cfg: CfgNode, *, start: int, stop: int, device: torch.device
) -> Iterator[Batch]:
    """The batches of iterations `start` to `stop`; those before `start` are skipped without decoding."""
    batches = Batches(len(files), cfg, start=start, stop=stop)
    return iter(loader(ViewPairs(files, cfg), cfg, batches=batches, device=device, collate=_collate))


def _collate(samples: list[Sample]) -> Batch:
    query, key, choices = (torch.from_numpy(np.stack(part)) for part in list(zip(*samples, strict=True))[:3])
    images = torch.tensor([sample.image for sample in samples])
    return Batch(query, key, choices, images, [index for sample in samples for index in sample.broken])


def _start_worker(_: int) -> None:
    cv2.setNumThreads(0)
    # Ctrl-C and torchrun's signals reach workers too: the main process decides, they end when it does
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


class Broken:
    """Counts the images that could not be read and stops the run when they are too many."""

    def __init__(self, files: ImageFiles, limit: float) -> None:
        self.files, self.limit = files, limit
        self.indices: set[int] = set()

    def add(self, indices: list[int]) -> None:
        """Note the unreadable images of one batch. Raises `UserError` above DATA.MAX_BROKEN."""
        self.indices.update(indices)
        self.check(len(self.indices))

    def check(self, count: int) -> None:
        """Raise `UserError` if `count` images are more than DATA.MAX_BROKEN allows.

        `count` is what one process met, or the mean over processes: in time each of them meets all images.
        """
        if count > self.limit * len(self.files) or count == len(self.files):
            example = self.files[min(self.indices)] if self.indices else "another process's"
            raise UserError(
                f"DATA.MAX_BROKEN {self.limit}: {count} of {len(self.files)} images could not be read so "
                f"far, {example} among them; mend them or raise the limit"
            )

    def report(self) -> list[str]:
        """Lines that list the unreadable files that this process met."""
        names = [self.files[index] for index in sorted(self.indices)]
        return [f"{len(names)} unreadable images were replaced by others:", *names] if names else []
