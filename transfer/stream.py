"""The endless stream of training images, as a pure function of the seed.

detectron2's loader keeps its place in samplers, workers and grouping buffers, which cannot be restored.
Here the image at position p of the stream, and what augmentation does to it, depend on (seed, p) alone: a
resumed run, and a run on another number of processes, sees the images that it would have seen.
"""

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from transfer import d2_compat  # noqa: F401 (first)

# isort: split
from detectron2.config import CfgNode
from detectron2.data import DatasetFromList, DatasetMapper, get_detection_dataset_dicts

from pretrain import dist
from pretrain.errors import UserError

Batch = list[dict[str, Any]]
REFERENCE_GPUS = 8  # the paper's machine: a batch of 16 is eight pairs, each of one orientation


def training_batches(cfg: CfgNode, start: int) -> Iterator[Batch]:
    """This process's share of each total batch, from iteration `start` on, in detectron2's input format."""
    records = get_detection_dataset_dicts(
        list(cfg.DATASETS.TRAIN), filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS
    )
    portrait = np.array([record["height"] > record["width"] for record in records], dtype=bool)
    loader = torch.utils.data.DataLoader(
        # serialised, as detectron2 does: a list of dicts would be copied into every worker's memory
        _Mapped(DatasetFromList(records, copy=False), DatasetMapper(cfg, is_train=True), cfg.SEED),
        batch_sampler=_Batches(portrait, cfg, start),
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        collate_fn=list,
        worker_init_fn=_one_thread,
    )
    return iter(loader)


class _Mapped(torch.utils.data.Dataset):
    """(index, position) -> the mapped record, with numpy's and Python's generators seeded by the position."""

    def __init__(self, records: Any, mapper: DatasetMapper, seed: int) -> None:
        self.records, self.mapper, self.seed = records, mapper, seed

    def __getitem__(self, item: tuple[int, int]) -> dict[str, Any]:
        index, position = item
        state = np.random.SeedSequence([self.seed, position]).generate_state(4)
        np.random.seed(state)  # detectron2's augmentations draw from the global generators
        random.seed(int(state[0]))
        return map_record(self.mapper, self.records[index])


def map_record(mapper: DatasetMapper, record: dict[str, Any]) -> dict[str, Any]:
    """A record as the model takes it. Raises `UserError` that names an image which is broken or not as said."""
    try:
        mapped: dict[str, Any] = mapper(record)
        return mapped
    except (OSError, SyntaxError, ValueError) as error:  # ValueError: detectron2's SizeMismatchError
        reason = " ".join(str(error).split())
        name = record["file_name"]
        raise UserError(f"{name}: not a readable image of the size that its json says: {reason}") from None


class _Batches(torch.utils.data.Sampler):
    """Endless (index, position) pairs, batch by batch."""

    def __init__(self, portrait: np.ndarray, cfg: CfgNode, start: int) -> None:
        self.portrait, self.seed, self.start = portrait, cfg.SEED, start
        self.total = cfg.SOLVER.IMS_PER_BATCH
        self.group = max(1, self.total // REFERENCE_GPUS) if cfg.DATALOADER.ASPECT_RATIO_GROUPING else 1
        if self.total % self.group:
            self.group = 1

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        share = self.total // dist.world_size()
        mine = slice(dist.rank() * share, (dist.rank() + 1) * share)
        groups = self._groups()
        iteration = 0
        while True:
            batch = [item for _ in range(self.total // self.group) for item in next(groups)]
            if iteration >= self.start:
                yield batch[mine]
            iteration += 1

    def _groups(self) -> Iterator[list[tuple[int, int]]]:
        """Groups of images of one orientation, in the order in which they fill up."""
        waiting: dict[bool, list[tuple[int, int]]] = {False: [], True: []}
        position = epoch = 0
        while True:
            order = np.random.default_rng([self.seed, epoch]).permutation(len(self.portrait))
            for index in order.tolist():
                group = waiting[bool(self.portrait[index])]
                group.append((index, position))
                position += 1
                if len(group) == self.group:
                    yield group.copy()
                    group.clear()
            epoch += 1


def _one_thread(worker: int) -> None:
    torch.set_num_threads(1)
