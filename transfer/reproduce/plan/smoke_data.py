"""Miniature versions of all data sets of the tables, for `--smoke`: a few painted pictures in the real layouts.

Nothing is downloaded. The objects have classes of the imitated set, so that a smoke run reads its data with the same
code as a real one. Its numbers mean nothing.
"""

import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.data.datasets import builtin_meta
from detectron2.data.datasets.builtin import get_lvis_instances_meta
from PIL import Image

from pretrain.benchmark.fake_photos import fake_photo
from pretrain.common.console import say
from pretrain.common.files import read_json, write_json
from pretrain.data.decode import image_at
from pretrain.model.encoders import ResNet, architecture
from pretrain.model.vit import ViT
from pretrain.tensor_files import checkpoint
from transfer.data.on_disk import MINIATURE
from transfer.reproduce.jobs.lock import BEAT, STALE, Lock
from transfer.reproduce.plan.overrides import STAND_IN, STAND_IN_VIT

IMAGES = {"train": 6, "val": 4}
_STATE = {"images": IMAGES, "version": 3}  # a folder of another version is written again
_SIZE = (240, 320)  # height and width
_EACH = 8  # pictures of each of the two ImageNet classes used here
_VOC = ("cat", "bird", "dog", "horse")  # a VOC class for each kind of object
_CITY = (("person", 24, 11), ("car", 26, 13), ("bicycle", 33, 18), ("rider", 25, 12))  # name, id, training id
_POINTS = 17  # keypoints of a person in COCO


@dataclass(frozen=True)
class Picture:
    """One painted picture.

    Attributes:
        objects: tuples of class 0..3, box (x, y, w, h), and mask, bool (H, W).
    """

    path: Path
    width: int
    height: int
    objects: list[tuple[int, list[float], np.ndarray]]


def build(root: Path, *, beat: float = BEAT, stale: float = STALE) -> None:
    """Make all sets below `root` unless they exist. Takes seconds; a second process waits for the first.

    Args:
        beat, stale: times of the lock, in seconds.
    """
    root.mkdir(parents=True, exist_ok=True)
    lock = Lock(root / "lock", beat=beat, stale=stale)
    while read_json(root / MINIATURE) != _STATE:
        if not lock.acquire():  # another program is making them
            time.sleep(beat / 10)
            continue
        try:
            _build(root)
        finally:
            lock.release()


def _build(root: Path) -> None:
    if read_json(root / MINIATURE) == _STATE:
        return
    say(f"making small data sets in {root}")
    pictures = {split: _pictures(root / "painted", split) for split in IMAGES}
    _coco(root / "coco", pictures)
    _lvis(root, pictures)
    _voc(root, pictures)
    _cityscapes(root / "cityscapes", pictures)
    _demo(root / "demo_standard", pictures)
    for place, split in enumerate(IMAGES):
        _class_folders(root / "imagenet" / split, first=1000 * (1 + place))
    _stand_ins(root)
    write_json(root / MINIATURE, _STATE)


def _pictures(folder: Path, split: str) -> list[Picture]:
    """Paint pictures with a background and two objects of plain colours, a box and an ellipse, of varying kinds."""
    folder.mkdir(parents=True, exist_ok=True)
    return [
        _picture(folder / f"{split}_{n}.jpg", n + (0 if split == "train" else 100))
        for n in range(IMAGES[split])
    ]


def _picture(path: Path, number: int) -> Picture:
    height, width = _SIZE
    pixels = np.asarray(fake_photo(number).resize((width, height))).copy()
    rows, columns = np.mgrid[:height, :width]
    random, objects = np.random.default_rng(number), []
    for place in range(2):  # the left half, the right half
        w, h = (int(random.integers(60, 130)) for _ in range(2))
        x, y = place * width // 2 + int(random.integers(10, 20)), int(random.integers(10, height - h - 10))
        mask = (columns >= x) & (columns < x + w) & (rows >= y) & (rows < y + h)
        if place:
            mask &= ((columns + 0.5 - x) / w - 0.5) ** 2 + ((rows + 0.5 - y) / h - 0.5) ** 2 <= 0.25
        kind = (number + place) % len(_VOC)
        pixels[mask] = (60 * kind, 255 - 60 * kind, 128)
        objects.append((kind, [float(x), float(y), float(w), float(h)], mask))
    Image.fromarray(pixels).save(path, quality=90)
    return Picture(path, width, height, objects)


