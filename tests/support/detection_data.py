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
NARROW_HEADS = [
    "MODEL.FPN.OUT_CHANNELS", "16", "MODEL.ROI_BOX_HEAD.FC_DIM", "32", "MODEL.ROI_MASK_HEAD.CONV_DIM", "16",
]  # fmt: skip
# A ResNet-50 of a quarter of its width, under small heads
NARROW = [
    "MODEL.RESNETS.STEM_OUT_CHANNELS", "16", "MODEL.RESNETS.WIDTH_PER_GROUP", "16",
    "MODEL.RESNETS.RES2_OUT_CHANNELS", "64", *NARROW_HEADS,
]  # fmt: skip
# ViTDet's detector with a ViT of three blocks; its positions are interpolated to 6 x 6 patches, which windows do not
# divide.
NARROW_VIT = [
    "MODEL.VIT.WIDTH", "24", "MODEL.VIT.DEPTH", "3", "MODEL.VIT.HEADS", "3", "MODEL.VIT.PRETRAIN_SIZE", "64",
    "MODEL.VIT.IMAGE_SIZE", "96", "MODEL.VIT.WINDOW", "4", "MODEL.VIT.GLOBAL_BLOCKS", "(1,)", "INPUT.LSJ.SIZE", "96",
    "INPUT.MAX_SIZE_TRAIN", "96", "INPUT.MAX_SIZE_TEST", "96", *NARROW_HEADS, "MODEL.ROI_BOX_HEAD.CONV_DIM", "16",
    "MODEL.ROI_BOX_HEAD.NUM_CONV", "2", "MODEL.ROI_MASK_HEAD.NUM_CONV", "2",
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
    keypoints: int = 0,
    seed: int = 0,
) -> tuple[Path, Path]:
    """A COCO-format set: (json file, image folder). The category ids are 3, 6, ...: not contiguous, as in COCO.

    With `keypoints`, each object has that many along its diagonal, named left_a, right_a, left_b, ...
    """
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
            if keypoints:
                places = [
                    (x + w * (k + 1) // (keypoints + 1), y + h * (k + 1) // (keypoints + 1))
                    for k in range(keypoints)
                ]
                annotation["keypoints"] = [v for place in places for v in (*place, 2)]
                annotation["num_keypoints"] = keypoints
            content["annotations"].append(annotation)
    for category in content["categories"] if keypoints else ():
        category["keypoints"] = [
            f"{('left', 'right')[k % 2]}_{'abcdefghij'[k // 2]}" for k in range(keypoints)
        ]
        category["skeleton"] = []
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


def tiny_run(folder: Path) -> list[str]:
    """Overrides of a run of seconds: six images to train on and two to test on, written to `folder`."""
    train = write_coco(folder / "train", images=6)
    test = write_coco(folder / "test", images=2, seed=1)
    return [*TINY, *custom(train, test)]


def write_voc_labels(root: Path, split: str, images: int = 3) -> None:
    """Labels per pixel for `voc_2012_semseg_*`, and their images: rectangles of class 9 and 12, a void rim."""
    rng = np.random.default_rng(0)
    for part in ("JPEGImages", f"semseg/{split}"):
        (root / "VOC2012" / part).mkdir(parents=True, exist_ok=True)
    for i in range(images):
        picture, boxes = boxes_picture(rng, 128, 96, 2)
        label = np.zeros((96, 128), np.uint8)
        for x, y, w, h, kind in boxes:
            label[y : y + h, x : x + w] = 255
            label[y + 2 : y + h - 2, x + 2 : x + w - 2] = (9, 12)[kind]
        Image.fromarray(picture).save(root / "VOC2012/JPEGImages" / f"{split}_{i}.jpg")
        Image.fromarray(label).save(root / "VOC2012/semseg" / split / f"{split}_{i}.png")
    (root / "VOC2012/semseg" / f"{split}.txt").write_text("".join(f"{split}_{i}\n" for i in range(images)))


def write_cityscapes(root: Path, split: str = "val", images: int = 3) -> None:
    """Cityscapes in its own layout: a road, two cars and a person on each image of 128 x 96 pixels.

    Objects are above 100 pixels: smaller ones do not count in Cityscapes' AP.
    """
    photos, labels = (
        root / "cityscapes/leftImg8bit" / split / "ulm",
        root / "cityscapes/gtFine" / split / "ulm",
    )
    photos.mkdir(parents=True)
    labels.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(images):
        stem = f"ulm_{i:06}_000019"
        shift = int(rng.integers(0, 20))
        # (name, label id, training id, x, y, w, h), in drawing order
        objects = [
            ("road", 7, 0, 0, 48, 128, 48), ("car", 26, 13, 4 + shift, 40, 24, 16),
            ("car", 26, 13, 60 + shift, 44, 20, 20),
            ("person", 24, 11, 100, 30 + shift, 12, 30),
        ]  # fmt: skip
        ids, train_ids = np.zeros((96, 128), np.uint8), np.full((96, 128), 255, np.uint8)
        instances = np.zeros((96, 128), np.uint16)
        for number, (name, label_id, train_id, x, y, w, h) in enumerate(objects):
            window = (slice(y, y + h), slice(x, x + w))
            ids[window], train_ids[window] = label_id, train_id
            instances[window] = label_id if name == "road" else label_id * 1000 + number
        polygons = [
            {"label": name, "polygon": [[x, y], [x + w - 1, y], [x + w - 1, y + h - 1], [x, y + h - 1]]}
            for name, _, _, x, y, w, h in objects
        ]
        Image.fromarray(rng.integers(0, 256, (96, 128, 3), dtype=np.uint8)).save(
            photos / f"{stem}_leftImg8bit.png"
        )
        content = {"imgHeight": 96, "imgWidth": 128, "objects": polygons}
        (labels / f"{stem}_gtFine_polygons.json").write_text(json.dumps(content))
        Image.fromarray(instances).save(labels / f"{stem}_gtFine_instanceIds.png")
        Image.fromarray(ids).save(labels / f"{stem}_gtFine_labelIds.png")
        Image.fromarray(train_ids).save(labels / f"{stem}_gtFine_labelTrainIds.png")


def write_lvis(root: Path, name: str, images: int = 3) -> None:
    """`lvis_v0.5_val` or `lvis_v1_val` with all the categories of detectron2's list, polygons, and COCO's images.

    Each image has a frequent, a common and a rare object; category 4 is not exhaustively annotated on the first.
    """
    from detectron2.data.datasets import builtin

    split = name.rpartition("_")[2]
    classes = builtin.get_lvis_instances_meta(name)["thing_classes"]
    rng = np.random.default_rng(0)
    categories = [
        {"id": i + 1, "name": kind, "synonyms": [kind], "synset": f"{i}.n.01", "def": "", "frequency": "fcr"[i % 3],
         "image_count": 1, "instance_count": 1}
        for i, kind in enumerate(classes)
    ]  # fmt: skip
    content: dict[str, Any] = {
        "info": {},
        "licenses": [],
        "images": [],
        "annotations": [],
        "categories": categories,
    }
    (root / "lvis").mkdir(parents=True, exist_ok=True)
    (root / "coco" / f"{split}2017").mkdir(parents=True, exist_ok=True)
    for i in range(1, images + 1):
        file = f"{split}2017/{i:012}.jpg"
        picture, boxes = boxes_picture(rng, 128, 96, 3)
        Image.fromarray(picture).save(root / "coco" / file)
        content["images"].append(
            {"id": i, "width": 128, "height": 96, "coco_url": f"http://images.cocodataset.org/{file}",
             "neg_category_ids": [5], "not_exhaustive_category_ids": [4] if i == 1 else []}
        )  # fmt: skip
        for kind, (x, y, w, h, _) in enumerate(boxes):
            content["annotations"].append(
                {"id": len(content["annotations"]) + 1, "image_id": i, "category_id": kind + 1, "area": w * h,
                 "bbox": [x, y, w, h], "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]]}
            )  # fmt: skip
    (root / "lvis" / f"{name}.json").write_text(json.dumps(content))
