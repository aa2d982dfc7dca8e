"""The endless stream of training images, as a pure function of the seed.

detectron2's loader keeps its position in samplers, workers and grouping buffers, which cannot be restored. Here
the image at position p of the stream, and its augmentation, depend only on (seed, p). So a resumed run, and a run
with another number of processes, sees exactly the same images as an uninterrupted one.
"""

import random
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetFromList
from detectron2.data.samplers import RepeatFactorTrainingSampler

from pretrain.common import distributed
from pretrain.common.signals import outlive_the_stop
from transfer.data.datasets import training_records
from transfer.data.mapper import build_mapper

Batch = list[dict[str, Any]]
REFERENCE_GPUS = 8  # on the paper's machine, a batch of 16 is eight pairs, each with one orientation


@dataclass(frozen=True)
class Source:
    """The training images of a config.

    Attributes:
        records: serialised as in detectron2: a list of dicts would be copied into the memory of every worker.
        portrait: (N,) bool; whether each image is higher than wide.
        factors: (N,) how often an epoch shows each image on average, at least 1; None: once.
    """

    records: DatasetFromList
    portrait: np.ndarray
    factors: np.ndarray | None


def read(cfg: CfgNode) -> Source:
    """Read the records of `DATASETS.TRAIN` to train on."""
    records = training_records(cfg)
    factors = None
    if cfg.DATALOADER.SAMPLER_TRAIN == "RepeatFactorTrainingSampler":
        threshold = cfg.DATALOADER.REPEAT_THRESHOLD
        factors = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(
            records, threshold
        ).numpy()
    # records of label images may lack their size; only detectors group images
    portrait = np.array([r.get("height", 0) > r.get("width", 0) for r in records], dtype=bool)
    return Source(DatasetFromList(records, copy=False), portrait, factors)


def batches(source: Source, cfg: CfgNode, start: int) -> Iterator[Batch]:
    """Iterate over this process's share of each total batch from iteration `start` on, in detectron2's input format."""
    loader = torch.utils.data.DataLoader(
        _Mapped(source.records, build_mapper(cfg, is_train=True), cfg.SEED),
        batch_sampler=_Batches(source.portrait, cfg, start, factors=source.factors),
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        collate_fn=list,
        worker_init_fn=start_worker,
    )
    return iter(loader)


def training_batches(cfg: CfgNode, start: int) -> Iterator[Batch]:
    """Return `batches` of `read(cfg)`."""
    return batches(read(cfg), cfg, start)


class _Mapped(torch.utils.data.Dataset):
    """Maps (index, position) to the model's input, with numpy's and Python's generators seeded by the position."""

    def __init__(self, records: Any, mapper: Callable[[dict[str, Any]], dict[str, Any]], seed: int) -> None:
        self.records, self.mapper, self.seed = records, mapper, seed

    def __getitem__(self, item: tuple[int, int]) -> dict[str, Any]:
        index, position = item
        state = np.random.SeedSequence([self.seed, position]).generate_state(4)
        np.random.seed(state)  # detectron2's augmentations draw from the global generators
        random.seed(int(state[0]))
        return self.mapper(self.records[index])


class _Batches(torch.utils.data.Sampler):
    """Endless (index, position) pairs, batch by batch."""

    def __init__(
        self, portrait: np.ndarray, cfg: CfgNode, start: int, *, factors: np.ndarray | None = None
    ) -> None:
        self.portrait, self.seed, self.start, self.factors = portrait, cfg.SEED, start, factors
        self.total = cfg.SOLVER.IMS_PER_BATCH
        self.group = max(1, self.total // REFERENCE_GPUS) if cfg.DATALOADER.ASPECT_RATIO_GROUPING else 1
        if self.total % self.group:
            self.group = 1

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        share = self.total // distributed.world_size()
        mine = slice(distributed.rank() * share, (distributed.rank() + 1) * share)
        groups = self._groups()
        iteration = 0
        while True:
            batch = [item for _ in range(self.total // self.group) for item in next(groups)]
            if iteration >= self.start:
                yield batch[mine]
            iteration += 1

    def _groups(self) -> Iterator[list[tuple[int, int]]]:
        """Yield groups of images of one orientation, in the order in which they fill up."""
        waiting: dict[bool, list[tuple[int, int]]] = {False: [], True: []}
        position = epoch = 0
        while True:
            for index in self._order(epoch):
                group = waiting[bool(self.portrait[index])]
                group.append((index, position))
                position += 1
                if len(group) == self.group:
                    yield group.copy()
                    group.clear()
            epoch += 1

    def _order(self, epoch: int) -> list[int]:
        """Return the shuffled indices of an epoch's images.

        A repeat factor that is not an integer is rounded up with the probability of its fractional part, drawn again
        in each epoch (Gupta et al. 2019, App. B.2; the same as detectron2's sampler).
        """
        random_numbers = np.random.default_rng([self.seed, epoch])
        indices = np.arange(len(self.portrait))
        if self.factors is not None:
            whole = np.floor(self.factors)
            times = whole + (random_numbers.random(len(indices)) < self.factors - whole)
            indices = np.repeat(indices, times.astype(int))
        order: list[int] = random_numbers.permutation(indices).tolist()
        return order


def start_worker(worker: int) -> None:
    """Prepare a loader's worker, in training or in a test: a stop must not end it before the main process does."""
    torch.set_num_threads(1)
    # Ctrl-C reaches workers too, but the iteration or test that it lets end still needs their images.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    outlive_the_stop()