def _place(picture: Picture, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(picture.path, path)


def _demo(folder: Path, pictures: dict[str, list[Picture]]) -> None:
    """Write what `make demo` prepares: pictures with masks, pictures without labels, and class folders."""
    classes = [{"id": number, "name": name, "supercategory": ""} for number, name in enumerate(_VOC, 1)]
    for split, found in pictures.items():
        base, entries = _records(found, folder / split, classes)
        _write(folder / "annotations" / f"instances_{split}.json", base, entries, classes)
    _class_folders(folder / "pretrain", first=3000)
    for place, split in enumerate(IMAGES):
        _class_folders(folder / "knn" / split, first=1000 * (4 + place))
    counts = {split: len(found) for split, found in pictures.items()}
    write_json(folder / "demo.json", {"complete": True, "counts": counts, "classes": list(_VOC)})


def _class_folders(folder: Path, *, first: int) -> None:
    """Write two class folders. No picture is in both splits, since the linear probe refuses that."""
    for kind in range(2):
        place = folder / f"n{kind:08}"
        place.mkdir(parents=True, exist_ok=True)
        for number in range(_EACH):
            fake_photo(first + kind * _EACH + number).resize((128, 128)).save(place / f"{number}.jpg")


def _coco(folder: Path, pictures: dict[str, list[Picture]]) -> None:
    """Write instances with COCO's categories, and persons with keypoints along their diagonal."""
    categories = [c for c in builtin_meta.COCO_CATEGORIES if c["isthing"]]
    plain = [{"id": c["id"], "name": c["name"], "supercategory": ""} for c in categories]
    person = [{**plain[0], "keypoints": list(builtin_meta.COCO_PERSON_KEYPOINT_NAMES), "skeleton": []}]
    for split, found in pictures.items():
        base, entries = _records(found, folder / f"{split}2017", plain)
        points = [
            {**e, "category_id": 1, "num_keypoints": _POINTS, "keypoints": _diagonal(e["bbox"])}
            for e in entries
        ]
        _write(folder / "annotations" / f"instances_{split}2017.json", base, entries, plain)
        _write(folder / "annotations" / f"person_keypoints_{split}2017.json", base, points, person)


def _records(
    pictures: list[Picture], folder: Path, categories: list[dict[str, Any]]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Copy the pictures to `folder`. Return what a COCO file says of them, and their annotations."""
    images, entries = [], []
    for number, picture in enumerate(pictures, 1):
        name = f"{number:012}.jpg"
        _place(picture, folder / name)
        images.append({"id": number, "file_name": name, "width": picture.width, "height": picture.height})
        entries += [_entry(number, kind, box, mask, categories) for kind, box, mask in picture.objects]
    for number, entry in enumerate(entries, 1):
        entry["id"] = number
    return {"info": {}, "licenses": [], "images": images}, entries


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
    """Write LVIS v0.5 annotations with all categories, on the pictures of `_coco`."""
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
    """Write VOC 2007 and 2012 with boxes, and the per-pixel labels of 2012."""
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
    """Write polygons and per-pixel labels with Cityscapes' ids; the background is road."""
    for split, found in pictures.items():
        for number, picture in enumerate(found):
            stem = f"ulm_{number:06}_000019"
            photo = folder / "leftImg8bit" / split / "ulm" / f"{stem}_leftImg8bit.png"
            photo.parent.mkdir(parents=True, exist_ok=True)
            with image_at(picture.path) as image:
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


def _stand_ins(root: Path) -> None:
    """Save a random quarter-width ResNet-50 and a narrow ViT, for rows whose weights are downloaded."""
    torch.manual_seed(0)
    checkpoint.save(root / STAND_IN, dict(ResNet(architecture("resnet50", 0.25)).state_dict()))
    vit = ViT(width=64, depth=12, heads=1, image_size=64)
    checkpoint.save(root / STAND_IN_VIT, dict(vit.state_dict()))
