"""Batches of view pairs from images, in an order that is a pure function of (seed, epoch)."""

import functools
import gc
import os
import signal
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from fvcore.common.config import CfgNode
from torch.utils.data import DataLoader, Dataset, Sampler

from pretrain.common import distributed
from pretrain.common.errors import UserError
from pretrain.common.pool import lacks_handles
from pretrain.common.signals import outlive_the_stop
from pretrain.data import views
from pretrain.data.broken_images import attempts
from pretrain.data.folders import Images, Order, permutation


class Sample(NamedTuple):
    """Both views of one image.

    Attributes:
        query, key: (size, size, 3) uint8.
        choices: (2, P) float32, the operations left for the device; P is 0 if there are none.
        image: index of the image that the views show.
        broken: indices of the unreadable images that this one replaces.
    """

    query: np.ndarray
    key: np.ndarray
    choices: np.ndarray
    image: int
    broken: list[int]


class Batch(NamedTuple):
    """The samples of one process in one iteration, with a first dimension N; `broken` is the union over them."""

    query: torch.Tensor
    key: torch.Tensor
    choices: torch.Tensor
    images: torch.Tensor
    broken: list[int]


class ViewPairs(Dataset[Sample]):
    """Map (epoch, index) to both views of image `index` in that epoch.

    An unreadable image is replaced by another one, always the same. After 16 failures in a row, or once all images have
    failed, the views are blank.
    """

    def __init__(self, files: Images, cfg: CfgNode) -> None:
        self.files = files
        self.recipes = views.pair_without(cfg.INPUT.AUG, cfg.INPUT.WITHOUT)
        self.geometry_only = cfg.INPUT.VIEWS == "gpu"
        self.size, self.min_scale, self.seed = cfg.INPUT.SIZE, cfg.INPUT.MIN_SCALE, cfg.SEED

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, item: tuple[int, int]) -> Sample:
        epoch, wanted = item
        broken: list[int] = []
        for index in attempts(wanted, len(self.files)):
            try:
                query, key, choices = views.two_views(
                    self.files.read(index), self.recipes, size=self.size, min_scale=self.min_scale,
                    counters=(self.seed, epoch, index), geometry_only=self.geometry_only,
                )  # fmt: skip
                return Sample(query, key, choices, index, broken)
            except UserError:  # a whole shard is damaged, not a single image
                raise
            except Exception as error:  # Pillow raises many different classes on damaged files
                if lacks_handles(error):
                    raise
                broken.append(index)
        blank = np.zeros((self.size, self.size, 3), np.uint8)
        return Sample(blank, blank, views.nothing_left(self.geometry_only), wanted, broken)


class Batches(Sampler[list[tuple[int, int]]]):
    """This process's (epoch, index) pairs for each iteration from `start` to `stop`, across epochs.

    The order of epoch e depends on (seed, e); a last incomplete batch is dropped. Image i of the total batch goes to
    process i mod W.

    Args:
        images: number of images.
        order: function (seed, epoch) -> order, such as `Images.order`; a random permutation by default.
    """

    def __init__(
        self,
        images: int,
        cfg: CfgNode,
        *,
        start: int,
        stop: int,
        order: Callable[[int, int], Order] | None = None,
    ) -> None:
        self.images, self.batch, self.seed = images, cfg.SOLVER.IMS_PER_BATCH, cfg.SEED
        self.start, self.stop = start, stop
        self.order = order or functools.partial(permutation, images)

    def __len__(self) -> int:
        return self.stop - self.start

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order, order_epoch = self.order(self.seed, 0), 0
        for iteration in range(self.start, self.stop):
            epoch, step = divmod(iteration, self.images // self.batch)
            if epoch != order_epoch:
                order, order_epoch = self.order(self.seed, epoch), epoch
            total = order[step * self.batch : (step + 1) * self.batch]
            yield [(epoch, int(index)) for index in total[distributed.rank() :: distributed.world_size()]]


def iterations_per_epoch(images: int, cfg: CfgNode) -> int:
    """Return the number of full batches in an epoch. Raises `UserError` if there is none."""
    batch = cfg.SOLVER.IMS_PER_BATCH
    if images < batch:
        raise UserError(
            f"SOLVER.IMS_PER_BATCH {batch} is more than the {images} images of DATA.TRAIN: "
            f"use SOLVER.IMS_PER_BATCH {2 ** int(np.log2(images))} or more images"
        )
    return images // batch


def usable_workers(cfg: CfgNode) -> int:
    """Return DATA.NUM_WORKERS, or the number of this machine's CPU cores if that is smaller."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(int(cfg.DATA.NUM_WORKERS), cores)


def make_loader(
    dataset: Dataset[Any], cfg: CfgNode, *, batches: Sampler[Any], device: torch.device, collate: Any
) -> DataLoader[Any]:
    """Return a DataLoader over ready-made batches, with at most as many workers as this machine has CPU cores."""
    workers = usable_workers(cfg)
    return DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=collate,
        pin_memory=device.type == "cuda",
        worker_init_fn=_start_worker,
        prefetch_factor=4 if workers else None,
    )


def make_train_loader(
    files: Images, cfg: CfgNode, *, start: int, stop: int, device: torch.device
) -> Iterator[Batch]:
    """Return an iterator over the batches from `start` to `stop`; earlier ones are skipped without decoding."""
    batches = Batches(len(files), cfg, start=start, stop=stop, order=files.order)
    return iter(make_loader(ViewPairs(files, cfg), cfg, batches=batches, device=device, collate=_collate))


def _collate(samples: list[Sample]) -> Batch:
    query, key, choices = (torch.from_numpy(np.stack(part)) for part in list(zip(*samples, strict=True))[:3])
    images = torch.tensor([sample.image for sample in samples])
    return Batch(query, key, choices, images, [index for sample in samples for index in sample.broken])


def _start_worker(_: int) -> None:
    cv2.setNumThreads(0)
    gc.freeze()  # garbage collection would touch, and so copy, all objects of the main process (80 MB)
    # Ctrl-C and torchrun's signals reach workers too, but the main process handles them and ends its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    outlive_the_stop()
