"""Chooses the test images that the demo's page shows, and draws the detections of each initialisation on them.

    python -m transfer.demo.pictures OUTPUT ROW=RUN ROW=RUN ...

OUTPUT gets `NN-truth.jpg`, `NN-ROW.jpg`, `quartile-truth.jpg`, `quartile-ROW.jpg` and `pictures.json`; RUN is the
folder of a fine-tuning run.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog

from pretrain.common.errors import run_tool
from pretrain.common.files import write_json
from transfer.data import datasets, images
from transfer.predict.predictor import Predictor
from transfer.visualize import drawing, instances, mistakes
from transfer.visualize.instances import Objects

EXAMINED = 40  # test images, spread evenly over the set
SHOWN = 7  # of these; an odd number, so that the middle one is the median
CONFIDENT = 0.5  # the score from which tools/predict.py reports a detection, unless told otherwise
SCORES = (0.5, 0.4, 0.3, 0.2, 0.1, 0.05)  # the thresholds to choose from

Record = dict[str, Any]


def write(folder: Path, runs: Mapping[str, Path]) -> None:
    """Write the pictures and `pictures.json`, which holds the rule's threshold and the F1 of each picture.

    Args:
        runs: row of the demo -> folder of its run. All have the same test set.
    Raises:
        UserError: a file of a run or of the test set is missing or damaged.
    """
    detectors = {row: Predictor(run, threshold=SCORES[-1]) for row, run in runs.items()}
    cfg = next(iter(detectors.values())).cfg.clone()
    cfg.defrost()
    datasets.prepare(cfg, train=False)
    name = cfg.DATASETS.TEST[0]
    records = drawing.spread(DatasetCatalog.get(name), EXAMINED)
    found = {row: [detect(detector, record) for record in records] for row, detector in detectors.items()}
    truths = [instances.of_record(record) for record in records]

    def draw(n: int, prefix: str, score: float) -> None:
        picture = images.read(records[n]["file_name"], "RGB")
        drawn = {"truth": truths[n], **{row: above(each[n], score) for row, each in found.items()}}
        for key, objects in drawn.items():
            drawing.write_jpeg(folder / f"{prefix}-{key}.jpg", drawing.draw_objects(picture, objects, name))

    def described(n: int, f1s: list[dict[str, float]]) -> dict[str, Any]:
        return {"name": Path(records[n]["file_name"]).name, "f1": f1s[n]}

    score = threshold(found)
    f1s = measured(truths, found, score)
    order, leader = best_first(f1s)
    shown = drawing.spread(order, SHOWN)
    for number, n in enumerate(shown):
        draw(n, f"{number:02}", score)
    rule = {"score": score, "scores": list(SCORES), "examined": len(records), "sorted_by": leader}
    confident = measured(truths, found, CONFIDENT)
    quarter = best_first(confident)[0][len(records) // 4]
    draw(quarter, "quartile", CONFIDENT)
    content = rule | {"shown": [described(n, f1s) for n in shown], "quartile": described(quarter, confident)}
    write_json(folder / "pictures.json", content)


def detect(detector: Predictor, record: Record) -> Objects:
    """Return the detections in the image of a record."""
    found = detector(record["file_name"])
    masks = None if found.masks is None else list(found.masks)
    return Objects(found.boxes, found.classes, found.scores, masks)


def above(found: Objects, score: float) -> Objects:
    """Return the detections with at least this score."""
    assert found.scores is not None
    return found.at(found.scores >= score)


def threshold(found: Mapping[str, Sequence[Objects]]) -> float:
    """Return the highest of `SCORES` at which every row detects something in at least half of the images.

    The lowest one if there is none.
    """
    for score in SCORES:
        shares = [np.mean([len(above(each, score)) > 0 for each in row]) for row in found.values()]
        if min(shares) >= 0.5:
            return score
    return SCORES[-1]


def measured(
    truths: Sequence[Objects], found: Mapping[str, Sequence[Objects]], score: float
) -> list[dict[str, float]]:
    """Return for each image the F1 of every row's detections with at least this score."""
    return [
        {row: f1(truth, above(each[n], score)) for row, each in found.items()}
        for n, truth in enumerate(truths)
    ]


def f1(truth: Objects, found: Objects) -> float:
    """Return the F1 of the detections in an image: 2 x right / (detected + annotated); 1 if there is nothing at all.

    A detection is right if it matches an object by the rule of `mistakes.match`. Crowd regions do not count, nor do
    detections inside them.
    """
    matched = mistakes.match(truth, found)
    right = int((matched.object_of >= 0).sum())
    counted = len(found) - int(matched.excused.sum()) + int((~truth.crowd).sum())
    return 2 * right / counted if counted else 1.0


def best_first(f1s: Sequence[Mapping[str, float]]) -> tuple[list[int], str]:
    """Return the indices of the images, and the row by whose F1 they are sorted: that with the highest mean F1.

    Among equal images, those with the higher mean F1 over all rows come first.
    """
    leader = max(f1s[0], key=lambda row: sum(each[row] for each in f1s))
    return sorted(range(len(f1s)), key=lambda n: (-f1s[n][leader], -sum(f1s[n].values()))), leader


def main() -> None:
    output, *runs = sys.argv[1:]
    pairs = [text.partition("=")[::2] for text in runs]
    write(Path(output), {row: Path(run) for row, run in pairs})


if __name__ == "__main__":
    run_tool(main)
