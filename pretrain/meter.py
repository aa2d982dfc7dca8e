"""The means of what the steps measure, over the steps since the last log line and over all processes."""

import torch

from pretrain.common import distributed
from pretrain.step import METRICS


class Meter:
    """Sums metrics on the device and brings their means to Python when asked: only then the CPU waits for a GPU."""

    def __init__(self, device: torch.device) -> None:
        self.sums, self.steps = torch.zeros(len(METRICS), device=device), 0

    def add(self, metrics: torch.Tensor) -> None:
        """Note METRICS of one step, as `pretrain.step.train_step` returns them."""
        self.sums += metrics
        self.steps += 1

    def is_finite(self) -> bool:
        """Whether all losses since the last `read` were finite; the same in all processes."""
        return bool(self.sums[0].isfinite())  # each is a mean over the processes already

    def read(self) -> dict[str, float]:
        """Means of METRICS; then start anew."""
        means = self.sums / self.steps
        distributed.mean_over_processes([means])
        self.sums, self.steps = torch.zeros_like(self.sums), 0
        return dict(zip(METRICS, means.tolist(), strict=True))
