"""Two processes on one GPU. NCCL wants a GPU for each, so they talk over gloo; everything else is as on two GPUs."""

from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.utils.events import EventStorage
from torch import nn

from pretrain.common import distributed
from pretrain.data.on_device import Pixels
from pretrain.model import build, moco, precision
from pretrain.train.step import train_step
from tests.gpu.real import DEVICE, GPU
from tests.gpu.steps import CONFIGS, distance, overrides, raise_eps
from tests.support.contrast_models import BANK, random_numbers, random_views
from transfer import d2_compat
from transfer.train.step import step

pytestmark = GPU
IMAGES = 16
NORMS = {
    "groups": ["MODEL.BN_GROUP_SIZE", "8"],
    "synchronised": ["MODEL.NORM", "SyncBN"],
}
# MoCo v3 has one norm.
CASES = [(kind, norm) for kind in ("v2", "endtoend", "memorybank") for norm in NORMS]
CASES += [(kind, "synchronised") for kind in ("v3", "v3_vit", "v3_chunks")]
RATES = {"v3": "0.02", "v3_vit": "0.0001", "v3_chunks": "0.0001"}


def _pretrain(folder: str) -> None:
    """Two steps of every mechanism on this process's share of the images."""
    from pretrain import config

    distributed.init_from_env(torch.device("cpu"))
    torch.cuda.set_device(DEVICE)
    precision.forbid_tf32()
    for kind, norm in CASES:
        given = overrides(kind, "SOLVER.AMP", "off", "SOLVER.BASE_LR", RATES.get(kind, "0.001"), *NORMS[norm])
        cfg = config.load(CONFIGS[kind], given, processes=distributed.world_size())
        model, optimizer, _ = build.build(cfg, DEVICE, images=BANK, decide=False)
        raise_eps(optimizer)
        pixels = Pixels(cfg.INPUT.MEAN, cfg.INPUT.STD, channels_last=True).to(DEVICE)
        losses = []
        for iteration in range(2):
            query, key = (distributed.local_part(v).to(DEVICE) for v in random_views(IMAGES, iteration))
            numbers = distributed.local_part(random_numbers(IMAGES, iteration)).to(DEVICE)
            metrics = train_step(
                model, optimizer, (query, key), pixels=pixels, images=numbers, iteration=iteration,
                order=moco.key_order(cfg, iteration), chunk=cfg.SOLVER.CHUNK,
            )  # fmt: skip
            losses.append(metrics[0].item())
        state = {key: value.detach().cpu() for key, value in model.state_dict().items()}
        found = {"losses": losses, "state": state}
        torch.save(found, f"{folder}/{kind}_{norm}_{distributed.world_size()}_{distributed.rank()}.pt")
    distributed.barrier()


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process and two leave."""
    folder = tmp_path_factory.mktemp("pretrained")
    _pretrain(str(folder))
    torch.cuda.empty_cache()
    distributed.spawn(_pretrain, 2, (str(folder),))
    return folder


@pytest.mark.parametrize(("kind", "norm"), CASES)
def test_two_processes_equal_one(pretrained: Path, kind: str, norm: str) -> None:
    one, *two = (
        torch.load(pretrained / f"{kind}_{norm}_{processes}_{rank}.pt", weights_only=True)
        for processes, rank in ((1, 0), (2, 0), (2, 1))
    )
    for found in two:
        assert found["losses"] == pytest.approx(one["losses"], rel=1e-3)
        assert distance(one["state"], found["state"]) < 1e-2
    # Batch statistics are shared by the processes of a group only; weights, queue and bank are the same everywhere.
    assert distance(two[0]["state"], two[1]["state"]) == 0


class _Small(nn.Module):
    """One layer with a loss that depends on the batch, as a list of numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3, device=DEVICE))

    def forward(self, batch: list[Any]) -> dict[str, torch.Tensor]:
        values = torch.tensor(batch, device=DEVICE)
        return {"loss_a": (self.weight.sum() * values).mean(), "loss_b": self.weight.square().mean()}


def _finetune(folder: str) -> None:
    from tests.support import detection_data
    from transfer.config.load import load_config

    distributed.init_from_env(torch.device("cpu"))
    torch.cuda.set_device(DEVICE)
    d2_compat.set_local_process_group()
    for parts in ("1", "2"):
        cfg = load_config(
            "transfer/coco_R50_FPN.yaml",
            ["MODEL.INIT", "random", *detection_data.TINY, "MODEL.DEVICE", "cuda", "OUTPUT_DIR", folder,
             "SOLVER.ACCUMULATE", parts, "SOLVER.IMS_PER_BATCH", "4"],
        )  # fmt: skip
        model = d2_compat.distribute(_Small(), broadcast_buffers=False)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        own = [1.0, 2.0] if distributed.rank() == 0 else [3.0, 4.0]
        with EventStorage():
            losses = step(cfg, model, own, optimizer, 0)
        found = {"weight": next(model.parameters()).detach().cpu(), "a": losses["loss_a"].item()}
        torch.save(found, f"{folder}/{parts}_{distributed.rank()}.pt")
    distributed.barrier()


def test_fine_tuning_steps_of_two_processes_by_hand(tmp_path: Path) -> None:
    """DistributedDataParallel over gloo: gradients 2.5 + 2/3 of each weight, and 3 x 2.5 for the loss."""
    distributed.spawn(_finetune, 2, (str(tmp_path),))
    for parts in ("1", "2"):
        for rank in range(2):
            found = torch.load(tmp_path / f"{parts}_{rank}.pt", weights_only=True)
            torch.testing.assert_close(found["weight"], torch.full((3,), 1 - 0.1 * (2.5 + 2 / 3)))
            assert found["a"] == pytest.approx(7.5)
