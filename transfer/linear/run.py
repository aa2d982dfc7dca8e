"""Linear classification of frozen features: the protocol of He et al. 2020, Sec. 4.1.

Weights are frozen, batch norm uses its running statistics, and a linear classifier with softmax is trained on the
global average of `res5`; accuracy is that of the central crop of the validation images, after the last epoch.
"""

import time
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from fvcore.common.config import CfgNode

from pretrain.common import distributed
from pretrain.common.configs import digest_text
from pretrain.common.console import say
from pretrain.common.errors import UserError
from pretrain.common.files import write_text
from pretrain.common.signals import Signals
from pretrain.data.broken_images import Broken
from pretrain.data.class_folders import LabelledImages
from pretrain.data.loader import iterations_per_epoch
from pretrain.train.knn_monitor import knn
from transfer.convert.preprocessing import describe_input
from transfer.linear import backbone as linear_backbone
from transfer.linear import (
    features,
    loop,  # fmt: skip
    results,
)
from transfer.linear import state as linear_state
from transfer.linear.backbone import Backbone, Extractor
from transfer.linear.classifiers import Classifiers
from transfer.linear.config import defaults, rates
from transfer.linear.crops import check_classes, check_separate
from transfer.linear.features import Fixed

_QUERIES = 128  # at a time: their cosines with ImageNet's 1.28 million training images take 0.7 GB


@dataclass
class Probe:
    """Everything that a probe needs, before anything is computed."""

    cfg: CfgNode
    weights: str
    backbone: Backbone
    train: LabelledImages
    val: LabelledImages
    device: torch.device
    began: float = field(default_factory=time.perf_counter)

    @property
    def folder(self) -> Path:
        return Path(self.cfg.OUTPUT_DIR)

    @property
    def origin(self) -> dict[str, str]:
        """Digests of what a run starts from: a resumed one must have the same."""
        digests = (self.backbone.digest, self.train.digest, self.val.digest)
        return dict(zip(("--weights", "DATA.TRAIN", "DATA.VAL"), digests, strict=True))


def run(
    cfg: CfgNode,
    weights: str,
    *,
    knn: bool = False,
    resume: bool = False,
    source: str = "auto",
    branch: str = "",
) -> None:
    """Probe `weights` (a file, or `random`); leaves results in OUTPUT_DIR. Call it in every process.

    Args:
        knn: weighted kNN in the place of the classifier.
        resume: go on with an interrupted run of OUTPUT_DIR.
        source, branch: as of `tools/convert_to_d2.py`.
    Raises:
        UserError: what the user can mend.
        SystemExit: with `stop.STOPPED`, after SIGTERM or SIGUSR1, when the state has been saved.
    """
    stored = None if knn else linear_state.find(cfg, resume=resume)
    probe = _set_up(cfg, weights, source=source, branch=branch)
    if distributed.is_main():
        linear_state.remove_leftovers(probe.folder)
    extract = Extractor(probe.backbone, probe.device)
    if knn:
        _measure_knn(probe, extract)
        return
    with Signals() as signals:
        _train(probe, extract, stored, signals)


def _set_up(cfg: CfgNode, weights: str, *, source: str, branch: str) -> Probe:
    device = distributed.pick_device(cfg.DEVICE)
    train, val = (LabelledImages(cfg.DATA[part], key=f"DATA.{part}") for part in ("TRAIN", "VAL"))
    check_classes(train, val)
    check_separate(train, val)
    backbone = linear_backbone.load(weights, cfg, source=source, branch=branch)
    own = torch.tensor([[int(d[:8], 16) for d in (train.digest, val.digest, backbone.digest)]], device=device)
    if (
        len(distributed.all_gather_interleaved(own).unique(dim=0)) > 1
    ):  # they would wait for each other for ever
        raise UserError(
            "the processes see different images (DATA.TRAIN, DATA.VAL) or weights: put them on storage that all "
            "machines share"
        )
    name = linear_backbone.describe_architecture(backbone.architecture)
    say(f"weights: {weights}: {name}, {backbone.what}")
    say(f"input: {describe_input(backbone.input)}; {cfg.INPUT.SIZE} pixels")
    say(
        f"data: {len(train)} images of {len(train.classes)} classes to train on, {len(val)} to test on; "
        f"{distributed.world_size()} process(es) on {device.type}"
    )
    return Probe(cfg, weights, backbone, train, val, device)


