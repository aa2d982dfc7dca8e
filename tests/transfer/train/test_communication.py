"""The bytes that a step of fine-tuning sends, counted in two and four processes; the formulas of docs/scaling.md."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as td
from torch import nn

from pretrain.common import distributed
from pretrain.model.norm import SyncBatchNorm
from tests.pretrain.train.test_communication import counted
from transfer import d2_compat
from transfer.config.load import default_config
from transfer.train.step import step

CHANNELS = 6
LOSSES = ("loss_a", "loss_b", "loss_c")


class Detector(nn.Module):
    """A layer of each kind that has traffic, and named losses as those of detectron2's models."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, CHANNELS, 3, bias=False), SyncBatchNorm(CHANNELS))

    def forward(self, batch: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        output = self.layers(torch.stack([each["image"] for each in batch])).square().mean()
        return {name: output / number for number, name in enumerate(LOSSES, 1)}


def count_step(folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_from_env(torch.device("cpu"))
    cfg = default_config()
    cfg.MODEL.DEVICE, reduced = "cpu", []
    model = Detector()
    parallel = d2_compat.distribute(model, broadcast_buffers=False)

    def note(_: object, bucket: td.GradBucket) -> torch.futures.Future[torch.Tensor]:
        """Stands in for the all-reduce, which DistributedDataParallel calls in C++."""
        reduced.append(bucket.buffer().nbytes)
        done: torch.futures.Future[torch.Tensor] = torch.futures.Future()
        done.set_result(bucket.buffer())
        return done

    parallel.register_comm_hook(None, note)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with counted() as spent:
        step(cfg, parallel, [{"image": torch.rand(3, 8, 8)} for _ in range(2)], optimizer, 0)
        distributed.any_process(False, False)  # as the loop does after each step
    if distributed.rank() == 0:
        content = {**spent, "gradients": reduced, "weights": sum(p.numel() for p in model.parameters())}
        Path(folder, "spent.json").write_text(json.dumps(content))


@pytest.mark.parametrize("processes", [2, 4])
def test_a_step_sends_what_the_formulas_say(tmp_path: Path, processes: int) -> None:
    distributed.spawn(count_step, processes, (str(tmp_path),))
    found = json.loads((tmp_path / "spent.json").read_text())
    assert found["weights"] == 3 * CHANNELS * 9 + 2 * CHANNELS
    assert sum(found["gradients"]) == 4 * found["weights"]
    assert found["all_gather"] == [4 * (2 * CHANNELS + 1)]
    assert sorted(found["all_reduce"]) == sorted([8 * CHANNELS, 4 * len(LOSSES), 2])
