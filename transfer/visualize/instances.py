"""The objects of an image, annotated or detected, in one common form for drawing and matching."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from detectron2.structures import BoxMode


@dataclass
class Objects:
    """N objects in an image. Coordinates are pixels of that image.

    Attributes:
        boxes: (N, 4) x0, y0, x1, y1.
        classes: (N,) class indices in the data set; -1 for proposals, which have no class.
        scores: (N,) from 0 to 1; None for annotations.
        masks: one per object: polygons (possibly an empty list), RLE, or (H, W) bool; None without masks.
        keypoints: (N, K, 3) x, y and visibility or score; None without keypoints.
        crowd: (N,) bool, whether one annotation covers many objects.
    """

    boxes: np.ndarray
    classes: np.ndarray
    scores: np.ndarray | None = None
    masks: list[Any] | None = None
    keypoints: np.ndarray | None = None
    crowd: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))

    def __post_init__(self) -> None:
        self.boxes = np.asarray(self.boxes, np.float64).reshape(-1, 4)
        self.classes = np.asarray(self.classes, np.int64).reshape(-1)
        if len(self.crowd) != len(self):
            self.crowd = np.zeros(len(self), bool)

    def __len__(self) -> int:
        return len(self.classes)

    def at(self, chosen: np.ndarray) -> "Objects":
        """Return the chosen objects, given by their indices or by one bool per object."""
        chosen = np.arange(len(self))[chosen]
        return Objects(
            boxes=self.boxes[chosen],
            classes=self.classes[chosen],
            scores=None if self.scores is None else self.scores[chosen],
            masks=None if self.masks is None else [self.masks[i] for i in chosen],
            keypoints=None if self.keypoints is None else self.keypoints[chosen],
            crowd=self.crowd[chosen],
        )


def of_record(record: dict[str, Any]) -> Objects:
    """Return the annotated objects of a record in detectron2's data set format; no objects if it has no annotations."""
    annotations = record.get("annotations") or []
    points = max((len(item.get("keypoints") or ()) for item in annotations), default=0)
    masked = any(item.get("segmentation") for item in annotations)
    return Objects(
        boxes=np.array([BoxMode.convert(i["bbox"], i["bbox_mode"], BoxMode.XYXY_ABS) for i in annotations]),
        classes=np.array([item["category_id"] for item in annotations]),
        masks=[item.get("segmentation") or [] for item in annotations] if masked else None,
        keypoints=np.array([item.get("keypoints") or [0.0] * points for item in annotations]).reshape(
            len(annotations), -1, 3
        )
        if points
        else None,
        crowd=np.array([bool(item.get("iscrowd", 0)) for item in annotations], bool),
    )


def of_training(instances: Any) -> Objects:
    """Return the objects in the `Instances` that a mapper makes for training (`gt_boxes`, ...)."""
    masks = keypoints = None
    if instances.has("gt_masks"):  # polygons or bitmaps
        stored = instances.gt_masks
        masks = list(stored.polygons) if hasattr(stored, "polygons") else list(stored.tensor.numpy())
    if instances.has("gt_keypoints"):
        keypoints = instances.gt_keypoints.tensor.numpy()
    return Objects(
        boxes=instances.gt_boxes.tensor.numpy(),
        classes=instances.gt_classes.numpy(),
        masks=masks,
        keypoints=keypoints,
    )


def of_output(output: dict[str, Any]) -> Objects | None:
    """Return the detections or proposals in the output of a detectron2 model; None if its output has no boxes."""
    if "instances" in output:
        found = output["instances"].to("cpu")
        return Objects(
            boxes=found.pred_boxes.tensor.numpy(),
            classes=found.pred_classes.numpy(),
            scores=found.scores.numpy(),
            masks=list(found.pred_masks.numpy()) if found.has("pred_masks") else None,
            keypoints=found.pred_keypoints.numpy() if found.has("pred_keypoints") else None,
        )
    if "proposals" in output:
        proposals = output["proposals"].to("cpu")
        return Objects(
            boxes=proposals.proposal_boxes.tensor.numpy(),
            classes=np.full(len(proposals), -1),
            scores=proposals.objectness_logits.sigmoid().numpy(),
        )
    return None
