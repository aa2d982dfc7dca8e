"""Linear classification of frozen features: the protocol of He et al. 2020, Sec. 4.1.

Weights are frozen, batch norm uses its running statistics, and a linear classifier with softmax is trained on the
global average of `res5`, or on the class token of a ViT (Chen et al. 2021). Accuracy is measured on the central crop of
the validation images, after the last epoch.
"""

import time
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from fvcore.common.config import CfgNode

from pretrain.common import distributed
from pretrain.common.configs import digest_text
from pretrain.common.console import say
from pretrain.common.errors import UserError
from pretrain.common.files import write_text
from pretrain.common.pool import worker_failures
from pretrain.common.run_folder import held, take_up
from pretrain.common.signals import Signals
from pretrain.data.broken_images import Broken
from pretrain.data.class_folders import LabelledImages
from pretrain.data.loader import iterations_per_epoch
from pretrain.model.encoders import ResNet
from pretrain.tensor_files.states import Stored
from transfer.convert.preprocessing import describe_input
from transfer.linear import backbone, features, loop, results, state
from transfer.linear.backbone import Backbone, Extractor
from transfer.linear.classifiers import Classifiers
from transfer.linear.config import defaults, rates
from transfer.linear.crops import check_classes, check_separate
from transfer.linear.features import Fixed
from transfer.linear.knn import knn_accuracy
from transfer.linear.state import State


@dataclass
class Probe:
    """Everything that a probe needs before the first computation."""

    cfg: CfgNode
    weights: str
    backbone: Backbone
    train: LabelledImages
    val: LabelledImages
    device: torch.device
    session_start: float = field(default_factory=time.perf_counter)

    @property
    def folder(self) -> Path:
        return Path(self.cfg.OUTPUT_DIR)

    @property
    def origin(self) -> dict[str, str]:
        """Digests of the weights and images. A resumed run must have the same ones."""
        digests = (self.backbone.digest, self.train.digest, self.val.digest)
        return dict(zip(("--weights", "DATA.TRAIN", "DATA.VAL"), digests, strict=True))


def run(
    cfg: CfgNode,
    weights: str,
    *,
    knn: bool = False,
    resume: bool | Path = False,
    **choice: Any,
) -> None:
    """Probe `weights` (a file, or `random`) and write the results to OUTPUT_DIR. Collective.

    Args:
        knn: measure weighted kNN accuracy instead of training a classifier.
        resume: continue from this file, or, if True, from the one in OUTPUT_DIR if there is one.
        choice: `source`, `branch` and `heads`, as in `backbone.load`.
    Raises:
        UserError: a mistake in the settings, the weights or the data.
        SystemExit: with `signals.STOPPED`, after SIGTERM, SIGUSR1 or SIGHUP, once the state is saved; with
            `signals.INTERRUPTED` after Ctrl-C.
    """
    with held(Path(cfg.OUTPUT_DIR)), worker_failures("DATA.NUM_WORKERS", "SOLVER.IMS_PER_BATCH"):
        stored = None if knn else state.find(cfg, resume=resume)
        probe = _set_up(cfg, weights, **choice)
        if distributed.is_main():
            state.remove_leftovers(probe.folder)
        extract = Extractor(probe.backbone, probe.device)
        if knn:
            _measure_knn(probe, extract)
            return
        with Signals(ctrl_c=True, alone=distributed.world_size() == 1) as signals:
            _train(probe, extract, stored, signals)


def _set_up(cfg: CfgNode, weights: str, **choice: Any) -> Probe:
    """Load weights and lists of images, check them and print a summary."""
    device = distributed.pick_device(cfg.DEVICE)
    train, val = (LabelledImages(cfg.DATA[part], key=f"DATA.{part}") for part in ("TRAIN", "VAL"))
    check_classes(train, val)
    check_separate(train, val)
    network = backbone.load(weights, cfg, **choice)
    _check_same_inputs(train.digest, val.digest, network.digest, device=device)
    say(f"weights: {weights}: {backbone.describe_architecture(network.architecture)}, {network.what}")
    say(
        f"input: {describe_input(network.input, resnet=isinstance(network.network, ResNet))}; {cfg.INPUT.SIZE} pixels"
    )
    say(
        f"data: {len(train)} training images of {len(train.classes)} classes, {len(val)} test images; "
        f"{distributed.world_size()} process(es) on {device.type}"
    )
    return Probe(cfg, weights, network, train, val, device)


