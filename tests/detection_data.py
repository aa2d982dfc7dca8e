"""Small detection sets in the true layouts, made by the tests that need them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

TINY = [
    "MODEL.DEVICE", "cpu", "DATALOADER.NUM_WORKERS", "0", "INPUT.MIN_SIZE_TRAIN", "(96,)", "INPUT.MIN_SIZE_TEST", "96",
    "SOLVER.IMS_PER_BATCH", "2", "SOLVER.WARMUP_ITERS", "0", "SOLVER.LOG_PERIOD", "1", "MODEL.RPN.POST_NMS_TOPK_TEST",
    "20", "MODEL.RPN.POST_NMS_TOPK_TRAIN", "20", "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "16", "TEST.PICTURES", "2",
    "TEST.PRECISE_BN.NUM_ITER", "2",
]  # fmt: skip


def boxes_picture(
    rng: np.random.Generator, width: int, height: int, boxes: int
) -> tuple[np.ndarray, list[Any]]:
    """A noisy picture with bright rectangles: (H, W, 3) uint8 and [(x, y, w, h, class index)]."""
    picture = rng.integers(0, 90, (height, width, 3), dtype=np.uint8)
    found = []
    for _ in range(boxes):
        w, h = rng.integers(24, 48, 2).tolist()
        x, y = int(rng.integers(0, width - w)), int(rng.integers(0, height - h))
        kind = int(rng.integers(0, 2))
        picture[y : y + h, x : x + w] = (220, 60, 60) if kind else (60, 60, 220)
        found.append((x, y, w, h, kind))
    return picture, found


def write_coco(
    folder: Path,
    *,
    images: int = 4,
    classes: tuple[str, ...] = ("cup", "key"),
    masks: bool = True,
    seed: int = 0,
) -> tuple[Path, Path]:
    """A COCO-format set: (json file, image folder). The category ids are 3, 6, ...: not contiguous, as in COCO."""
    rng = np.random.default_rng(seed)
    picture_folder = folder / "images"
    picture_folder.mkdir(parents=True)
    content: dict[str, list[dict[str, Any]]] = {
        "images": [],
        "annotations": [],
        "categories": [{"id": 3 * (i + 1), "name": name} for i, name in enumerate(classes)],
    }
    for image_id in range(1, images + 1):
        width, height = (128, 96) if image_id % 3 else (96, 128)
        picture, boxes = boxes_picture(rng, width, height, 2)
        name = f"{image_id:03}.png"
        Image.fromarray(picture).save(picture_folder / name)
        content["images"].append({"id": image_id, "file_name": name, "width": width, "height": height})
        for x, y, w, h, kind in boxes:
            annotation = {
                "id": len(content["annotations"]) + 1, "image_id": image_id,
                "category_id": 3 * (kind % len(classes) + 1), "bbox": [x, y, w, h], "area": w * h, "iscrowd": 0,
            }  # fmt: skip
            if masks:
                bitmap = np.zeros((height, width), np.uint8, order="F")
                bitmap[y : y + h, x : x + w] = 1
                rle = coco_mask.encode(bitmap)
                annotation["segmentation"] = {"size": rle["size"], "counts": rle["counts"].decode()}
            content["annotations"].append(annotation)
    annotations = folder / "instances.json"
    annotations.write_text(json.dumps(content))
    return annotations, picture_folder


def custom(train: tuple[Path, Path], test: tuple[Path, Path]) -> list[str]:
    """Overrides that name a train and a test set of `write_coco`."""
    return [
        "DATASETS.TRAIN_JSON", str(train[0]), "DATASETS.TRAIN_IMAGES", str(train[1]),
        "DATASETS.TEST_JSON", str(test[0]), "DATASETS.TEST_IMAGES", str(test[1]),
    ]  # fmt: skip


def write_voc(root: Path, images: int = 3) -> None:
    """VOC2007 and VOC2012 in detectron2's layout, every list with `images` names."""
    rng = np.random.default_rng(0)
    for year, splits in (("2007", ("trainval", "test")), ("2012", ("trainval",))):
        folder = root / f"VOC{year}"
        for part in ("Annotations", "ImageSets/Main", "JPEGImages"):
            (folder / part).mkdir(parents=True, exist_ok=True)
        for split in splits:
            names = [f"{year}_{split}_{i}" for i in range(images)]
            (folder / "ImageSets/Main" / f"{split}.txt").write_text("\n".join(names) + "\n")
            for name in names:
                picture, boxes = boxes_picture(rng, 128, 96, 2)
                Image.fromarray(picture).save(folder / "JPEGImages" / f"{name}.jpg")
                objects = "".join(_voc_object(*box) for box in boxes)
                (folder / "Annotations" / f"{name}.xml").write_text(
                    f"<annotation><size><width>128</width><height>96</height><depth>3</depth></size>{objects}</annotation>"
                )


def _voc_object(x: int, y: int, w: int, h: int, kind: int) -> str:
    name = ("chair", "dog")[kind]
    return (
        f"<object><name>{name}</name><pose>Left</pose><truncated>0</truncated><difficult>0</difficult>"
        f"<bndbox><xmin>{x + 1}</xmin><ymin>{y + 1}</ymin>"
        f"<xmax>{x + w}</xmax><ymax>{y + h}</ymax></bndbox></object>"
    )
