"""PASCAL VOC's boxes and labels per pixel as records in detectron2's format.

detectron2's own `load_voc_instances` fails on a list of exactly one image; this gives the same records else.
"""

import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

from detectron2.structures import BoxMode
from PIL import Image

from pretrain.common.errors import UserError
from transfer.prepare.voc_labels import CLASSES

Record = dict[str, Any]


def boxes(folder: Path, split: str) -> list[Record]:
    """Records of VOC's list `ImageSets/Main/SPLIT.txt`, difficult objects included, as detectron2 and the paper."""
    names = (folder / "ImageSets" / "Main" / f"{split}.txt").read_text().split()
    return [_record(folder, name) for name in names]


def labels(folder: Path, split: str) -> list[Record]:
    """Records of the label images `semseg/SPLIT/*.png` (0 ground, 1 to 20 the classes, 255 to be ignored)."""
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
    """VOC counts pixels from 1 and names the last one inside: xmin 1, xmax W is the whole width, [0, W]."""
    left, top, right, bottom = (
        float(_text(element, f"bndbox/{side}")) for side in ("xmin", "ymin", "xmax", "ymax")
    )
    kind = _text(element, "name")
    if kind not in CLASSES:
        raise ValueError(f"{kind!r} is none of VOC's classes")
    box = [left - 1, top - 1, right, bottom]
    return {"category_id": CLASSES.index(kind), "bbox": box, "bbox_mode": BoxMode.XYXY_ABS}


def _text(element: ElementTree.Element, path: str) -> str:
    text = element.findtext(path)
    if text is None:
        raise ValueError(f"it has no {path}")
    return text.strip()
