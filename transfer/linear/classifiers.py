"""Linear classifiers on the same features, one for each learning rate of a sweep."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from fvcore.common.config import CfgNode
from torch import nn

from pretrain.common import distributed, rng

_ROWS = 1024  # images that are tested at a time
INITIAL_STD = 0.01  # of the weights; biases start at 0


class Classifiers:
    """One linear layer per learning rate. They share batches and initial weights; each trains as it would alone.

    Args:
        channels: C, the number of feature channels.
        classes: the number of classes.
        rates: the initial learning rates.
        solver: MOMENTUM, WEIGHT_DECAY, SCHEDULE, STEPS and MAX_EPOCH.
        seed: of the initial weights, which are the same for all layers.
    """

    def __init__(
        self, channels: int, classes: int, *, rates: Sequence[float], solver: CfgNode, seed: int,
        device: torch.device,
    ) -> None:  # fmt: skip
        initial = rng.generator("classifier", seed).normal(0, INITIAL_STD, (classes, channels))
        self.rates, self.solver = list(rates), solver
        self.device = device
        self.layers = [nn.Linear(channels, classes) for _ in rates]
        for layer in self.layers:
            nn.init.zeros_(layer.bias)
            with torch.no_grad():
                layer.weight.copy_(torch.from_numpy(initial))
            layer.to(device)
        self.optimizer = torch.optim.SGD(
            [
                {"params": layer.parameters(), "lr": rate}
                for layer, rate in zip(self.layers, rates, strict=True)
            ],
            momentum=solver.MOMENTUM,
            weight_decay=solver.WEIGHT_DECAY,
        )

    def factor(self, epoch: int) -> float:
        """Return the factor on the initial learning rates in `epoch`, counted from 0."""
        if self.solver.SCHEDULE == "cosine":
            return 0.5 * (1 + math.cos(math.pi * epoch / self.solver.MAX_EPOCH))
        return 0.1 ** sum(epoch >= step for step in self.solver.STEPS)

    def set_rates(self, epoch: int) -> None:
        """Set the learning rates to those of `epoch`, counted from 0."""
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * self.factor(epoch)

    def step(self, features: torch.Tensor, labels: torch.Tensor, *, epoch: int) -> torch.Tensor:
        """Take one SGD step on softmax cross-entropy, averaged over the batch of all processes.

        Args:
            features: (N, C), this process's share of the batch.
            labels: (N,).
        Returns:
            The loss of each of the R classifiers on this share, (R,).
        """
        self.set_rates(epoch)
        losses = torch.stack([F.cross_entropy(layer(features), labels) for layer in self.layers])
        self.optimizer.zero_grad()
        losses.sum().backward()
        distributed.mean_over_processes(
            [p.grad for layer in self.layers for p in layer.parameters() if p.grad is not None]
        )
        self.optimizer.step()
        return losses.detach()

    @torch.no_grad()
    def accuracy(self, features: np.ndarray, labels: np.ndarray) -> list[tuple[float, float]]:
        """Return top-1 and top-5 accuracy of each classifier in percent, for features (N, C) and labels (N,).

        Collective: every process tests its share.
        """
        right = torch.zeros(len(self.layers), 2, dtype=torch.float64, device=self.device)
        mine = np.arange(distributed.rank(), len(labels), distributed.world_size())
        for start in range(0, len(mine), _ROWS):
            rows = mine[start : start + _ROWS]
            known, answers = (torch.from_numpy(part[rows]).to(self.device) for part in (features, labels))
            for n, layer in enumerate(self.layers):
                scores = layer(known)  # (n, classes)
                hits = scores.topk(min(5, scores.shape[1]), dim=1).indices == answers[:, None]
                right[n] += torch.stack([hits[:, 0].sum(), hits.sum()])
        distributed.mean_over_processes([right])
        percent = 100 * distributed.world_size() * right / len(labels)
        return [(top1, top5) for top1, top5 in percent.tolist()]

    def state(self) -> dict[str, Any]:
        """Return weights and momenta."""
        return {
            "layers": [layer.state_dict() for layer in self.layers],
            "optimizer": self.optimizer.state_dict(),
        }