def _check_same_inputs(*digests: str, device: torch.device) -> None:
    """Raise `UserError` unless all processes have the same digests: otherwise they would deadlock later."""
    own = torch.tensor([[int(digest[:8], 16) for digest in digests]], device=device)
    if len(distributed.all_gather_interleaved(own).unique(dim=0)) > 1:
        raise UserError(
            "the processes see different images (DATA.TRAIN, DATA.VAL) or weights: put them on storage that all "
            "machines share"
        )


def _central_features(
    probe: Probe, extract: Extractor, images: LabelledImages, signals: Signals, *, retry: bool = True
) -> Fixed:
    """Return the features of the central views. Raises `UserError` for unreadable test images."""
    found = features.fixed(images, probe.backbone, extract, probe.cfg, signals=signals, retry=retry)
    if found.unreadable and images is probe.val:
        raise UserError(
            f"{images.name}: {len(found.unreadable)} images cannot be read, the first is "
            f"{images.files[found.unreadable[0]]}: accuracy is measured on all images; repair or remove them"
        )
    return found


def _measure_knn(probe: Probe, extract: Extractor) -> None:
    """Classify the validation images by weighted kNN, and write `knn.json`."""
    cfg = probe.cfg
    with Signals() as signals:
        train, val = (
            _central_features(probe, extract, images, signals) for images in (probe.train, probe.val)
        )
    _unreadable_images(probe, train.unreadable)
    top1 = knn_accuracy(train, val, k=cfg.KNN.K, temperature=cfg.KNN.T, device=probe.device)
    neighbours = min(cfg.KNN.K, len(train.usable))
    say(f"weighted kNN, k {neighbours}, T {cfg.KNN.T:g}: top-1 {top1:.2f} %")
    seconds = time.perf_counter() - probe.session_start
    measured = {"k": neighbours, "temperature": cfg.KNN.T, "top1": top1}
    content = {"knn": measured, "published": []}  # the papers have no kNN numbers
    results.write(probe.folder / "knn.json", _record(probe, content, len(train.unreadable), seconds))


def _train(probe: Probe, extract: Extractor, stored: Stored | None, signals: Signals) -> None:
    """Train and test the classifiers, from the `stored` state if there is one, and write `results.json`."""
    cfg = probe.cfg
    if stored:
        state.compare(stored, probe.origin, cfg)
    iterations_per_epoch(
        len(probe.train), cfg
    )  # raises for too few images, before an hour of computing features
    _print_notes(cfg)
    val = _central_features(probe, extract, probe.val, signals)
    # A resumed run keeps its list of readable images: with more of them, its batches would change.
    train = _central_features(probe, extract, probe.train, signals, retry=not stored) if cfg.CACHE else None
    unreadable = train.unreadable if train else []
    origin = probe.origin
    if train:
        origin["the list of unreadable training images"] = str(unreadable)
    if stored:
        state.compare(stored, origin, cfg)
    per_epoch = iterations_per_epoch(len(train.usable) if train else len(probe.train), cfg)
    progress = _initial_state(probe, extract.channels, origin)
    if stored:
        state.restore(progress, stored, per_epoch=per_epoch, epochs=cfg.SOLVER.MAX_EPOCH)
    if distributed.is_main():
        if stored:
            take_up(stored.path, probe.folder / state.LAST, iteration=progress.iteration)
        write_text(probe.folder / "config.yaml", digest_text(cfg))
    start, stop = progress.iteration, cfg.SOLVER.MAX_EPOCH * per_epoch
    if train:
        batches = features.cached(train, cfg, start=start, stop=stop, device=probe.device)
    else:
        batches = features.random_crops(probe.train, extract, cfg, start=start, stop=stop)
    broken = _unreadable_images(probe, unreadable, resumed=stored is not None)
    with closing(batches):
        loop.train(
            progress, batches, val, cfg=cfg, per_epoch=per_epoch, broken=broken, signals=signals,
            session_start=probe.session_start,
        )  # fmt: skip
    _report(probe, progress, val, per_epoch, unreadable=len(broken.names()))


