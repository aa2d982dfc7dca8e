"""The kNN monitor: how often neighbours in feature space share a class, and how many dimensions the features use.

Training itself uses no labels.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from fvcore.common.config import CfgNode

from pretrain.common import distributed
from pretrain.common.console import Counted
from pretrain.common.errors import UserError
from pretrain.data.class_folders import CentreCrops, SpreadImages, collate_centres
from pretrain.data.folders import Endings, class_folders
from pretrain.data.loader import make_loader
from pretrain.data.on_device import Pixels
from pretrain.model.encoders import ResNet
from pretrain.model.vit import ViT

_BATCH = 64


def bank_folder(cfg: CfgNode) -> tuple[str, str]:
    """Return key and folder of the images among which neighbours are searched; an empty folder means no monitor.

    That is KNN.TRAIN or, if empty, the only folder of DATA.TRAIN provided it holds two or more class folders. With
    KNN.PERIOD 0 there is no monitor.
    """
    if not cfg.KNN.PERIOD:
        return "KNN.TRAIN", ""
    endings = Endings(cfg.DATA.ENDINGS)
    if not cfg.KNN.TRAIN and len(cfg.DATA.TRAIN) == 1 and len(class_folders(cfg.DATA.TRAIN[0], endings)) > 1:
        return "DATA.TRAIN", cfg.DATA.TRAIN[0]
    return "KNN.TRAIN", cfg.KNN.TRAIN


class Measured(NamedTuple):
    """What the frozen features tell: kNN accuracy in percent, RankMe, and the largest value that RankMe can have."""

    accuracy: float
    rank: float
    largest: int


class Probe:
    """Weighted kNN on the query encoder's pooled feature, or class token, without the head (Wu et al. 2018).

    The classes of the K nearest neighbours by cosine vote with weights exp(cosine / T). Without KNN.VAL each image
    of the bank (`bank_folder`) is classified by all the others.
    """

    def __init__(self, cfg: CfgNode, pixels: Pixels, *, device: torch.device) -> None:
        self.cfg, self.pixels, self.device = cfg, pixels, device
        limit = cfg.KNN.MAX_IMAGES
        key, folder = bank_folder(cfg)
        endings = Endings(cfg.DATA.ENDINGS if key == "DATA.TRAIN" else ())
        self.train = SpreadImages(folder, key=key, limit=limit, endings=endings)
        self.val = SpreadImages(cfg.KNN.VAL, key="KNN.VAL", limit=limit) if cfg.KNN.VAL else None
        known = sorted(set(self.train.labels))
        unknown = sorted(set(self.val.labels) - set(known)) if self.val else []
        if unknown:
            raise UserError(f"KNN.VAL {cfg.KNN.VAL}: class {unknown[0]} is not in KNN.TRAIN {cfg.KNN.TRAIN}")
        self.number = {name: n for n, name in enumerate(known)}

    @property
    def chance(self) -> float:
        """The accuracy, in percent, of always answering the most frequent class."""
        labels = (self.val or self.train).labels
        return 100 * max(labels.count(name) for name in set(labels)) / len(labels)

    @torch.no_grad()
    def measure(self, encoder: ResNet | ViT, *, bf16: bool) -> Measured:
        """Return kNN accuracy, and RankMe of the bank. Collective; it leaves the encoder in training mode."""
        encoder.eval()
        bank, labels = self._features(encoder, self.train, bf16)
        queries, answers = self._features(encoder, self.val, bf16) if self.val else (bank, labels)
        encoder.train()
        k, temperature = self.cfg.KNN.K, self.cfg.KNN.T
        predicted = knn(
            F.normalize(queries, dim=1), F.normalize(bank, dim=1), labels,
            k=k, temperature=temperature, leave_one_out=self.val is None,
        )  # fmt: skip
        accuracy = 100 * (predicted == answers).float().mean().item()
        return Measured(accuracy, rankme(bank), min(bank.shape))

    def _features(
        self, encoder: ResNet | ViT, images: SpreadImages, bf16: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return features (N, C) and class numbers (N,) of the readable images. Each process does its share."""
        processes, count = distributed.world_size(), len(images.files)
        mine = [i % count for i in range(distributed.rank(), -(-count // processes) * processes, processes)]
        batches: Any = [mine[start : start + _BATCH] for start in range(0, len(mine), _BATCH)]
        dataset = CentreCrops(images.files, size=self.cfg.INPUT.SIZE)
        loader = make_loader(dataset, self.cfg, batches=batches, device=self.device, collate=collate_centres)
        features, readable = [], []
        for batch, good in Counted(loader, "kNN"):
            with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=bf16):
                features.append(encoder.feature(self.pixels(batch.to(self.device))).float())
            readable.append(good.to(self.device, torch.int64))
        total = distributed.all_gather_interleaved(torch.cat(features))[:count]
        good = distributed.all_gather_interleaved(torch.cat(readable))[:count]
        if not good.any():
            raise UserError(
                f"{images.name}: none of the {count} images chosen for kNN can be read: replace or remove them"
            )
        labels = torch.tensor([self.number[name] for name in images.labels], device=self.device)
        return total[good > 0], labels[good > 0]


def knn(
    queries: torch.Tensor,
    bank: torch.Tensor,
    labels: torch.Tensor,
    *,
    k: int,
    temperature: float,
    leave_one_out: bool = False,
) -> torch.Tensor:
    """Return class numbers (Q,) for unit features (Q, C), given a bank (N, C) with `labels` (N,).

    With `leave_one_out`, queries and bank are the same and an image is not a neighbour of itself.
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
        # Scaled so that the largest weight of a row is 1: exp(1 / T) would overflow for a small T.
        weights = ((nearest - nearest[:, :1]) / temperature).exp()
        answers.append(votes.scatter_add_(1, labels[places], weights).argmax(1))
    return torch.cat(answers)


def rankme(features: torch.Tensor) -> float:
    """Return the effective rank of features (N, C): a label-free hint at their quality (RankMe, Garrido et al. 2023).

    It is exp(entropy) of the singular values divided by their sum, between 1, if all features are multiples of one
    vector, and min(N, C), if they use every dimension equally; 0 if all features are zero. The paper has 25,600 images;
    numbers can be compared only for the same images.
    """
    values = features.double()
    gram = values.T @ values if len(values) >= values.shape[1] else values @ values.T
    singular = torch.linalg.eigvalsh(gram).clamp(min=0).sqrt()
    if not singular.any():
        return 0.0
    shares = singular / singular.sum()
    return float(torch.special.entr(shares).sum().exp())
