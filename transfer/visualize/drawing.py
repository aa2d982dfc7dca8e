"""Draws images with their objects or per-pixel labels: the annotation, the prediction, or both side by side."""

import colorsys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import IO, Any, TypeVar

import cv2
import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.visualizer import Visualizer
from torch import nn

from pretrain.common.files import write_atomic
from transfer.data import images
from transfer.data.mapper import build_mapper
from transfer.visualize import instances
from transfer.visualize.instances import Objects

T = TypeVar("T")

COLUMN_GAP = 6  # pixels
MOST_PROPOSALS = 20
NARROWEST = 320  # pixels: narrower images are enlarged, so that the class names can be read
# RGB colours of the classes, in turn, chosen to be distinct on photographs. Annotations and predictions of a class have
# the same colour.
PALETTE = [
    (230, 25, 75),
    (255, 225, 25),
    (0, 130, 200),
    (245, 130, 48),
    (145, 30, 180),
    (70, 240, 240),
    (240, 50, 230),
]


class _Steady(Visualizer):
    """detectron2's visualizer without the random change of each colour."""

    def _jitter(self, color: Any) -> Any:
        return color


@torch.no_grad()
def draw_predictions(cfg: CfgNode, model: nn.Module, folder: Path) -> list[Path]:
    """Write `TEST.PICTURES` JPEG files of the first test set, with ground truth left and predictions right.

    The images are spread evenly over the set, so that all runs show the same ones.

    Args:
        model: returns detectron2's inference output. Its training mode is restored afterwards.
        folder: where `00.jpg`, `01.jpg`, ... are written.
    Returns:
        The paths of the files.
    """
    if not cfg.TEST.PICTURES or not cfg.DATASETS.TEST:
        return []
    name = cfg.DATASETS.TEST[0]
    mapper = build_mapper(cfg, is_train=False)
    training = model.training
    model.eval()
    paths = []
    for number, record in enumerate(spread(DatasetCatalog.get(name), cfg.TEST.PICTURES)):
        picture = beside_truth(record, model([mapper(record)])[0], name, score=cfg.TEST.PICTURE_SCORE)
        paths.append(folder / f"{number:02}.jpg")
        write_jpeg(paths[-1], picture)
    model.train(training)
    return paths


def spread(items: Sequence[T], count: int) -> list[T]:
    """Return at most `count` of the items, spread evenly over them."""
    chosen = np.linspace(0, len(items) - 1, min(count, len(items))).round().astype(int)
    return [items[i] for i in chosen]


def beside_truth(record: dict[str, Any], output: dict[str, Any], name: str, *, score: float) -> np.ndarray:
    """Return the annotated image next to the image with a model's predictions, (H, 2 W + gap, 3) RGB uint8.

    Args:
        record: an image's record in the data set `name`.
        output: the output of a detectron2 model for this image: detections, per-pixel labels, or proposals.
        score: detections with a lower score are not drawn.
    """
    image = images.read(record["file_name"], "RGB")
    found = instances.of_output(output)
    if found is None:
        labels = output["sem_seg"].argmax(dim=0).cpu().numpy()
        return side_by_side(draw_labels(image, label_file(record), name), draw_labels(image, labels, name))
    assert found.scores is not None
    # Nearly all proposals have a high score, so their number is limited instead. They are sorted by score.
    found = (
        found.at(np.arange(min(len(found), MOST_PROPOSALS)))
        if "proposals" in output
        else found.at(found.scores >= score)
    )
    return side_by_side(
        draw_objects(image, instances.of_record(record), name), draw_objects(image, found, name)
    )


def draw_objects(image: np.ndarray, shown: Objects, name: str, marks: list[str] | None = None) -> np.ndarray:
    """Return the image (H, W, 3) RGB uint8 with boxes, masks, keypoints and class names, at least `NARROWEST` wide.

    Args:
        name: the data set, registered with detectron2, which gives class names and colours.
        marks: texts to draw instead of class names and scores.
    """
    metadata = MetadataCatalog.get(name)
    canvas = _Steady(image, metadata, scale=_scale(image))
    colours = [_colour(metadata, kind) for kind in shown.classes.tolist()]
    canvas.overlay_instances(
        boxes=shown.boxes,
        labels=_texts(metadata, shown) if marks is None else marks,
        masks=shown.masks if len(shown) else None,
        keypoints=shown.keypoints if len(shown) else None,
        assigned_colors=colours,
        alpha=0.5,
    )
    return np.ascontiguousarray(canvas.output.get_image())


