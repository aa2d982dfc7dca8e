"""kNN monitor: how well neighbours in feature space share a class, while no label is used for training."""

import os
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from fvcore.common.config import CfgNode
from torch.utils.data import Dataset

from pretrain import data
from pretrain.common import distributed
from pretrain.common.errors import UserError
from pretrain.decode import centre_view
from pretrain.encoders import ResNet
from pretrain.images import ImageFiles, class_folders, find_images
from pretrain.step import Pixels

_BATCH = 64


class ClassFolders:
    """Images in folders named after their classes: an evenly spread choice of `limit`, or of all if these are fewer.

    A class that the choice passes over adds its first image.
    """

    def __init__(self, folder: str, *, key: str, limit: int) -> None:
        self.name = f"{key} {folder}"
        files = find_images([folder], key=key)
        start = len(os.path.join(folder, ""))
        first: dict[str, int] = {}
        for index, path in enumerate(files):
            name, *inside = path[start:].split(os.sep, 1)
            if not inside:
                raise UserError(f"{self.name}: must hold one folder for each class, and no image beside them")
            first.setdefault(name, index)
        chosen = set(np.linspace(0, len(files) - 1, min(limit, len(files))).round().astype(int).tolist())
        seen = {files[index][start:].split(os.sep, 1)[0] for index in chosen}
        chosen |= {index for name, index in first.items() if name not in seen}
        self.files = ImageFiles([files[index] for index in sorted(chosen)])
        self.labels = [path[start:].split(os.sep, 1)[0] for path in self.files]


def bank_folder(cfg: CfgNode) -> tuple[str, str]:
    """Key and folder of the images among which neighbours are sought; an empty folder means no monitor.

    It is KNN.TRAIN; where that is empty, the one folder of DATA.TRAIN if two or more class folders make it up.
    With KNN.PERIOD 0 there is none.
    """
    if not cfg.KNN.PERIOD:
        return "KNN.TRAIN", ""
    if not cfg.KNN.TRAIN and len(cfg.DATA.TRAIN) == 1 and len(class_folders(cfg.DATA.TRAIN[0])) > 1:
        return "DATA.TRAIN", cfg.DATA.TRAIN[0]
    return "KNN.TRAIN", cfg.KNN.TRAIN


class Probe:
    """Weighted kNN on the pooled feature of the query encoder, without the head (Wu et al. 2018).

    The classes of the K nearest neighbours by cosine vote with weights exp(cosine / T). With no KNN.VAL each
    image of the bank (`bank_folder`) is classified by all others.
    """

    def __init__(self, cfg: CfgNode, pixels: Pixels, *, device: torch.device) -> None:
        self.cfg, self.pixels, self.device = cfg, pixels, device
        limit = cfg.KNN.MAX_IMAGES
        key, folder = bank_folder(cfg)
        self.train = ClassFolders(folder, key=key, limit=limit)
        self.val = ClassFolders(cfg.KNN.VAL, key="KNN.VAL", limit=limit) if cfg.KNN.VAL else None
        known = sorted(set(self.train.labels))
        unknown = sorted(set(self.val.labels) - set(known)) if self.val else []
        if unknown:
            raise UserError(f"KNN.VAL {cfg.KNN.VAL}: class {unknown[0]} is not in KNN.TRAIN {cfg.KNN.TRAIN}")
        self.number = {name: n for n, name in enumerate(known)}

    @property
    def chance(self) -> float:
        """Share of the images that the most frequent class answers rightly, in percent."""
        labels = (self.val or self.train).labels
        return 100 * max(labels.count(name) for name in set(labels)) / len(labels)

    @torch.no_grad()
    def measure(self, encoder: ResNet, *, bf16: bool) -> float:
        """Accuracy in percent. Every process calls this; the encoder comes back in training mode."""
        encoder.eval()
        bank, labels = self._features(encoder, self.train, bf16)
        queries, answers = self._features(encoder, self.val, bf16) if self.val else (bank, labels)
        encoder.train()
        k, temperature = self.cfg.KNN.K, self.cfg.KNN.T
        predicted = knn(queries, bank, labels, k=k, temperature=temperature, leave_one_out=self.val is None)
        return 100 * (predicted == answers).float().mean().item()

    def _features(
        self, encoder: ResNet, images: ClassFolders, bf16: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Unit features (N, C) and class numbers (N,) of the readable images; each process does its share."""
        processes, count = distributed.world_size(), len(images.files)
        mine = [i % count for i in range(distributed.rank(), -(-count // processes) * processes, processes)]
        batches: Any = [mine[start : start + _BATCH] for start in range(0, len(mine), _BATCH)]
        dataset = _Centres(images.files, self.cfg.INPUT.SIZE)
        loader = data.loader(dataset, self.cfg, batches=batches, device=self.device, collate=_collate)
        features, readable = [], []
        for batch, good in loader:
            with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=bf16):
                maps = encoder.features(self.pixels(batch.to(self.device)))["res5"]
            features.append(F.normalize(maps.float().mean((2, 3)), dim=1))
            readable.append(good.to(self.device))
        total = distributed.all_gather_interleaved(torch.cat(features))[:count]
        good = distributed.all_gather_interleaved(torch.cat(readable))[:count]
        if not good.any():
            raise UserError(
                f"{images.name}: none of the {count} images chosen for kNN can be read; mend them"
            )
        labels = torch.tensor([self.number[name] for name in images.labels], device=self.device)
        return total[good > 0], labels[good > 0]


class _Centres(Dataset[tuple[np.ndarray, int]]):
    def __init__(self, files: ImageFiles, size: int) -> None:
        self.files, self.size = files, size

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        try:
            return centre_view(self.files.read(index), self.size), 1
        except Exception:  # as in ViewPairs
            return np.zeros((self.size, self.size, 3), np.uint8), 0


def _collate(samples: list[tuple[np.ndarray, int]]) -> tuple[torch.Tensor, torch.Tensor]:
    images = torch.from_numpy(np.stack([image for image, _ in samples]))
    return images, torch.tensor([good for _, good in samples])


def knn(
    queries: torch.Tensor,
    bank: torch.Tensor,
    labels: torch.Tensor,
    *,
    k: int,
    temperature: float,
    leave_one_out: bool = False,
) -> torch.Tensor:
    """Class numbers (Q,) of unit features (Q, C) from those (N, C) with `labels` (N,).

    With `leave_one_out`, queries and bank are the same and an image is no neighbour of its own.
    """
    k, classes = min(k, len(bank) - leave_one_out), int(labels.max()) + 1
    answers = []
    for start in range(0, len(queries), 1024):
        similarity = queries[start : start + 1024] @ bank.T
        if leave_one_out:
            rows = torch.arange(len(similarity), device=bank.device)
            similarity[rows, start + rows] = -torch.inf
        nearest, places = similarity.topk(k, dim=1)
        votes = torch.zeros(len(similarity), classes, device=bank.device)
        # the largest weight of each row becomes 1: exp(1 / T) would overflow for a small T
        weights = ((nearest - nearest[:, :1]) / temperature).exp()
        answers.append(votes.scatter_add_(1, labels[places], weights).argmax(1))
    return torch.cat(answers)
