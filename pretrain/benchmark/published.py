"""MoCo as a plain script trains it, to compare our loop with: written from the papers' text alone.

He et al. 2020, Algorithm 1 and Sec. 3.3, and Chen et al. 2020 for the views, with the habits that such scripts share:
torchvision's transforms on `PIL.Image` in a DataLoader, whose workers send normalised floats; batch norm over the
images of each process, with shuffling by gathering the total batch; a momentum update that visits one parameter after
the other; and the loss read in every step. Network, batch, views, precision and number of loader workers are those of
the config that our loop runs.
"""

from collections.abc import Iterator
from functools import cached_property
from typing import cast

import torch
import torch.distributed as td
import torch.nn.functional as F
from fvcore.common.config import CfgNode
from torch.utils.data import DataLoader, Dataset, RandomSampler

from pretrain.benchmark.views import Pipeline, pillow
from pretrain.common.distributed import world_size
from pretrain.data.folders import Images
from pretrain.data.views import pair_without
from pretrain.model import build, norm

Pair = tuple[torch.Tensor, torch.Tensor]


class PublishedLoop:
    """Both encoders, the queue and the optimizer of a plain script, and its step.

    Args:
        cfg: of our run. MODEL.NORM counts as BN, which is what such scripts have on each GPU.
        bf16: run the encoders under bfloat16 autocast.
    """

    def __init__(self, cfg: CfgNode, device: torch.device, *, bf16: bool) -> None:
        own = cfg.clone()
        own.defrost()
        own.MODEL.NORM = "BN"
        make = build.encoder_maker(own, norm.norm_layer(own, device))
        self.device, self.bf16, self.momentum, self.temperature = device, bf16, cfg.MOCO.M, cfg.MOCO.T
        self.query, self.key = make().to(device), make().to(device)
        self.key.load_state_dict(self.query.state_dict())
        for parameter in self.key.parameters():
            parameter.requires_grad = False
        self.queue = F.normalize(torch.randn(cfg.MODEL.DIM, cfg.MOCO.K), dim=0).to(device)  # (C, K)
        self.place = 0
        self.optimizer = torch.optim.SGD(
            self.query.parameters(),
            lr=cfg.SOLVER.BASE_LR,
            momentum=cfg.SOLVER.MOMENTUM,
            weight_decay=cfg.SOLVER.WEIGHT_DECAY,
        )

    def step(self, views: Pair) -> float:
        """Take one step of Algorithm 1 on query and key images, (N, 3, H, W) floats each; return the loss."""
        query, key = (half.to(self.device, non_blocking=True) for half in views)
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.bf16):
            q = F.normalize(self.query(query), dim=1).float()
            with torch.no_grad():
                k = self._keys(key)
        positive = torch.bmm(q.unsqueeze(1), k.unsqueeze(2)).squeeze(2)  # (N, 1)
        logits = torch.cat([positive, q @ self.queue.clone()], dim=1) / self.temperature  # (N, 1 + K)
        loss = F.cross_entropy(logits, torch.zeros(len(q), dtype=torch.long, device=self.device))
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self._follow()
        self._enqueue(k)
        return loss.item()

    @torch.no_grad()
    def _keys(self, images: torch.Tensor) -> torch.Tensor:
        """Return the keys, (N, C), encoded in shuffled order (Sec. 3.3). One process has the total batch itself."""
        total = _gather(images)
        order = torch.randperm(len(total), device=self.device)
        if world_size() > 1:
            td.broadcast(order, 0)
        own = slice(len(images) * _rank(), len(images) * (_rank() + 1))
        keys = F.normalize(self.key(total[order[own]]), dim=1).float()
        return _gather(keys)[order.argsort()[own]]

    @torch.no_grad()
    def _follow(self) -> None:
        """Move the key encoder (Eqn. 2), one parameter after the other."""
        for slow, fast in zip(self.key.parameters(), self.query.parameters(), strict=True):
            slow.data = self.momentum * slow.data + (1 - self.momentum) * fast.data

    @torch.no_grad()
    def _enqueue(self, keys: torch.Tensor) -> None:
        """Replace the oldest keys. As in most scripts, the queue's length is a multiple of the batch."""
        total = _gather(keys)
        self.queue[:, self.place : self.place + len(total)] = total.T
        self.place = (self.place + len(total)) % self.queue.shape[1]


def _rank() -> int:
    return td.get_rank() if world_size() > 1 else 0


def _gather(local: torch.Tensor) -> torch.Tensor:
    """Return the parts of all processes, one after the other, (N, ...) -> (W * N, ...)."""
    parts = [local]
    if world_size() > 1:
        parts = [torch.empty_like(local) for _ in range(world_size())]
        td.all_gather(parts, local.contiguous())
    return torch.cat(parts)


class _Pairs(Dataset[Pair]):
    """Both views of each image, as normalised (3, H, W) floats."""

    def __init__(self, files: Images, cfg: CfgNode) -> None:
        self.files, self.cfg = files, cfg

    def __len__(self) -> int:
        return len(self.files)

    @cached_property
    def pipeline(self) -> Pipeline:
        """In the worker: a function cannot be sent there by every start method."""
        return pillow(pair_without(self.cfg.INPUT.AUG, self.cfg.INPUT.WITHOUT), self.cfg)

    def __getitem__(self, index: int) -> Pair:
        return cast(Pair, self.pipeline(self.files.read(index)))


def batches(files: Images, cfg: CfgNode, *, workers: int, pinned: bool) -> Iterator[Pair]:
    """Return an iterator over batches of view pairs, in a random order, over more epochs than any measurement takes."""
    pairs = _Pairs(files, cfg)
    loader = DataLoader(
        pairs,
        batch_size=cfg.SOLVER.IMS_PER_BATCH,
        sampler=RandomSampler(pairs, num_samples=1000 * cfg.SOLVER.IMS_PER_BATCH * max(workers, 1)),
        num_workers=workers,
        pin_memory=pinned,
        drop_last=True,
    )
    return iter(loader)
