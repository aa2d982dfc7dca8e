"""Whether the files of a data set are there: by its own layout check where there is one, else by its metadata."""

import importlib.util
import re
from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog

from pretrain.common.errors import UserError
from transfer import catalog
from transfer.prepare import cityscapes, layouts, lvis

PATHS = (
    "json_file", "image_root", "image_dir", "gt_dir", "dirname", "panoptic_json", "panoptic_root", "sem_seg_root",
)  # fmt: skip
MINIATURE = "miniature.json"  # beside sets of a few pictures, which transfer.reproduce.miniature made
BUILDERS = {"coco": "coco", "lvis": "lvis", "cityscapes": "cityscapes"}


def check(name: str, root: Path) -> None:
    """Raise `UserError` that names the first file of a data set which is missing, and where it comes from.

    An unknown name passes. Names and counts only: no image is opened. Of the sets that `tools/reproduce.py --smoke`
    makes only the presence is looked at: their counts are their own.
    """
    if (root / MINIATURE).exists():
        if name in DatasetCatalog.list():
            _check_paths(name, root)
    elif name in catalog.VOC_MASKS:
        layouts.check_voc_masks(root)
    elif name in catalog.VOC_LABELS:
        layouts.check_voc_semseg(root, (catalog.VOC_LABELS[name],))
    elif re.fullmatch(r"voc_20(07|12)_(train|val|trainval|test)", name):
        layouts.check_voc(root, years=(name.split("_")[1],))
    elif re.fullmatch(r"coco_2017_(train|val)", name):
        layouts.check_coco(root)
    elif re.fullmatch(r"keypoints_coco_2017_(train|val)", name):
        layouts.check_keypoints(root)
    elif match := catalog.DEMO.fullmatch(name):
        layouts.check_demo(root / match[1])
    elif match := re.fullmatch(r"lvis_(v0\.5|v1)_(train|val)", name):
        need("lvis", name)
        lvis.check_lvis(root, match[1], (match[2],))
    elif match := re.fullmatch(r"cityscapes_fine_(instance|sem)_seg_(train|val)", name):
        need("cityscapesscripts", name)
        if match[1] == "instance":
            need("shapely", name)  # detectron2 resolves overlapping polygons with it
        cityscapes.check_cityscapes(root, semantic=match[1] == "sem")
    elif name in DatasetCatalog.list():
        _check_paths(name, root)


def need(package: str, name: str) -> None:
    """Raise `UserError` if a package that a data set is read or measured with is not installed."""
    if importlib.util.find_spec(package) is None:
        raise UserError(f"{name} needs the package {package}: pip install {package}")


def _check_paths(name: str, root: Path) -> None:
    metadata = MetadataCatalog.get(name)
    for key in PATHS:
        path = metadata.get(key)
        if path and "://" not in path and not Path(path).exists():
            builder = BUILDERS.get(name.split("_")[0])
            hint = f": run 'python tools/prepare_data.py {builder} --root {root}'" if builder else ""
            raise UserError(f"{name}: {path} is missing{hint}")
