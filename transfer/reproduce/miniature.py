"""Every data set of the tables in miniature, for `--smoke`: a few pictures of the demo in the true layouts.

The objects keep their boxes and masks and take classes of the set that is imitated. So the smoke run reads its
data by the same code as the real one. The numbers mean nothing.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from pycocotools import mask as coco_mask

from transfer import d2_compat  # noqa: F401 (first)

# isort: split
from detectron2.data.datasets import builtin_meta
from detectron2.data.datasets.builtin import get_lvis_instances_meta

from pretrain import checkpoint
from pretrain.console import say
from pretrain.encoders import Architecture, ResNet
from transfer.prepare.demo import build_demo
from transfer.present import MINIATURE
from transfer.reproduce.smoke import STAND_IN
from transfer.results import write_json

IMAGES = {"train": 6, "val": 4}
_VOC = ("cat", "bird", "dog", "horse")  # of VOC's classes, in the place of the demo's four
_CITY = (("person", 24, 11), ("car", 26, 13), ("bicycle", 33, 18), ("rider", 25, 12))  # name, id, training id
_POINTS = 17  # of COCO's persons


@dataclass(frozen=True)
class Picture:
    """One picture of the demo.

    Attributes:
        objects: (class 0..3, box x y w h, mask (H, W) of bool).
    """

    path: Path
    width: int
    height: int
    objects: list[tuple[int, list[float], np.ndarray]]


def build(root: Path) -> None:
    """Make all sets below `root` unless they are there. Takes half a minute the first time."""
    if (root / MINIATURE).exists():
        return
    say(f"making small data sets in {root}")
    demo = build_demo(root, size="quick")
    pictures = {split: _pictures(demo, split) for split in IMAGES}
    _coco(root / "coco", pictures)
    _lvis(root, pictures)
    _voc(root, pictures)
    _cityscapes(root / "cityscapes", pictures)
    for split in IMAGES:
        place = root / "imagenet" / split
        shutil.rmtree(place, ignore_errors=True)
        _few(demo / "knn" / split, place)
    _stand_in(root / STAND_IN)
    write_json(root / MINIATURE, {"images": IMAGES})


def _pictures(demo: Path, split: str) -> list[Picture]:
    content = json.loads((demo / "annotations" / f"instances_{split}.json").read_text())
    objects: dict[int, list[Any]] = {}
    for entry in content["annotations"]:
        mask = coco_mask.decode(entry["segmentation"]).astype(bool)
        objects.setdefault(entry["image_id"], []).append((entry["category_id"] - 1, entry["bbox"], mask))
    chosen = [image for image in content["images"] if image["id"] in objects][: IMAGES[split]]
    return [
        Picture(demo / split / image["file_name"], image["width"], image["height"], objects[image["id"]])
        for image in chosen
    ]


def _place(picture: Picture, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        shutil.copyfile(picture.path, path)


def _few(source: Path, target: Path, *, each: int = 8) -> None:
    """The first images of each class folder."""
    for folder in sorted(source.iterdir()):
        for path in sorted(folder.iterdir())[:each]:
            (target / folder.name).mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target / folder.name / path.name)


def _coco(folder: Path, pictures: dict[str, list[Picture]]) -> None:
    """Instances with COCO's categories, and persons with keypoints along their diagonal."""
    categories = [c for c in builtin_meta.COCO_CATEGORIES if c["isthing"]]
    plain = [{"id": c["id"], "name": c["name"], "supercategory": ""} for c in categories]
    person = [{**plain[0], "keypoints": list(builtin_meta.COCO_PERSON_KEYPOINT_NAMES), "skeleton": []}]
    for split, found in pictures.items():
        images, entries = [], []
        for number, picture in enumerate(found, 1):
            name = f"{number:012}.jpg"
            _place(picture, folder / f"{split}2017" / name)
            images.append({"id": number, "file_name": name, "width": picture.width, "height": picture.height})
            entries += [_entry(number, kind, box, mask, plain) for kind, box, mask in picture.objects]
        for number, entry in enumerate(entries, 1):
            entry["id"] = number
        base = {"info": {}, "licenses": [], "images": images}
        points = [
            {**e, "category_id": 1, "num_keypoints": _POINTS, "keypoints": _diagonal(e["bbox"])}
            for e in entries
        ]
        _write(folder / "annotations" / f"instances_{split}2017.json", base, entries, plain)
        _write(folder / "annotations" / f"person_keypoints_{split}2017.json", base, points, person)


def _entry(
    image: int, kind: int, box: list[float], mask: np.ndarray, categories: list[dict]
) -> dict[str, Any]:
    x, y, w, h = box
    return {
        "image_id": image, "category_id": categories[kind]["id"], "bbox": box, "area": int(mask.sum()), "iscrowd": 0,
        "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]],
    }  # fmt: skip


def _diagonal(box: list[float]) -> list[float]:
    x, y, w, h = box
    return [v for n in range(_POINTS) for v in (x + w * (n + 0.5) / _POINTS, y + h * (n + 0.5) / _POINTS, 2)]


def _write(path: Path, base: dict[str, Any], annotations: list[Any], categories: list[Any]) -> None:
    write_json(path, {**base, "annotations": annotations, "categories": categories})


