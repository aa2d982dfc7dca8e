"""Training speed compared with plain detectron2: the same model, data and settings, in turns in one process."""

import contextlib
import io
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetMapper, build_detection_train_loader
from detectron2.engine import AMPTrainer, SimpleTrainer
from detectron2.modeling import build_model
from detectron2.solver import build_lr_scheduler
from detectron2.utils.events import EventStorage

from pretrain.common import distributed
from pretrain.common.console import say
from pretrain.common.errors import UserError
from transfer import results
from transfer.data import datasets, train_stream
from transfer.models import build
from transfer.train import loop
from transfer.train.log import Progress
from transfer.train.state import State
from transfer.train.step import Batch, autocast, grad_scaler, seed

_SHAPES = ("rectangle", "ellipse")

PARTS = ("data", "forward", "backward", "optimizer")


def train(cfg: CfgNode, *, iterations: int, rounds: int) -> dict[str, Any]:
    """Time our loop and detectron2's in turns, `rounds` blocks each, and print the comparison.

    Both loops really train, each on the images that its own loader draws. detectron2's loop consists of its model,
    mapper, loader and `SimpleTrainer` (`AMPTrainer` with SOLVER.AMP), with the schedule as its only hook. Our loop
    writes its log. If the training set does not exist, a synthetic one is used instead.

    Args:
        cfg: from `transfer.config.load.load_config`, with MODEL.INIT random.
        iterations: of each block.
        rounds: pairs of blocks. One more pair, of a third of the length, warms up.
    Returns:
        `ours` and `plain`: iterations per second of each block; `ratios`: ours divided by plain for each pair;
        `split`: seconds of each part of our step.
    """
    cfg = cfg.clone()
    with tempfile.TemporaryDirectory() as folder, EventStorage():
        _find_data(cfg, Path(folder))
        cfg.OUTPUT_DIR = folder
        cfg.MODEL.DEVICE = distributed.pick_device(cfg.MODEL.DEVICE).type
        # so that the schedule does not end
        cfg.SOLVER.MAX_ITER = max(cfg.SOLVER.MAX_ITER, 10 * rounds * iterations)
        cfg.freeze()
        torch.manual_seed(cfg.SEED)
        state, batches = _our_state(cfg)
        with (
            contextlib.redirect_stdout(io.StringIO()),
            Progress(cfg, 0) as log,
        ):  # hides the log's lines and bar
            loops = {"ours": lambda: _ours(cfg, state, batches, log), "plain": _plain_loop(cfg)}
            blocks = _interleave(loops, iterations=iterations, rounds=rounds)
            split = _split(cfg, state, batches, iterations)
    ratios = [ours / plain for ours, plain in zip(blocks["ours"], blocks["plain"], strict=True)]
    report = {**blocks, "ratios": ratios, "split": split}
    for line in _lines(cfg, report, iterations):
        say(line)
    return report


def _find_data(cfg: CfgNode, folder: Path) -> None:
    """Register the training set. If it does not exist, write a synthetic one to `folder`."""
    try:
        datasets.prepare(cfg)
    except UserError as error:
        if not cfg.MODEL.META_ARCHITECTURE == "GeneralizedRCNN" or cfg.MODEL.KEYPOINT_ON:
            raise  # keypoints and labels per pixel cannot be synthesised
        say(f"{error}")
        say("synthetic images are used instead")
        path, images = write_shapes(folder / "data", side=max(cfg.INPUT.MIN_SIZE_TRAIN))
        for part in ("TRAIN", "TEST"):
            cfg.DATASETS[f"{part}_JSON"], cfg.DATASETS[f"{part}_IMAGES"] = str(path), str(images)
        datasets.prepare(cfg)


def _our_state(cfg: CfgNode) -> tuple[State, Iterator[Batch]]:
    """Set up the state and the batches as `transfer.train.loop.train` does."""
    model, _ = build.build(cfg)
    model.train()
    optimizer = build.build_optimizer(cfg, model)
    state = State(model, optimizer, build_lr_scheduler(cfg, optimizer), grad_scaler(cfg))
    return state, train_stream.batches(train_stream.read(cfg), cfg, 0)


def _ours(cfg: CfgNode, state: State, batches: Iterator[Batch], log: Progress) -> None:
    loop.advance(cfg, state, state.model, batches, log=log)


def _plain_loop(cfg: CfgNode) -> Callable[[], None]:
    """Return one iteration of detectron2's loop, set up as in its `DefaultTrainer`, but with our optimizer."""
    torch.manual_seed(cfg.SEED)
    model = build_model(cfg)
    loader = build_detection_train_loader(cfg, mapper=DatasetMapper(cfg, is_train=True))
    optimizer = build.build_optimizer(cfg, model)  # detectron2's SGD, or AdamW for both loops
    amp = cfg.SOLVER.AMP.ENABLED and cfg.MODEL.DEVICE == "cuda"  # detectron2 has no AMP on a CPU
    plain = (AMPTrainer if amp else SimpleTrainer)(model, loader, optimizer)
    schedule = build_lr_scheduler(cfg, optimizer)

    def iterate() -> None:
        plain.run_step()
        schedule.step()

    return iterate


