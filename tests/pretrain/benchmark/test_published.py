"""The plain script's loop is Algorithm 1: with batch norm over the whole batch it takes the same steps as ours."""

import torch

from pretrain import config
from pretrain.benchmark.published import PublishedLoop, batches
from pretrain.data import sources
from pretrain.data.on_device import Pixels
from pretrain.model import build
from pretrain.train.step import train_step
from tests.support.pretrain_runs import MakeFolder

TINY = [
    "MODEL.ARCH", "resnet18", "MODEL.WIDTH", "0.125", "MODEL.DIM", "8", "MODEL.NORM", "BN", "MOCO.K", "32", "MOCO.M",
    "0.9", "INPUT.SIZE", "32", "SOLVER.IMS_PER_BATCH", "8", "SOLVER.AMP", "off", "DEVICE", "cpu",
]  # fmt: skip
CPU = torch.device("cpu")


def test_it_takes_the_steps_of_ours() -> None:
    """Our loop moves the key encoder before a step, the algorithm after it: one more move makes them equal."""
    cfg = config.load("pretrain/moco_v2_R50.yaml", TINY)
    model, optimizer, _ = build.build(cfg, CPU, images=64, decide=False)
    plain = PublishedLoop(cfg, CPU, bf16=False)
    plain.query.load_state_dict(model.encoder_q.state_dict())
    plain.key.load_state_dict(model.encoder_k.state_dict())
    plain.queue.copy_(model.queue)
    pixels = Pixels(cfg.INPUT.MEAN, cfg.INPUT.STD)
    for _ in range(3):
        query, key = torch.randint(0, 256, (2, 8, 32, 32, 3), dtype=torch.uint8)
        loss = plain.step((pixels(query), pixels(key)))
        metrics = train_step(model, optimizer, (query, key), pixels=pixels)
        torch.testing.assert_close(torch.tensor(loss), metrics[0], rtol=1e-4, atol=1e-4)
    model.before_step()
    torch.testing.assert_close(plain.queue, model.queue, rtol=0, atol=1e-3)
    assert plain.place == int(model.queue_ptr)
    for ours, theirs in ((model.encoder_q, plain.query), (model.encoder_k, plain.key)):
        for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(mine, other, rtol=0, atol=1e-3)


def test_its_batches_are_normalised_pairs_over_many_epochs(image_folder: MakeFolder) -> None:
    cfg = config.load("pretrain/moco_v2_R50.yaml", TINY)
    files = sources.find([str(image_folder(9))])
    loader = batches(files, cfg, workers=0, pinned=False)
    for _ in range(3):  # an epoch has one batch
        query, key = next(loader)
        assert query.shape == key.shape == (8, 3, 32, 32) and query.dtype == torch.float32
        assert not torch.equal(query, key) and query.min() < 0 < query.max()