def _lvis(root: Path, pictures: dict[str, list[Picture]]) -> None:
    """LVIS v0.5 with all its categories, on the pictures of `_coco`."""
    names = get_lvis_instances_meta("lvis_v0.5_train")["thing_classes"]
    categories = [
        {"id": n, "name": name, "synonyms": [name], "synset": f"{n}.n.01", "def": "", "frequency": "fcr"[n % 3],
         "image_count": 1, "instance_count": 1}
        for n, name in enumerate(names, 1)
    ]  # fmt: skip
    for split, found in pictures.items():
        images = [
            {"id": n, "width": p.width, "height": p.height, "neg_category_ids": [5], "not_exhaustive_category_ids": [],
             "file_name": f"{n:012}.jpg", "coco_url": f"http://images.cocodataset.org/{split}2017/{n:012}.jpg"}
            for n, p in enumerate(found, 1)
        ]  # fmt: skip
        entries = [
            _entry(n, kind, box, mask, categories)
            for n, p in enumerate(found, 1)
            for kind, box, mask in p.objects
        ]
        entries = [{**entry, "id": number} for number, entry in enumerate(entries, 1)]
        base = {"info": {}, "licenses": [], "images": images}
        _write(root / "lvis" / f"lvis_v0.5_{split}.json", base, entries, categories)


def _voc(root: Path, pictures: dict[str, list[Picture]]) -> None:
    """VOC2007 and 2012 with boxes, and the labels per pixel of 2012."""
    for year, split, part in (
        ("2007", "trainval", "train"),
        ("2007", "test", "val"),
        ("2012", "trainval", "train"),
    ):
        folder = root / f"VOC{year}"
        names = [f"{split}_{number}" for number in range(len(pictures[part]))]
        for name, picture in zip(names, pictures[part], strict=True):
            _place(picture, folder / "JPEGImages" / f"{name}.jpg")
            _text(folder / "Annotations" / f"{name}.xml", _voc_xml(picture))
        _text(folder / "ImageSets" / "Main" / f"{split}.txt", "\n".join(names) + "\n")
    for split, part in (("train_aug", "train"), ("val", "val")):
        folder = root / "VOC2012"
        names = [f"{split}_{number}" for number in range(len(pictures[part]))]
        for name, picture in zip(names, pictures[part], strict=True):
            _place(picture, folder / "JPEGImages" / f"{name}.jpg")
            label = np.zeros((picture.height, picture.width), np.uint8)
            for kind, _, mask in picture.objects:
                label[mask] = kind + 1
            _png(folder / "semseg" / split / f"{name}.png", label)
        _text(folder / "semseg" / f"{split}.txt", "\n".join(names) + "\n")


def _voc_xml(picture: Picture) -> str:
    objects = "".join(
        f"<object><name>{_VOC[kind]}</name><pose>Unspecified</pose><truncated>0</truncated><difficult>0</difficult>"
        f"<bndbox><xmin>{x + 1:.0f}</xmin><ymin>{y + 1:.0f}</ymin>"
        f"<xmax>{x + w:.0f}</xmax><ymax>{y + h:.0f}</ymax></bndbox></object>"
        for kind, (x, y, w, h), _ in picture.objects
    )
    size = f"<width>{picture.width}</width><height>{picture.height}</height><depth>3</depth>"
    return f"<annotation><size>{size}</size>{objects}</annotation>"


def _cityscapes(folder: Path, pictures: dict[str, list[Picture]]) -> None:
    """Polygons, and labels per pixel by Cityscapes' ids; the ground is road."""
    for split, found in pictures.items():
        for number, picture in enumerate(found):
            stem = f"ulm_{number:06}_000019"
            photo = folder / "leftImg8bit" / split / "ulm" / f"{stem}_leftImg8bit.png"
            photo.parent.mkdir(parents=True, exist_ok=True)
            with Image.open(picture.path) as image:
                image.convert("RGB").save(photo)
            _city_labels(folder / "gtFine" / split / "ulm" / stem, picture)


def _city_labels(stem: Path, picture: Picture) -> None:
    shape = (picture.height, picture.width)
    ids, train_ids, instances = (
        np.full(shape, 7, np.uint8),
        np.zeros(shape, np.uint8),
        np.full(shape, 7, np.uint16),
    )
    objects: list[dict[str, Any]] = []
    for number, (kind, (x, y, w, h), mask) in enumerate(picture.objects):
        name, label, training = _CITY[kind]
        ids[mask], train_ids[mask], instances[mask] = label, training, label * 1000 + number
        corners = [[x, y], [x + w - 1, y], [x + w - 1, y + h - 1], [x, y + h - 1]]
        objects.append({"label": name, "polygon": [[int(a), int(b)] for a, b in corners]})
    for kind_, array in (("labelIds", ids), ("labelTrainIds", train_ids), ("instanceIds", instances)):
        _png(stem.with_name(f"{stem.name}_gtFine_{kind_}.png"), array)
    content = {"imgHeight": picture.height, "imgWidth": picture.width, "objects": objects}
    write_json(stem.with_name(f"{stem.name}_gtFine_polygons.json"), content)


def _png(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def _text(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def _stand_in(path: Path) -> None:
    """A quarter-width ResNet-50 of random numbers by torchvision's names, for rows whose weights are downloaded."""
    torch.manual_seed(0)
    checkpoint.save(path, dict(ResNet(Architecture(50, (3, 4, 6, 3), width=0.25)).state_dict()))