def _interleave(
    loops: dict[str, Callable[[], None]], *, iterations: int, rounds: int
) -> dict[str, list[float]]:
    """Return iterations per second of `rounds` blocks of each loop, in turns, so other load affects both alike."""
    speeds: dict[str, list[float]] = {name: [] for name in loops}
    for number in range(rounds + 1):
        count = iterations if number else max(2, iterations // 3)
        for name, iterate in loops.items():
            _synchronise()
            began = time.perf_counter()
            for _ in range(count):
                iterate()
            _synchronise()
            if number:  # the first block warms up
                speeds[name].append(count / (time.perf_counter() - began))
    return speeds


def _split(cfg: CfgNode, state: State, batches: Iterator[Batch], iterations: int) -> dict[str, float]:
    """Return the mean seconds of the parts of a step. Waiting for the GPU after each part costs a little time."""
    spent = dict.fromkeys(PARTS, 0.0)

    @contextlib.contextmanager
    def timed(part: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        _synchronise()
        spent[part] += (time.perf_counter() - began) / iterations

    for iteration in range(iterations):
        with timed("data"):
            batch = next(batches)
        seed(cfg.SEED, iteration)
        state.optimizer.zero_grad()
        size = len(batch) // cfg.SOLVER.ACCUMULATE
        for first in range(0, len(batch), size):
            with timed("forward"), autocast(cfg):
                total = sum(state.model(batch[first : first + size]).values()) / cfg.SOLVER.ACCUMULATE
            with timed("backward"):
                (total if state.scaler is None else state.scaler.scale(total)).backward()
        with timed("optimizer"):
            if state.scaler is None:
                state.optimizer.step()
            else:
                state.scaler.step(state.optimizer)
                state.scaler.update()
    return spent


def _synchronise() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def _lines(cfg: CfgNode, report: dict[str, Any], iterations: int) -> list[str]:
    machine = results.environment(cfg.MODEL.DEVICE)
    hardware, versions = machine["hardware"], machine["versions"]
    ratios, split = report["ratios"], report["split"]
    whole = sum(split.values())
    parts = ", ".join(f"{part} {1000 * split[part]:.0f} ms ({split[part] / whole:.0%})" for part in PARTS)
    return [
        f"machine: {hardware['gpu'] or hardware['cpu']}, {hardware['threads']} thread(s), "
        f"{cfg.DATALOADER.NUM_WORKERS} loader process(es), torch {versions['torch']}, detectron2 "
        f"{versions['detectron2']}",
        f"batch {cfg.SOLVER.IMS_PER_BATCH}, {cfg.SOLVER.OPTIMIZER}, mixed precision "
        f"{cfg.SOLVER.AMP.DTYPE if cfg.SOLVER.AMP.ENABLED else 'off'}, "
        f"{len(ratios)} x {iterations} iterations each, in turns",
        *(f"{name}: {_spread(report[key], '.2f')} iterations/s" for name, key in _LOOPS.items()),
        f"ratio, ours to plain: {_spread(ratios, '.3f')}",
        f"our step: {parts}",
    ]


_LOOPS = {"ours": "ours", "plain detectron2": "plain"}


def _spread(values: list[float], form: str) -> str:
    return f"{statistics.median(values):{form}} (median; {min(values):{form}} to {max(values):{form}})"


def write_shapes(folder: Path, *, side: int, images: int = 64, objects: int = 7) -> tuple[Path, Path]:
    """Write 4:3 JPEGs, every fourth one upright, with boxes and masks; return the json and the image folder.

    COCO has about 7 objects per image (Lin et al. 2014).

    Args:
        side: length of the shorter side in pixels.
        objects: number of objects in each image.
    """
    rng = np.random.default_rng(0)
    pictures = folder / "images"
    pictures.mkdir(parents=True)
    entries: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image in range(1, images + 1):
        width, height = (side * 4 // 3, side) if image % 4 else (side, side * 4 // 3)
        coarse = rng.integers(0, 256, (12, 12, 3), dtype=np.uint8)
        canvas = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
        for _ in range(objects):
            annotations.append(_shape(rng, canvas, image=image, number=len(annotations) + 1))
        name = f"{image:04}.jpg"
        cv2.imwrite(str(pictures / name), canvas)
        entries.append({"id": image, "file_name": name, "width": width, "height": height})
    categories = [{"id": i + 1, "name": name} for i, name in enumerate(_SHAPES)]
    path = folder / "instances.json"
    content = {"images": entries, "annotations": annotations, "categories": categories}
    path.write_text(json.dumps(content))
    return path, pictures


def _shape(rng: np.random.Generator, canvas: np.ndarray, *, image: int, number: int) -> dict[str, Any]:
    """Draw one object and return its annotation, with a polygon of at most 24 corners."""
    height, width = canvas.shape[:2]
    w, h = (rng.uniform(0.1, 0.4, 2) * min(width, height)).tolist()
    x, y = rng.uniform(0, width - w), rng.uniform(0, height - h)
    kind = int(rng.integers(len(_SHAPES)))
    if _SHAPES[kind] == "ellipse":
        angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)
        corners = np.stack([x + w / 2 * (1 + np.cos(angles)), y + h / 2 * (1 + np.sin(angles))], axis=1)
    else:
        corners = np.array([[x, y], [x + w, y], [x + w, y + h], [x, y + h]])
    colour = rng.integers(0, 256, 3).tolist()
    cv2.fillPoly(canvas, [corners.round().astype(np.int32)], colour)
    return {
        "id": number, "image_id": image, "category_id": kind + 1, "bbox": [x, y, w, h], "area": w * h,
        "iscrowd": 0, "segmentation": [corners.round(2).flatten().tolist()],
    }  # fmt: skip
