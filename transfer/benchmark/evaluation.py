"""The time that COCO's metric takes: pycocotools, and faster-coco-eval if it is installed, on the same detections."""

import contextlib
import io
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from pretrain.benchmark.pretraining import Extent
from pretrain.benchmark.timing import spread
from transfer.metrics.coco import faster_class

_SIDE = 480, 640  # height and width of an image of COCO
_CLASSES, _OBJECTS, _DETECTIONS = 80, 7, 100  # objects (Lin et al. 2014) and detections in an image
_TASKS = ("bbox", "segm")


def measure(extent: Extent, *, images: int) -> dict[str, Any]:
    """Time the metric for boxes and for masks, from loaded detections to the twelve numbers, in turns.

    Args:
        images: number of made images; half of the objects are found, the other detections are wrong.
    Returns:
        For each task, and for each library, `timing.spread` of the seconds for 1,000 images; `ratio`, of pycocotools
        to faster-coco-eval in the same round; and `difference`, the largest between their twelve numbers. Without
        faster-coco-eval those two are None.
    """
    truth, found = made(images)
    result: dict[str, Any] = {"images": images}
    classes: dict[str, Callable[..., Any]] = {"pycocotools": COCOeval}
    if faster := faster_class():
        classes["faster-coco-eval"] = faster
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        loaded = truth.loadRes(found)
        for task in _TASKS:
            seconds: dict[str, list[float]] = {name: [] for name in classes}
            stats: dict[str, np.ndarray] = {}
            for number in range(extent.rounds):
                if number and time.monotonic() > extent.deadline:
                    break
                for name, evaluation in classes.items():
                    began = time.perf_counter()
                    run = evaluation(truth, loaded, task)
                    run.evaluate()
                    run.accumulate()
                    run.summarize()
                    seconds[name].append((time.perf_counter() - began) * 1000 / images)
                    stats[name] = np.asarray(run.stats[:12], float)
            slow, fast = seconds["pycocotools"], seconds.get("faster-coco-eval")
            result[task] = {
                **{name: spread(values) for name, values in seconds.items()},
                "ratio": spread([a / b for a, b in zip(slow, fast, strict=True)]) if fast else None,
                "difference": float(np.ptp(np.stack(list(stats.values())), axis=0).max()) if fast else None,
            }
    return result


def made(images: int) -> tuple[COCO, list[dict[str, Any]]]:
    """Return annotations of made rectangles, and detections with boxes, masks and scores."""
    random = np.random.default_rng(0)
    annotations: list[dict[str, Any]] = []
    found: list[dict[str, Any]] = []
    for image in range(1, images + 1):
        boxes, kinds = _boxes(random, _OBJECTS), random.integers(1, _CLASSES + 1, _OBJECTS)
        annotations += [
            {
                "id": len(annotations) + number, "image_id": image, "category_id": int(kind), "bbox": box.tolist(),
                "area": float(box[2] * box[3]), "iscrowd": 0, "segmentation": mask,
            }
            for number, (box, kind, mask) in enumerate(zip(boxes, kinds, _masks(boxes), strict=True), 1)
        ]  # fmt: skip
        hits = _OBJECTS // 2
        guesses = np.concatenate(
            [boxes[:hits] + random.uniform(-4, 4, (hits, 4)), _boxes(random, _DETECTIONS - hits)]
        )
        guesses = np.concatenate([guesses[:, :2].clip(0), guesses[:, 2:].clip(8)], axis=1)
        guessed = np.concatenate([kinds[:hits], random.integers(1, _CLASSES + 1, _DETECTIONS - hits)])
        scores = random.random(_DETECTIONS)
        found += [
            {
                "image_id": image, "category_id": int(kind), "bbox": box.tolist(), "segmentation": mask,
                "score": float(score),
            }
            for box, kind, mask, score in zip(guesses, guessed, _masks(guesses), scores, strict=True)
        ]  # fmt: skip
    truth = COCO()
    truth.dataset = {
        "info": {},
        "images": [{"id": n, "height": _SIDE[0], "width": _SIDE[1]} for n in range(1, images + 1)],
        "annotations": annotations,
        "categories": [{"id": n, "name": str(n)} for n in range(1, _CLASSES + 1)],
    }
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
    return truth, found


def _boxes(random: np.random.Generator, count: int) -> np.ndarray:
    """Return (count, 4) boxes: x, y, width, height in pixels."""
    size = np.exp(random.uniform(np.log(16), np.log(320), (count, 2)))
    corner = random.random((count, 2)) * (np.array(_SIDE[::-1]) - size)
    return np.concatenate([corner, size], axis=1)


def _masks(boxes: np.ndarray) -> list[dict[str, Any]]:
    """Return a run-length encoded ellipse in each box."""
    turns = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    centre, radius = boxes[:, :2] + boxes[:, 2:] / 2, boxes[:, 2:] / 2
    corners = centre[:, None] + radius[:, None] * np.stack([np.cos(turns), np.sin(turns)], axis=1)
    encoded = coco_mask.frPyObjects([list(polygon.flatten()) for polygon in corners], *_SIDE)
    return [{"size": part["size"], "counts": part["counts"].decode()} for part in encoded]
