"""Weighted kNN classification of frozen features, as in Wu et al. 2018."""

import numpy as np
import torch
import torch.nn.functional as F

from pretrain.common import distributed
from pretrain.train.knn_monitor import knn
from transfer.linear.features import Fixed

_QUERIES = 128  # at a time: their cosines with ImageNet's 1.28 million training images take 0.7 GB


def knn_accuracy(train: Fixed, val: Fixed, *, k: int, temperature: float, device: torch.device) -> float:
    """Return the percentage of validation images whose class wins the vote of their `k` nearest training images.

    A neighbour with cosine similarity s votes with weight exp(s / temperature). Collective: every process classifies
    its share. Each holds all training features on its device (10.5 GB for ImageNet and ResNet-50).
    """
    bank = F.normalize(_rows(train, train.usable, device), dim=1)
    labels = torch.from_numpy(train.labels[train.usable]).to(device)
    mine = np.arange(distributed.rank(), len(val.labels), distributed.world_size())
    right = torch.zeros(1, dtype=torch.float64, device=device)
    for start in range(0, len(mine), _QUERIES):
        rows = mine[start : start + _QUERIES]
        queries = F.normalize(_rows(val, rows, device), dim=1)  # (n, C)
        answers = knn(queries, bank, labels, k=k, temperature=temperature)
        right += (answers.cpu() == torch.from_numpy(val.labels[rows])).sum().to(device)
    distributed.mean_over_processes([right])
    return 100 * distributed.world_size() * right.item() / len(val.labels)


def _rows(known: Fixed, rows: np.ndarray, device: torch.device) -> torch.Tensor:
    return torch.from_numpy(known.features[rows]).to(device)
