"""Read PASCAL VOC's boxes, labels per pixel and Cityscapes' instances as records in detectron2's format.

The records of VOC are the same as those of detectron2's `load_voc_instances`, which fails on a list of one image.
Those of Cityscapes are the same as detectron2's, but are read in several processes.
"""

import os
import xml.etree.ElementTree as ElementTree
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from detectron2.data.datasets import cityscapes
from detectron2.structures import BoxMode
from PIL import Image

from pretrain.common import distributed
from pretrain.common.errors import UserError
from transfer import d2_compat
from transfer.data.voc_labels import CLASSES

_CHUNK = 32  # images that a process reads at a time

Record = dict[str, Any]


def voc_boxes(folder: Path, split: str) -> list[Record]:
    """Return the records of `ImageSets/Main/SPLIT.txt`, with difficult objects, as in detectron2 and the paper."""
    names = (folder / "ImageSets" / "Main" / f"{split}.txt").read_text().split()
    return [_record(folder, name) for name in names]


def voc_labels(folder: Path, split: str) -> list[Record]:
    """Return the records of the label images `semseg/SPLIT/*.png` (0 background, 1 to 20 classes, 255 ignored)."""
    records = []
    for path in sorted((folder / "semseg" / split).glob("*.png")):
        with Image.open(path) as label:
            width, height = label.size
        records.append(
            {
                "file_name": str(folder / "JPEGImages" / f"{path.stem}.jpg"),
                "sem_seg_file_name": str(path),
                "image_id": path.stem,
                "height": height,
                "width": width,
            }
        )
    return records


def _record(folder: Path, name: str) -> Record:
    path = folder / "Annotations" / f"{name}.xml"
    try:
        root = ElementTree.parse(path).getroot()
        return {
            "file_name": str(folder / "JPEGImages" / f"{name}.jpg"),
            "image_id": name,
            "height": int(_text(root, "size/height")),
            "width": int(_text(root, "size/width")),
            "annotations": [_annotation(element) for element in root.findall("object")],
        }
    except (OSError, ElementTree.ParseError, ValueError) as error:
        raise UserError(f"{path}: not a VOC annotation: {error}") from None


def _annotation(element: ElementTree.Element) -> Record:
    """Return a box. VOC counts pixels from 1 and includes the last one: xmin 1, xmax W is the whole width, [0, W]."""
    left, top, right, bottom = (
        float(_text(element, f"bndbox/{side}")) for side in ("xmin", "ymin", "xmax", "ymax")
    )
    kind = _text(element, "name")
    if kind not in CLASSES:
        raise ValueError(f"{kind!r} is not one of VOC's classes")
    box = [left - 1, top - 1, right, bottom]
    return {"category_id": CLASSES.index(kind), "bbox": box, "bbox_mode": BoxMode.XYXY_ABS}


def _text(element: ElementTree.Element, path: str) -> str:
    text = element.findtext(path)
    if text is None:
        raise ValueError(f"it has no {path}")
    return text.strip()


def cityscapes_instances(image_dir: str, gt_dir: str) -> list[Record]:
    """Return the records of a split, with polygons from its json files, as in detectron2; classes are 0 to 7."""
    from cityscapesscripts.helpers.labels import labels

    files = cityscapes._get_cityscapes_files(image_dir, gt_dir)
    cores = (os.cpu_count() or 1) // distributed.world_size()
    processes = min(cores, len(files) // (2 * _CHUNK))
    if processes < 2:
        records = [_read_cityscapes(item) for item in files]
    else:
        with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
            records = list(pool.map(_read_cityscapes, files, chunksize=_CHUNK))
    counted = [label.id for label in labels if label.hasInstances and not label.ignoreInEval]
    for record in records:
        for annotation in record["annotations"]:
            annotation["category_id"] = counted.index(annotation["category_id"])
    return records


def _read_cityscapes(files: tuple[str, ...]) -> Record:
    """Return the record of one image, with Cityscapes' label ids, from (image, instance ids, label ids, polygons)."""
    d2_compat.alias_cityscapes()  # needed in each new process
    read = partial(cityscapes._cityscapes_files_to_dict, from_json=True, to_polygons=True)
    record: Record = read(files)
    return record