def draw_labels(image: np.ndarray, labels: np.ndarray | None, name: str) -> np.ndarray:
    """Return the image with its per-pixel labels (H, W) painted over it. Ignored or unlabelled pixels are dark."""
    metadata = MetadataCatalog.get(name)
    classes = list(metadata.get("stuff_classes", ()))
    if labels is None:
        labels = np.full(image.shape[:2], 255)
    painted = (0.3 * image).astype(np.uint8)
    for kind in np.unique(labels[labels < len(classes)]).tolist():
        region = labels == kind
        painted[region] = 0.4 * image[region] + 0.6 * 255 * np.array(_stuff_colour(metadata, kind))
    canvas = _Steady(painted, metadata, scale=_scale(image))
    for kind in np.unique(labels[labels < len(classes)]).tolist():
        canvas.draw_text(classes[kind], _inside(labels == kind), color="white")
    return np.ascontiguousarray(canvas.output.get_image())


def highlight(
    picture: np.ndarray, box: np.ndarray, width: int, label: str = "", *, annotated: bool = False
) -> np.ndarray:
    """Return a picture of `beside_truth` with a white and black frame around a box (x0, y0, x1, y1) in both halves.

    Args:
        width: the width of the image whose pixels are the unit of the box.
        label: a text next to the frame, in the half with the predictions.
        annotated: put the text into the other half.
    """
    picture = picture.copy()
    half = (picture.shape[1] - COLUMN_GAP) // 2
    for left, labelled in ((0, annotated), (half + COLUMN_GAP, not annotated)):
        around = box * half / width + (-5, -5, 5, 5)  # outside the frame and name of the detection itself
        x0, y0, x1, y1 = around.round().astype(int).tolist()
        for colour, thick in (((0, 0, 0), 5), ((255, 255, 255), 2)):
            cv2.rectangle(picture[:, left : left + half], (x0, y0), (x1, y1), colour, thick)
        if label and labelled:
            picture[:, left : left + half] = _beside_box(
                picture[:, left : left + half], label, x0, y0, x1, y1
            )
    return picture


def _beside_box(image: np.ndarray, text: str, x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
    """Return the image with a text below the box, or above it, or inside it, wherever there is room."""
    canvas = _Steady(image, scale=1.0)
    size = max(int(canvas._default_font_size), 10)
    line = 2 * size  # pixels of a line of text with its background
    below, above = y1 + 4, y0 - line
    top = below if below + line <= image.shape[0] else above if above >= 0 else max(y1 - line, 0)
    on_right = x0 + x1 > image.shape[1]
    place = (min(x1, image.shape[1] - 3) if on_right else max(x0, 3), top)
    canvas.draw_text(
        text, place, font_size=size, color="white", horizontal_alignment="right" if on_right else "left"
    )
    drawn: np.ndarray = canvas.output.get_image()
    return drawn


def side_by_side(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Return two pictures (H, W, 3) in one, with a white gap between them."""
    gap = np.full((left.shape[0], COLUMN_GAP, 3), 255, np.uint8)
    return np.concatenate([left, gap, right], axis=1)


def write_jpeg(path: Path, picture: np.ndarray) -> bytes:
    """Write a picture (H, W, 3) RGB uint8 atomically and return the content of the file."""
    _, encoded = cv2.imencode(".jpg", picture[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 88])
    content: bytes = encoded.tobytes()
    write_atomic(path, partial(_write, content))
    return content


def _write(data: bytes, file: IO[bytes]) -> None:
    file.write(data)


def _scale(image: np.ndarray) -> float:
    return max(1.0, NARROWEST / image.shape[1])


def label_file(record: dict[str, Any]) -> np.ndarray | None:
    """Return the annotated per-pixel labels (H, W) of a record, or None if it has none."""
    if "sem_seg_file_name" not in record:
        return None
    labels: np.ndarray = images.read(record["sem_seg_file_name"], "L")
    return labels.reshape(labels.shape[:2])


def _texts(metadata: Any, shown: Objects) -> list[str]:
    names = metadata.get("thing_classes", None)
    texts = []
    for i, kind in enumerate(shown.classes.tolist()):
        text = (names[kind] if names else str(kind)) if kind >= 0 else ""
        if shown.scores is not None:
            text += f" {shown.scores[i]:.0%}"
        texts.append(text + (" (crowd)" if shown.crowd[i] else ""))
    return texts


def _colour(metadata: Any, kind: int) -> tuple[float, ...]:
    colours = metadata.get("thing_colors", None) or PALETTE
    return tuple(value / 255 for value in colours[kind % len(colours)])


def _stuff_colour(metadata: Any, kind: int) -> tuple[float, ...]:
    colours = metadata.get("stuff_colors", None)
    if colours:
        return tuple(value / 255 for value in colours[kind])
    return colorsys.hsv_to_rgb(0.61803 * kind % 1, 0.8, 0.95)  # neighbouring classes get very different hues


def _inside(region: np.ndarray) -> tuple[float, float]:
    """Return the point (x, y) of a region (H, W) bool that is farthest from the region's edge."""
    depth = cv2.distanceTransform(np.pad(region.astype(np.uint8), 1), cv2.DIST_L2, 3)
    y, x = np.unravel_index(int(depth.argmax()), depth.shape)
    return float(x) - 1, float(y) - 1
