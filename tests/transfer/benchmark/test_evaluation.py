"""The metric's time is measured on detections whose result is known, and both libraries agree on it."""

import time

import numpy as np
import pytest

from pretrain.benchmark.pretraining import Extent
from transfer.benchmark import evaluation


def test_made_detections_hold_the_objects_that_are_found() -> None:
    """Half of the objects of each image have a detection of their class near them; nothing leaves the image much."""
    truth, found = evaluation.made(3)
    assert len(truth.getAnnIds()) == 21 and len(found) == 300
    for image in (1, 2, 3):
        objects = truth.loadAnns(truth.getAnnIds(imgIds=[image]))
        guesses = [each for each in found if each["image_id"] == image]
        for one, guess in zip(objects[:3], guesses, strict=False):
            assert one["category_id"] == guess["category_id"]
            assert np.abs(np.subtract(one["bbox"], guess["bbox"])).max() <= 8
    assert len({each["id"] for each in truth.dataset["annotations"]}) == 21


def test_both_libraries_are_timed_and_agree() -> None:
    pytest.importorskip("faster_coco_eval")
    report = evaluation.measure(Extent(2, 1.0, time.monotonic() + 600), images=4)
    for task in ("bbox", "segm"):
        slow, fast = report[task]["pycocotools"], report[task]["faster-coco-eval"]
        assert len(slow["values"]) == len(fast["values"]) == 2 and slow["low"] > 0
        assert report[task]["ratio"]["values"][0] == slow["values"][0] / fast["values"][0]
        assert report[task]["difference"] < 1e-6


def test_without_the_faster_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "faster_class", lambda: None)
    report = evaluation.measure(Extent(1, 1.0, time.monotonic() + 600), images=2)
    assert report["bbox"]["ratio"] is None and "faster-coco-eval" not in report["bbox"]
