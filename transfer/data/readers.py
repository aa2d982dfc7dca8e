"""Read PASCAL VOC's boxes, labels per pixel and Cityscapes' instances as records in detectron2's format.

The records of VOC are the same as those of detectron2's `load_voc_instances`, which fails on a list of one image, but
folders that are not quite like VOC's are read as well (`transfer.data.voc_boxes`).
Those of Cityscapes are the same as detectron2's, but are read in several processes.
"""

import os
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from detectron2.data.datasets import cityscapes
from detectron2.structures import BoxMode

from pretrain.common import distributed
from transfer import d2_compat
from transfer.data import images, voc_boxes

_CHUNK = 32  # images that a process reads at a time

Record = dict[str, Any]


def voc_objects(folder: Path, split: str) -> list[Record]:
    """Return the records of `ImageSets/Main/SPLIT.txt`, with difficult objects, as in detectron2 and the paper.

    Raises `UserError` as `voc_boxes.read_split` does.
    """
    return [_record(picture) for picture in voc_boxes.read_split(folder, split)]


def voc_labels(folder: Path, split: str) -> list[Record]:
    """Return the records of the label images `semseg/SPLIT/*.png` (0 background, 1 to 20 classes, 255 ignored)."""
    records = []
    for path in sorted((folder / "semseg" / split).glob("*.png")):
        _, (width, height) = images.header(path)
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


def _record(picture: voc_boxes.Picture) -> Record:
    width, height = picture.size
    return {
        "file_name": str(picture.file),
        "image_id": picture.name,
        "height": height,
        "width": width,
        "annotations": [
            {"category_id": box.category - 1, "bbox": list(box.xyxy), "bbox_mode": BoxMode.XYXY_ABS}
            for box in picture.boxes
        ],
    }


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
