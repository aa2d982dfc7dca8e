"""Every pre-training recipe builds at full width and takes a real step."""

import pytest
import torch
import torchvision
from conftest import ROOT

from pretrain import config, moco, norm, run
from pretrain.step import METRICS, Pixels, train_step

CPU = torch.device("cpu")
RECIPES = sorted(p.name for p in (ROOT / "configs/pretrain").glob("*.yaml") if not p.name.startswith("base_"))
SMALL = ["SOLVER.IMS_PER_BATCH", "4", "MODEL.BN_GROUP_SIZE", "2", "MOCO.K", "16"]


@pytest.mark.parametrize("name", RECIPES)
def test_takes_a_step(name: str) -> None:
    cfg = config.load(f"pretrain/{name}", SMALL)
    torch.manual_seed(0)
    model = moco.MoCo(run.encoder_maker(cfg, CPU), dim=cfg.MODEL.DIM, queue_length=16, temperature=cfg.MOCO.T)
    optimizer = torch.optim.SGD(model.encoder_q.parameters(), lr=cfg.SOLVER.BASE_LR)
    views = tuple(torch.randint(0, 256, (4, 64, 64, 3), dtype=torch.uint8) for _ in range(2))
    order = moco.permutation(4, groups=2, seed=0, step=0) if cfg.MODEL.NORM == "ShuffleBN" else None
    before = [p.detach().clone() for p in model.encoder_q.parameters()]
    metrics = train_step(
        model,
        optimizer,
        views,
        pixels=Pixels(cfg.INPUT.MEAN, cfg.INPUT.STD),
        order=order,
        parts=norm.parts(cfg, CPU),
    )
    assert torch.isfinite(metrics).all() and len(metrics) == len(METRICS)
    still = [torch.equal(a, b) for a, b in zip(before, model.encoder_q.parameters(), strict=True)]
    assert not any(still)


@pytest.mark.parametrize(
    ("name", "head"), [("moco_v1_R50", 2048 * 128 + 128), ("moco_v2_R50", 2048 * 2049 + 128 * 2049)]
)
def test_size_is_torchvisions_plus_the_head(name: str, head: int) -> None:
    cfg = config.load(f"pretrain/{name}.yaml")
    with torch.device("meta"):
        encoder = run.encoder_maker(cfg, CPU)()
        reference = torchvision.models.resnet50()
    backbone = sum(p.numel() for key, p in reference.named_parameters() if not key.startswith("fc."))
    assert sum(p.numel() for p in encoder.parameters()) == backbone + head  # 24 M in Table 1, with v1's head
