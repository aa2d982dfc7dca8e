"""PreciseBN: the plain average of batch statistics, the same on every process (detectron2 issue 5398)."""

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from pretrain.common import distributed
from pretrain.model import norm
from transfer.train import precise_bn


def _model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1), nn.BatchNorm2d(2)
    )


def _data(count: int) -> list[torch.Tensor]:
    """Return batches of different sizes (2 to 5 images) and spreads."""
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(2 + i % 4, 3, 8, 8, generator=generator) * (i + 1) for i in range(count)]


def _by_hand(batches: list[torch.Tensor]) -> list[torch.Tensor]:
    model = _model()
    first = [model[0](batch) for batch in batches]
    normalised = [nn.functional.batch_norm(x, None, None, training=True) for x in first]
    second = [model[3](model[2](x)) for x in normalised]
    out = []
    for maps in (first, second):
        out.append(torch.stack([x.mean((0, 2, 3)) for x in maps]).mean(0))
        out.append(torch.stack([x.var((0, 2, 3), unbiased=True) for x in maps]).mean(0))
    return out


def _statistics(model: nn.Module) -> list[torch.Tensor]:
    return [b for m in (model[1], model[4]) for b in (m.running_mean, m.running_var)]


def test_equals_the_average_of_batch_statistics() -> None:
    model = _model().train()
    assert precise_bn.update(model, iter(_data(5)), 5) == 2
    for got, expected in zip(_statistics(model), _by_hand(_data(5)), strict=True):
        torch.testing.assert_close(got, expected)
    assert model[1].momentum == 0.1


def test_frozen_layers_and_weights_stay() -> None:
    model = _model().train()
    model[1].eval()
    before = copy.deepcopy(model.state_dict())
    assert precise_bn.update(model, iter(_data(2)), 2) == 1
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"4.running_mean", "4.running_var", "4.num_batches_tracked"}


def _measure(folder: str) -> None:
    distributed.init_from_env(torch.device("cpu"))
    model = _model().train()
    precise_bn.update(model, iter(_data(6)[distributed.rank() :: 2]), 3)
    torch.save(_statistics(model), f"{folder}/{distributed.rank()}.pt")
    synced = norm.convert_sync_batchnorm(nn.SyncBatchNorm.convert_sync_batchnorm(_model())).train()
    precise_bn.update(synced, map(distributed.local_part, _data(3)), 3)
    torch.save(_statistics(synced), f"{folder}/synced{distributed.rank()}.pt")


@pytest.mark.slow
def test_two_processes_agree_with_each_other_and_with_one(tmp_path: Path) -> None:
    distributed.spawn(_measure, 2, (str(tmp_path),))
    # BN: each process has its own batches. SyncBN: each has a part of every batch; the parts may differ in size.
    for name, batches in (("", _data(6)), ("synced", _data(3))):
        ranks = [torch.load(tmp_path / f"{name}{rank}.pt", weights_only=True) for rank in range(2)]
        for first, second, expected in zip(*ranks, _by_hand(batches), strict=True):
            assert torch.equal(first, second)
            torch.testing.assert_close(first, expected)
