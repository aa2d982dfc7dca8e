"""What a comparison will cost: seconds of an iteration and of everything else in a run, timed on this machine."""

import contextlib
import io
import multiprocessing
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import torch
from detectron2.config import CfgNode
from detectron2.data import build_detection_test_loader
from detectron2.utils.events import EventStorage

from pretrain.common import distributed
from transfer.data import catalog, datasets, train_stream
from transfer.data.mapper import build_mapper
from transfer.models import build
from transfer.train.step import grad_scaler, step

_WARM_UP, _TIMED = 2, 3  # iterations; images, for the test
_START = 10.0  # seconds until a run's first iteration: imports, data and weights


@dataclass(frozen=True)
class Cost:
    """Seconds on this machine.

    Attributes:
        iteration: of training.
        fixed: of a run apart from its iterations: its start, PreciseBN, and the test at its end.
        test_images: number of them.
    """

    iteration: float
    fixed: float
    test_images: int


def measure(cfg: CfgNode, *, at_once: int = 1, threads: int = 0) -> Cost:
    """Train a randomly initialised detector for a few iterations, and test it on a few images.

    Args:
        cfg: with MODEL.INIT random and one process's share of the batch; changed in place.
        at_once: number of processes that do this at the same time, as the runs will on a CPU; the mean is returned.
        threads: of each of these processes.
    Raises:
        UserError: the data cannot be used.
    """
    if at_once == 1:
        return _quietly(cfg)
    with ProcessPoolExecutor(
        at_once, multiprocessing.get_context("spawn"), initializer=torch.set_num_threads, initargs=(threads,)
    ) as pool:
        found = list(pool.map(_quietly, [cfg] * at_once))
    return Cost(
        statistics.mean(each.iteration for each in found), statistics.mean(each.fixed for each in found),
        found[0].test_images,
    )  # fmt: skip


def _quietly(cfg: CfgNode) -> Cost:
    with contextlib.redirect_stdout(io.StringIO()):  # what is said about this model is not about the runs
        found = _measure(cfg)
    if cfg.MODEL.DEVICE == "cuda":
        torch.cuda.empty_cache()  # or the runs, which are other processes, would lack this memory
    return found


def _measure(cfg: CfgNode) -> Cost:
    with tempfile.TemporaryDirectory() as folder, EventStorage():
        cfg.OUTPUT_DIR = folder
        cfg.MODEL.DEVICE = distributed.pick_device(cfg.MODEL.DEVICE).type
        datasets.prepare(cfg)
        cfg.freeze()
        torch.manual_seed(cfg.SEED)
        model, _ = build.build(cfg)
        iteration = _train(cfg, model.train())
        image = _test(cfg, model.eval())
    images = sum(catalog.counts(name)[0] for name in cfg.DATASETS.TEST)
    precise = cfg.TEST.PRECISE_BN.NUM_ITER * iteration / 3 if cfg.TEST.PRECISE_BN.ENABLED else 0.0
    return Cost(iteration, _START + precise + images * image, images)


def _train(cfg: CfgNode, model: torch.nn.Module) -> float:
    """Return the median seconds of an iteration, whose losses `step` reads, so that a GPU has finished it."""
    optimizer, scaler = build.build_optimizer(cfg, model), grad_scaler(cfg)
    batches, times = train_stream.batches(train_stream.read(cfg), cfg, 0), []
    for number in range(_WARM_UP + _TIMED):
        start = time.perf_counter()
        step(cfg, model, next(batches), optimizer, number, scaler=scaler)
        if cfg.MODEL.DEVICE == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times[_WARM_UP:])


@torch.no_grad()
def _test(cfg: CfgNode, model: torch.nn.Module) -> float:
    """Return the median seconds of a test image."""
    loader = build_detection_test_loader(cfg, cfg.DATASETS.TEST[0], mapper=build_mapper(cfg, is_train=False))
    times = []
    for _, batch in zip(range(_WARM_UP + _TIMED), loader, strict=False):
        start = time.perf_counter()
        model(batch)
        if cfg.MODEL.DEVICE == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times[min(_WARM_UP, len(times) - 1) :])
