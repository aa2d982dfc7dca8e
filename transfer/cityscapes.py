"""Cityscapes' instances as records in detectron2's format, read by processes that are not forked.

detectron2's own loader forks a pool from a process that may have threads by then (gloo's, the evaluators'): a fork
can inherit a lock that nobody will release, and the run hangs.
"""

import os
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from typing import Any

from detectron2.data.datasets import cityscapes

from pretrain.common import distributed
from transfer import d2_compat

Record = dict[str, Any]
CHUNK = 32  # images that a process takes at once


def instances(image_dir: str, gt_dir: str) -> list[Record]:
    """Records of a split, with polygons from its json files, as detectron2 reads them; classes 0 to 7."""
    from cityscapesscripts.helpers.labels import labels

    files = cityscapes._get_cityscapes_files(image_dir, gt_dir)
    cores = (os.cpu_count() or 1) // distributed.world_size()
    processes = min(cores, len(files) // (2 * CHUNK))
    if processes < 2:
        records = [_read(item) for item in files]
    else:
        with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
            records = list(pool.map(_read, files, chunksize=CHUNK))
    counted = [label.id for label in labels if label.hasInstances and not label.ignoreInEval]
    for record in records:
        for annotation in record["annotations"]:
            annotation["category_id"] = counted.index(annotation["category_id"])
    return records


def _read(files: tuple[str, ...]) -> Record:
    """(image, instance ids, label ids, polygons) of one image -> its record, with Cityscapes' own label ids."""
    d2_compat.alias_cityscapes()  # this may be a new process
    read = partial(cityscapes._cityscapes_files_to_dict, from_json=True, to_polygons=True)
    record: Record = read(files)
    return record