def _fixed(
    probe: Probe, extract: Extractor, images: LabelledImages, signals: Signals, *, retry: bool = True
) -> features.Fixed:
    """Features of the central views. Raises `UserError` for unreadable images among those of the test."""
    known = features.fixed(images, probe.backbone, extract, probe.cfg, signals=signals, retry=retry)
    if known.unreadable and images is probe.val:
        raise UserError(
            f"{images.name}: {len(known.unreadable)} images cannot be read, the first is "
            f"{images.files[known.unreadable[0]]}: accuracy is that of all images; mend or remove them"
        )
    return known


def _measure_knn(probe: Probe, extract: Extractor) -> None:
    cfg = probe.cfg
    with Signals() as signals:
        train, val = (_fixed(probe, extract, images, signals) for images in (probe.train, probe.val))
    _broken(probe, train.unreadable)
    top1 = knn_accuracy(train, val, k=cfg.KNN.K, temperature=cfg.KNN.T, device=probe.device)
    neighbours = min(cfg.KNN.K, len(train.usable))
    say(f"weighted kNN, k {neighbours}, T {cfg.KNN.T:g}: top-1 {top1:.2f} %")
    seconds = time.perf_counter() - probe.began
    measured = {"k": neighbours, "temperature": cfg.KNN.T, "top1": top1}
    content = {"knn": measured, "published": []}  # the papers have no kNN
    results.write(probe.folder / "knn.json", _record(probe, content, len(train.unreadable), seconds))


def _train(probe: Probe, extract: Extractor, stored: dict[str, Any] | None, signals: Signals) -> None:
    cfg = probe.cfg
    if stored:
        linear_state.compare(stored, probe.origin, cfg)
    iterations_per_epoch(len(probe.train), cfg)  # too few images are better said before an hour's work
    _say_notes(cfg)
    val = _fixed(probe, extract, probe.val, signals)
    # A run that goes on keeps its images: with more of them its batches would be others
    train = _fixed(probe, extract, probe.train, signals, retry=not stored) if cfg.CACHE else None
    origin = probe.origin | (
        {"the list of unreadable training images": str(train.unreadable)} if train else {}
    )
    if stored:
        linear_state.compare(stored, origin, cfg)
    per_epoch = iterations_per_epoch(len(train.usable) if train else len(probe.train), cfg)
    state = _new_state(probe, extract.channels, origin)
    if stored:
        linear_state.restore(state, stored, cfg)
    if distributed.is_main():
        text = digest_text(cfg)
        write_text(probe.folder / "config.yaml", text)
    start, stop = state.iteration, cfg.SOLVER.MAX_EPOCH * per_epoch
    if train:
        batches = features.cached(train, cfg, start=start, stop=stop, device=probe.device)
    else:
        batches = features.random_crops(probe.train, extract, cfg, start=start, stop=stop)
    broken = _broken(probe, train.unreadable if train else [], going_on=stored is not None)
    with closing(batches):
        loop.train(
            state, batches, val, cfg=cfg, per_epoch=per_epoch, broken=broken, signals=signals, began=probe.began
        )  # fmt: skip
    _report(probe, state, val, per_epoch, unreadable=len(broken.names()))


def _say_notes(cfg: CfgNode) -> None:
    if cfg.CACHE:
        say("note: CACHE True: trained on fixed centre crops; the papers train on random crops")
    epochs, papers = cfg.SOLVER.MAX_EPOCH, defaults().SOLVER
    late = [step for step in cfg.SOLVER.STEPS if step >= epochs]
    if late:
        scaled = [min(round(step * epochs / papers.MAX_EPOCH), epochs - 1) for step in papers.STEPS]
        say(
            f"note: SOLVER.STEPS {late} are not reached in {epochs} epochs: the papers' {papers.STEPS} of "
            f"{papers.MAX_EPOCH} would be {[step for step in scaled if step > 0]}"
        )