def _print_notes(cfg: CfgNode) -> None:
    """Print how the protocol differs from the papers', and notes about settings that may surprise the user."""
    if cfg.CACHE:
        say("CACHE True: training on fixed centre crops; the papers train on random crops")
    epochs, papers = cfg.SOLVER.MAX_EPOCH, defaults().SOLVER
    late = [step for step in cfg.SOLVER.STEPS if step >= epochs and cfg.SOLVER.SCHEDULE == "step"]
    if late:
        scaled = [min(round(step * epochs / papers.MAX_EPOCH), epochs - 1) for step in papers.STEPS]
        say(
            f"note: SOLVER.STEPS {late} are not reached in {epochs} epochs: the papers' {papers.STEPS} of "
            f"{papers.MAX_EPOCH} would scale to {[step for step in scaled if step > 0]}"
        )


def _unreadable_images(probe: Probe, known: list[int], *, resumed: bool = False) -> Broken:
    """Return the counter of unreadable training images. Raises `UserError` if the `known` ones are too many."""
    limit, files = probe.cfg.DATA.MAX_BROKEN, probe.train.files
    broken = Broken(files, limit, folder=probe.folder, resumed=resumed, device=probe.device)
    broken.add(known)
    broken.share()
    broken.check()
    broken.write()
    return broken


def _initial_state(probe: Probe, channels: int, origin: dict[str, str]) -> State:
    cfg, initial_rates = probe.cfg, rates(probe.cfg)
    classifiers = Classifiers(
        channels, len(probe.train.classes), rates=initial_rates, solver=cfg.SOLVER, seed=cfg.SEED,
        device=probe.device,
    )  # fmt: skip
    return State(classifiers, origin, 0, torch.zeros(len(initial_rates), device=probe.device))


def _report(probe: Probe, progress: State, val: Fixed, per_epoch: int, *, unreadable: int) -> None:
    """Test the classifiers, print a table and write `results.json`; again when a finished run is resumed."""
    classifiers = progress.classifiers
    accuracies = classifiers.accuracy(val.features, val.labels)
    losses = loop.mean_losses(progress, per_epoch)
    rows = results.table(classifiers.rates, losses, accuracies, classes=len(probe.train.classes))
    measured = {
        **results.best(rows),
        "rates": rows,
        "chosen_on_val": len(rows) > 1,
        "views": "fixed centre crops" if probe.cfg.CACHE else "random crops",
        "published": _published(probe),
    }
    results.write(probe.folder / "results.json", _record(probe, measured, unreadable, progress.seconds))


def _published(probe: Probe) -> results.Published:
    """Print and return the papers' numbers to compare with; none if the protocol differs from theirs."""
    sizes = {"classes": len(probe.train.classes), "train": len(probe.train), "val": len(probe.val)}
    rows = results.published(probe.backbone.architecture, **sizes)
    return results.comparable(rows, results.differences(probe.cfg))


def _record(probe: Probe, measured: dict[str, Any], unreadable: int, seconds: float) -> dict[str, Any]:
    """Return the content of a results file: what was measured, with which weights, data and settings."""
    network, train, val = probe.backbone, probe.train, probe.val
    weights = {
        "file": probe.weights,
        "sha256": network.file_digest or None,
        "features_sha256": network.digest,
        "network": network.what,
        "architecture": backbone.record_architecture(network.architecture),
        "input": asdict(network.input),
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
        **results.provenance(probe.cfg, probe.device, seconds=seconds),
    }
