"""Compares detections with annotations: which are right, which are wrong and why, and which objects were missed."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from transfer.visualize.instances import Objects

IOU = 0.5  # a detection matches an object if their boxes overlap with at least this IoU
NEAR = 0.1  # below this IoU, a wrong detection is unrelated to an object


@dataclass
class Match:
    """The matching in one image with D detections and T annotated objects.

    Attributes:
        object_of: (D,) index of the object that each detection matches; -1 for none.
        excused: (D,) bool: detections without an object that lie at least half inside a crowd region of their class.
        overlaps: (D, T) IoU of the boxes; for a crowd region, the share of the detection that lies inside it.
    """

    object_of: np.ndarray
    excused: np.ndarray
    overlaps: np.ndarray


def match(truth: Objects, found: Objects) -> Match:
    """Match detections to objects greedily, as in the COCO evaluation.

    In order of decreasing score, each detection gets the free object of its class that it overlaps most, if their IoU
    is at least 0.5. Crowd regions do not count as objects.
    """
    assert found.scores is not None
    overlap = overlaps(found.boxes, truth.boxes, truth.crowd)
    object_of = np.full(len(found), -1)
    excused = np.zeros(len(found), bool)
    free = ~truth.crowd
    for i in np.argsort(-found.scores, kind="stable"):
        same = truth.classes == found.classes[i]
        open_to = np.where(same & free, overlap[i], -1)
        best = int(open_to.argmax()) if len(truth) else -1
        if best >= 0 and open_to[best] >= IOU:
            object_of[i] = best
            free[best] = False
        else:
            excused[i] = bool((overlap[i][same & truth.crowd] >= IOU).any())
    return Match(object_of, excused, overlap)


def overlaps(found: np.ndarray, truth: np.ndarray, crowd: np.ndarray) -> np.ndarray:
    """Return the IoU (D, T) of boxes (D, 4) and (T, 4); for crowd regions, the share of the detection inside them."""
    corner = np.maximum(found[:, None, :2], truth[None, :, :2])
    opposite = np.minimum(found[:, None, 2:], truth[None, :, 2:])
    common = np.prod(np.clip(opposite - corner, 0, None), axis=2)
    area, area_truth = areas(found)[:, None], areas(truth)[None]
    whole = np.where(crowd[None], area, area + area_truth - common)
    return common / np.maximum(whole, 1e-12)


def areas(boxes: np.ndarray) -> np.ndarray:
    """Return the areas (N,) of boxes (N, 4)."""
    result: np.ndarray = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    return result


@dataclass
class Mistake:
    """A wrong detection, a missed object, or an image with per-pixel labels.

    Attributes:
        image: index of the image.
        box: (4,) of the detection or object; None for a whole image.
        weight: how bad the mistake is, for sorting.
        caption: a one-line description.
        label: what to write next to the box.
        annotated: whether the box is that of an annotated object, not of a detection.
    """

    image: int
    box: np.ndarray | None
    weight: float
    caption: str
    label: str = ""
    annotated: bool = False


def worst_first(found: Sequence[Mistake]) -> list[Mistake]:
    """Return the worst mistake of each image, then the second of each, and so on; in each round the worst first.

    One crowded image would otherwise fill a page.
    """
    ranked, seen = [], Counter[int]()
    for mistake in sorted(found, key=lambda mistake: -mistake.weight):
        ranked.append((seen[mistake.image], mistake))
        seen[mistake.image] += 1
    return [mistake for _, mistake in sorted(ranked, key=lambda pair: pair[0])]


def false_positives(
    image: int, truth: Objects, found: Objects, matched: Match, names: Sequence[str]
) -> list[Mistake]:
    """Return the wrong detections of an image. The higher their score, the worse they are."""
    assert found.scores is not None
    result = []
    for i in np.flatnonzero((matched.object_of < 0) & ~matched.excused).tolist():
        score, name = float(found.scores[i]), names[found.classes[i]]
        caption, label = _why(i, truth, found, matched, names), f"wrong: {name} {score:.0%}"
        result.append(Mistake(image, found.boxes[i], score, caption, label))
    return result


def _why(i: int, truth: Objects, found: Objects, matched: Match, names: Sequence[str]) -> str:
    assert found.scores is not None
    detection = f"{names[found.classes[i]]}, score {found.scores[i]:.2f}: "
    near = np.where(truth.crowd, -1, matched.overlaps[i])
    if not len(truth) or near.max() < NEAR:
        return detection + "nothing is annotated there"
    same = np.where(truth.classes == found.classes[i], near, -1)
    if same.max() >= IOU:
        return detection + f"a second box on the same {names[found.classes[i]]} (IoU {same.max():.2f})"
    if near.max() >= IOU:
        return (
            detection
            + f"it is annotated as {names[truth.classes[int(near.argmax())]]} (IoU {near.max():.2f})"
        )
    nearest = names[truth.classes[int(near.argmax())]]
    return detection + f"its box overlaps a {nearest} with an IoU of only {near.max():.2f}"


def misses(
    image: int, truth: Objects, found: Objects, matched: Match, names: Sequence[str], *, score: float
) -> list[Mistake]:
    """Return the objects that no detection with at least `score` matches.

    The larger the object and the lower the score of its best detection, the worse: area in pixels x (1 - score).
    """
    assert found.scores is not None
    result = []
    for i in np.flatnonzero(~truth.crowd).tolist():
        own = found.scores[matched.object_of == i]
        best = float(own.max()) if len(own) else 0.0
        if best >= score:
            continue
        width, height = (truth.boxes[i, 2:] - truth.boxes[i, :2]).round().astype(int).tolist()
        reason = (
            f"its best detection has score {best:.2f}"
            if len(own)
            else _nearest(i, truth, found, matched, names)
        )
        name = names[truth.classes[i]]
        caption = f"{name}, {width} x {height} pixels: {reason}"
        weight, label = width * height * (1 - best), f"missed: {name}"
        result.append(Mistake(image, truth.boxes[i], weight, caption, label, annotated=True))
    return result


def _nearest(i: int, truth: Objects, found: Objects, matched: Match, names: Sequence[str]) -> str:
    assert found.scores is not None
    overlap = matched.overlaps[:, i]
    if not len(overlap) or overlap.max() < NEAR:
        return "nothing is detected there"
    j = int(overlap.argmax())
    return f"the nearest detection is a {names[found.classes[j]]}, score {found.scores[j]:.2f}, IoU {overlap[j]:.2f}"


def labelling(image: int, truth: np.ndarray, found: np.ndarray, names: Sequence[str]) -> Mistake:
    """Return how well an image is labelled, given annotated and predicted labels (H, W).

    The measure is the mean IoU over the classes that occur in either. The lower it is, the worse. Pixels without a
    class (label 255: ignored) do not count.
    """
    known = truth < len(names)
    truth, found = truth[known], found[known]
    scores = {}
    for kind in np.union1d(truth, found).tolist():
        either, both = ((truth == kind) | (found == kind)).sum(), ((truth == kind) & (found == kind)).sum()
        scores[names[kind]] = float(both / either)
    mean = sum(scores.values()) / len(scores) if scores else 1.0
    lowest = sorted(scores.items(), key=lambda item: item[1])[:4]
    listed = ", ".join(f"{kind} {score:.2f}" for kind, score in lowest)
    return Mistake(image, None, 1 - mean, f"mean IoU {mean:.2f}; lowest: {listed}")