def _broken(probe: Probe, known: list[int], *, going_on: bool = False) -> Broken:
    """Counts unreadable training images. Raises `UserError` if the `known` ones are too many already."""
    limit, files = probe.cfg.DATA.MAX_BROKEN, probe.train.files
    broken = Broken(files, limit, folder=probe.folder, going_on=going_on, device=probe.device)
    broken.add(known)
    broken.share()
    broken.check()
    broken.write()
    return broken


def _new_state(probe: Probe, channels: int, origin: dict[str, str]) -> linear_state.State:
    cfg, rate = probe.cfg, rates(probe.cfg)
    classifiers = Classifiers(
        channels, len(probe.train.classes), rates=rate, solver=cfg.SOLVER, seed=cfg.SEED, device=probe.device
    )
    return linear_state.State(classifiers, origin, 0, torch.zeros(len(rate), device=probe.device))


def _report(
    probe: Probe, state: linear_state.State, val: features.Fixed, per_epoch: int, *, unreadable: int
) -> None:
    """Print and write what was reached; also once more by a run that was finished before."""
    classifiers = state.classifiers
    accuracies = classifiers.accuracy(val.features, val.labels)
    losses = loop.mean_losses(state, per_epoch)
    rows = results.table(classifiers.rates, losses, accuracies, classes=len(probe.train.classes))
    measured = {
        **results.best(rows),
        "rates": rows,
        "chosen_on_val": len(rows) > 1,
        "views": "fixed centre crops" if probe.cfg.CACHE else "random crops",
        "published": _published(probe),
    }
    results.write(probe.folder / "results.json", _record(probe, measured, unreadable, state.seconds))


def _published(probe: Probe) -> results.Published:
    """The papers' numbers to compare with, printed too; none for another protocol than theirs."""
    sizes = {"classes": len(probe.train.classes), "train": len(probe.train), "val": len(probe.val)}
    rows = results.published(probe.backbone.architecture, **sizes)
    return results.comparable(rows, results.differences(probe.cfg))


def _record(probe: Probe, measured: dict[str, Any], unreadable: int, seconds: float) -> dict[str, Any]:
    """What was measured, and of what."""
    backbone, train, val = probe.backbone, probe.train, probe.val
    weights = {
        "file": probe.weights,
        "sha256": backbone.file_digest or None,
        "features_sha256": backbone.digest,
        "network": backbone.what,
        "architecture": asdict(backbone.architecture),
        "input": asdict(backbone.input),
    }
    images = {
        "train": {
            "folder": train.folder,
            "sha256": train.digest,
            "images": len(train),
            "unreadable": unreadable,
        },
        "val": {"folder": val.folder, "sha256": val.digest, "images": len(val)},
        "classes": len(train.classes),
    }
    return {
        **measured,
        "weights": weights,
        "data": images,
        **results.circumstances(probe.cfg, probe.device, seconds=seconds),
    }


def knn_accuracy(train: Fixed, val: Fixed, *, k: int, temperature: float, device: torch.device) -> float:
    """Percent of the validation images whose class wins the vote among the `k` nearest training images.

    A neighbour of cosine s votes with weight exp(s / temperature). Every process classifies its share; each
    holds all training features on its device (10.5 GB for ImageNet and ResNet-50).
    """
    bank = F.normalize(_query_rows(train, train.usable, device), dim=1)
    labels = torch.from_numpy(train.labels[train.usable]).to(device)
    mine = np.arange(distributed.rank(), len(val.labels), distributed.world_size())
    right = torch.zeros(1, dtype=torch.float64, device=device)
    for start in range(0, len(mine), _QUERIES):
        rows = mine[start : start + _QUERIES]
        queries = F.normalize(_query_rows(val, rows, device), dim=1)
        answers = knn(queries, bank, labels, k=k, temperature=temperature)
        right += (answers.cpu() == torch.from_numpy(val.labels[rows])).sum().to(device)
    distributed.mean_over_processes([right])
    return 100 * distributed.world_size() * right.item() / len(val.labels)


def _query_rows(known: Fixed, rows: np.ndarray, device: torch.device) -> torch.Tensor:
    return torch.from_numpy(known.features[rows]).to(device)
