"""A small COCO-format set of coloured rectangles and ellipses, for measuring speed where no data is at hand."""

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np

CLASSES = ("rectangle", "ellipse")


def write(folder: Path, *, side: int, images: int = 64, objects: int = 7) -> tuple[Path, Path]:
    """Write JPEGs of 4:3, every fourth upright, with boxes and masks; returns the json and the image folder.

    COCO has about 7 objects an image (Lin et al. 2014).

    Args:
        side: length of the shorter side, pixels.
        objects: on each image.
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
            annotations.append(_object(rng, canvas, image=image, number=len(annotations) + 1))
        name = f"{image:04}.jpg"
        cv2.imwrite(str(pictures / name), canvas)
        entries.append({"id": image, "file_name": name, "width": width, "height": height})
    categories = [{"id": i + 1, "name": name} for i, name in enumerate(CLASSES)]
    path = folder / "instances.json"
    content = {"images": entries, "annotations": annotations, "categories": categories}
    path.write_text(json.dumps(content))
    return path, pictures


def _object(rng: np.random.Generator, canvas: np.ndarray, *, image: int, number: int) -> dict[str, Any]:
    """Draw one object; its annotation, with a polygon of at most 24 corners."""
    height, width = canvas.shape[:2]
    w, h = (rng.uniform(0.1, 0.4, 2) * min(width, height)).tolist()
    x, y = rng.uniform(0, width - w), rng.uniform(0, height - h)
    kind = int(rng.integers(len(CLASSES)))
    if CLASSES[kind] == "ellipse":
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
