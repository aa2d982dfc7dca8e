"""Small data sets in the COCO format as annotation tools write it, field by field.

Each function writes 4 pictures and the json of one tool. It returns the json file and the folder that its
`file_name`s are relative to. The structures were read from the code of the exporters, which the docstrings name; the
code here is our own. All tools get the same objects of 3 classes: in each picture 3 polygons and, with `boxes`, a
rectangle, which most tools export without a mask. In the last picture, one object is round and one has two parts.
"""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image, ImageDraw
from pycocotools import mask as coco_mask

Entry = dict[str, Any]
Point = tuple[float, float]
Part = tuple[Point, ...]

CLASSES = ("bolt", "gear", "washer")
_COLORS = ((210, 60, 50), (60, 170, 70), (70, 90, 210))


@dataclass(frozen=True)
class _Object:
    """One object: its class, its polygons, and whether it was drawn as a rectangle or as a circle (x, y, radius)."""

    kind: int
    parts: tuple[Part, ...]
    is_box: bool = False
    circle: tuple[float, float, float] | None = None

    @property
    def bounds(self) -> list[float]:
        return _bounds([point for part in self.parts for point in part])

    @property
    def polygons(self) -> list[list[float]]:
        return [_flat(part) for part in self.parts]


@dataclass(frozen=True)
class _Scene:
    width: int
    height: int
    objects: tuple[_Object, ...]

    def mask(self, thing: _Object) -> np.ndarray:
        """Return the mask of an object, (height, width) of 0 and 1."""
        rles = coco_mask.frPyObjects(thing.polygons, self.height, self.width)
        return coco_mask.decode(coco_mask.merge(rles))


def _polygon(kind: int, *points: Point) -> _Object:
    return _Object(kind, (points,))


def _box(kind: int, x0: float, y0: float, x1: float, y1: float) -> _Object:
    return _Object(kind, (((x0, y0), (x1, y0), (x1, y1), (x0, y1)),), is_box=True)


def _circle(kind: int, x: float, y: float, radius: float) -> _Object:
    angles = [2 * math.pi * i / 16 for i in range(16)]
    points = tuple((round(x + radius * math.cos(a), 2), round(y + radius * math.sin(a), 2)) for a in angles)
    return _Object(kind, (points,), circle=(x, y, radius))


# fmt: off
_SCENES = (
    _Scene(64, 48, (
        _polygon(0, (5.3, 4.2), (24.6, 6.8), (22.1, 21.5), (7.4, 19.9)),
        _polygon(1, (42.5, 3.2), (54.9, 2.4), (61.3, 11.7), (52.1, 21.6), (40.2, 15.3)),
        _polygon(2, (44.6, 28.4), (64, 26.7), (64, 48), (47.2, 45.1)),  # reaches two borders
        _box(1, 4.5, 26.25, 30.75, 44.5),
    )),
    _Scene(64, 48, (
        _box(0, 0, 0, 18.4, 15.6),
        _polygon(1, (36.5, 3.5), (58.5, 3.5), (58.5, 11.5), (46.5, 11.5), (46.5, 24.5), (36.5, 24.5)),
        _polygon(2, (8.7, 28.1), (25.2, 46.6), (4.5, 44.8)),
        _polygon(0, (43.4, 29.8), (57.2, 31.1), (60.7, 38.3), (54.6, 45.9), (40.9, 44.2), (37.8, 36.4)),
    )),
    _Scene(48, 64, (
        _polygon(1, (3.2, 5.1), (21.7, 3.4), (22.9, 24.2), (4.8, 26.6)),
        _polygon(2, (18.4, 42.2), (48, 39.6), (46.9, 64), (16.3, 62.5)),
        _polygon(0, (2.2, 32.8), (13.6, 30.1), (14.9, 52.4), (3.1, 55.7)),
        _box(0, 26.1, 6.3, 45.8, 29.9),
    )),
    _Scene(64, 48, (
        _circle(0, 18, 20, 13.5),
        _Object(1, (((40.2, 4.1), (57.8, 5.6), (55.3, 13.9), (41.7, 12.5)),
                    ((42.4, 17.8), (59.6, 19.1), (56.2, 27.7), (43.9, 26.3)))),
        _polygon(2, (3.4, 36.9), (22.6, 37.8), (24.1, 46.4), (5.2, 45.5)),
        _box(1, 34.3, 32.4, 62.6, 46.9),
    )),
)
# fmt: on


def coco(folder: Path, *, boxes: bool = True) -> tuple[Path, Path]:
    """COCO 2017, `annotations/instances_val2017.json` next to `val2017/`.

    Source: cocodataset.org/#format-data, and the excerpt of the file in ox-vgg/via,
    via-2.x.y/src/tests/_via_test_coco.js. The category ids have gaps. Every object has polygons with 2 decimals and
    their exact area; a crowd is an uncompressed RLE with the area of the mask, and its id needs more than 32 bits.
    """
    categories = [("person", 1, "person"), ("kitchen", 44, "bottle"), ("indoor", 90, "toothbrush")]
    images, annotations = [], []
    for scene, image_id in zip(_scenes(boxes), (139, 285, 632, 724), strict=True):
        name = f"{image_id:012d}.jpg"
        _draw(folder / "val2017" / name, scene)
        images.append(
            {
                "license": 4,
                "file_name": name,
                "coco_url": f"http://images.cocodataset.org/val2017/{name}",
                "height": scene.height,
                "width": scene.width,
                "date_captured": "2013-11-14 17:02:52",
                "flickr_url": f"http://farm7.staticflickr.com/6116/{image_id}_z.jpg",
                "id": image_id,
            }
        )
        for thing in scene.objects:
            category = categories[thing.kind][1]
            entry: Entry = {
                "segmentation": [[round(v, 2) for v in polygon] for polygon in thing.polygons],
                "area": sum(map(_area, thing.parts)),
                "iscrowd": 0,
                "image_id": image_id,
                "bbox": [round(v, 2) for v in thing.bounds],
                "category_id": category,
                "id": 82445 + 1733 * len(annotations),
            }
            if len(thing.parts) > 1:
                mask = scene.mask(thing)
                entry["segmentation"] = {"counts": _counts(mask), "size": [scene.height, scene.width]}
                entry |= {"area": int(mask.sum()), "iscrowd": 1, "bbox": [int(v) for v in _mask_box(mask)]}
                entry["id"] = int(f"9{category:03d}{image_id:08d}")
            annotations.append(entry)
    content = {
        "info": {
            "description": "COCO 2017 Dataset",
            "url": "http://cocodataset.org",
            "version": "1.0",
            "year": 2017,
            "contributor": "COCO Consortium",
            "date_created": "2017/09/01",
        },
        "licenses": [
            {"url": "http://creativecommons.org/licenses/by/2.0/", "id": 4, "name": "Attribution License"}
        ],
        "images": images,
        "annotations": annotations,
        "categories": [
            {"supercategory": group, "id": number, "name": name} for group, number, name in categories
        ],
    }
    json_file = folder / "annotations" / "instances_val2017.json"
    return _write(json_file, json.dumps(content)), folder / "val2017"


def label_studio(folder: Path, *, boxes: bool = True) -> tuple[Path, Path]:
    """Label Studio, "COCO with images": `result.json` next to `images/`.

    Source: HumanSignal/label-studio-sdk 2.1.3, src/label_studio_sdk/converter/converter.py, `convert_to_coco`. All
    ids count from 0, there are no licenses and no supercategories, and slashes in the text are escaped. Coordinates
    are converted from percentages. A rectangle has an empty segmentation.
    """
    images, annotations = [], []
    for index, scene in enumerate(_scenes(boxes)):
        name = f"{0x3A1C7D6B + 7919 * index:08x}-line_{index}.jpg"
        _draw(folder / "images" / name, scene)
        images.append(
            {"width": scene.width, "height": scene.height, "id": index, "file_name": f"images/{name}"}
        )
        for thing in _one_part_each(scene):
            points = [
                (x * 100 / scene.width / 100 * scene.width, y * 100 / scene.height / 100 * scene.height)
                for x, y in thing.parts[0]
            ]
            box = _bounds(points)
            annotations.append(
                {
                    "id": len(annotations),
                    "image_id": index,
                    "category_id": thing.kind,
                    "segmentation": [] if thing.is_box else [_flat(points)],
                    "bbox": box,
                    "ignore": 0,
                    "iscrowd": 0,
                    "area": box[2] * box[3] if thing.is_box else _area(points),
                }
            )
    content = {
        "images": images,
        "categories": [{"id": index, "name": name} for index, name in enumerate(CLASSES)],
        "annotations": annotations,
        "info": {
            "year": 2025,
            "version": "1.0",
            "description": "",
            "contributor": "Label Studio",
            "url": "",
            "date_created": "2025-04-11 19:02:12.209886",
        },
    }
    return _write(folder / "result.json", json.dumps(content, indent=2).replace("/", "\\/")), folder


def label_studio_server_paths(folder: Path, *, boxes: bool = True) -> tuple[Path, Path]:
    """Label Studio, "COCO with images", where the server itself holds the uploaded pictures.

    Source: as `label_studio`, and src/label_studio_sdk/_extensions/label_studio_tools/core/utils/io.py,
    `get_local_path`. The pictures are in `images/`, but a `file_name` leads to the upload folder of the server.
    """
    json_file, images = label_studio(folder, boxes=boxes)
    text = json_file.read_text(encoding="utf-8").replace('"images\\/', '"..\\/..\\/media\\/upload\\/4\\/')
    return _write(json_file, text), images


def cvat(folder: Path, *, boxes: bool = True) -> tuple[Path, Path]:
    """CVAT, "COCO 1.0": `annotations/instances_default.json`, and `images/default/` with the folders of the task.

    Source: cvat-ai/cvat, cvat/apps/dataset_manager/formats/coco.py and bindings.py (the attributes), and
    cvat-ai/datumaro 0.3, datumaro/plugins/coco_format/converter.py (the same in its later
    src/datumaro/plugins/data_formats/coco/exporter.py). Ids count from 1. A rectangle has an empty segmentation and
    a rotation. Grouped polygons are one object. A brush mask is an uncompressed RLE, which the exporter always
    marks as a crowd. Areas are numbers of pixels; those of rectangles are exact.
    """
    images, annotations = [], []
    for index, scene in enumerate(_scenes(boxes)):
        name = f"camera_{index % 2}/frame_{index:06d}.jpg"
        _draw(folder / "images" / "default" / name, scene)
        images.append(
            {
                "id": index + 1,
                "width": scene.width,
                "height": scene.height,
                "file_name": name,
                "license": 0,
                "flickr_url": "",
                "coco_url": "",
                "date_captured": 0,
            }
        )
        for thing in sorted(scene.objects, key=lambda thing: len(thing.parts)):  # groups come last
            mask, is_painted = scene.mask(thing), thing.circle is not None
            segmentation: Any = [] if thing.is_box else [list(map(float, part)) for part in thing.polygons]
            if is_painted:
                segmentation = {"counts": _counts(mask), "size": [scene.height, scene.width]}
            box = _mask_box(mask) if is_painted else thing.bounds
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": index + 1,
                    "category_id": thing.kind + 1,
                    "segmentation": segmentation,
                    "area": float(box[2] * box[3] if thing.is_box else mask.sum()),
                    "bbox": [round(float(v), 2) for v in box],
                    "iscrowd": int(is_painted),
                    "attributes": {
                        "damaged": False,
                        "occluded": thing.kind == 2,
                        **({"rotation": 0.0} if thing.is_box else {}),
                    },
                }
            )
    empty = dict.fromkeys(("contributor", "date_created", "description", "url", "version", "year"), "")
    content = {
        "licenses": [{"name": "", "id": 0, "url": ""}],
        "info": empty,
        "categories": [{"id": i + 1, "name": name, "supercategory": ""} for i, name in enumerate(CLASSES)],
        "images": images,
        "annotations": annotations,
    }
    json_file = folder / "annotations" / "instances_default.json"
    return _write(json_file, _compact(content)), folder / "images" / "default"


def roboflow(folder: Path, *, boxes: bool = True) -> tuple[Path, Path]:
    """Roboflow, "COCO" or "COCO Segmentation": `train/_annotations.coco.json` among the pictures.

    Its exporter is not public. Source: published exports, JermaineZhao/Nail_Segmentation (2025),
    a-hwang/building-facade-segmentation (2023) and elliotttmiller/drywall-toolbox (2026). Ids count from 0. Category
    0 is the name of the project, without objects. The corner of a box is rounded to whole pixels and its size is
    not, so a box can be shifted by half a pixel against its polygon and extend beyond the image by as much. Areas are
    those of the boxes. Polygons repeat their first point at the end; a mask from smart selection is a compressed RLE.
    """
    images, annotations = [], []
    for index, scene in enumerate(_scenes(boxes)):
        original = f"shelf-{index}.png"
        name = f"shelf-{index}_png.rf.{0xA6EE93AACD3F1F460D69C173BD4A21A3 + index:032x}.jpg"
        _draw(folder / "train" / name, scene)
        images.append(
            {
                "id": index,
                "license": 1,
                "file_name": name,
                "height": scene.height,
                "width": scene.width,
                "date_captured": "2025-03-11T15:35:30+00:00",
                "extra": {"name": original},
            }
        )
        for thing in _one_part_each(scene):
            x, y, w, h = thing.bounds
            segmentation: Any = [[_short(v) for v in _flat((*thing.parts[0], thing.parts[0][0]))]]
            if thing.is_box:
                segmentation = []
            elif thing.circle:
                rle = coco_mask.encode(np.asfortranarray(scene.mask(thing)))
                x, y, w, h = _mask_box(scene.mask(thing))
                segmentation = {"counts": rle["counts"].decode(), "size": [scene.height, scene.width]}
            annotations.append(
                {
                    "id": len(annotations),
                    "image_id": index,
                    "category_id": thing.kind + 1,
                    "bbox": [math.floor(x + 0.5), math.floor(y + 0.5), _short(w), _short(h)],
                    "area": _short(w * h),
                    "segmentation": segmentation,
                    "iscrowd": 0,
                }
            )
    content = {
        "info": {
            "year": "2025",
            "version": "3",
            "description": "Exported from roboflow.com",
            "contributor": "",
            "url": "https://public.roboflow.com/object-detection/undefined",
            "date_created": "2025-03-11T15:35:30+00:00",
        },
        "licenses": [{"id": 1, "url": "https://creativecommons.org/licenses/by/4.0/", "name": "CC BY 4.0"}],
        "categories": [
            {"id": 0, "name": "parts-kBrO", "supercategory": "none"},
            *({"id": i + 1, "name": name, "supercategory": "parts-kBrO"} for i, name in enumerate(CLASSES)),
        ],
        "images": images,
        "annotations": annotations,
    }
    return _write(folder / "train" / "_annotations.coco.json", _compact(content)), folder / "train"


def labelme2coco(folder: Path, *, boxes: bool = True) -> tuple[Path, Path]:
    """labelme2coco, the package: `runs/labelme2coco/dataset.json`, run in `folder` on `photos/`.

    Source: fcakyon/labelme2coco 0.2.6, labelme2coco/labelme2coco.py, and obss/sahi 0.12.6, sahi/utils/coco.py
    (`create_coco_dict`) and sahi/utils/shapely.py. A `file_name` is the path that the tool was given, relative to the
    working directory or absolute. Category ids count from 0 in the order of appearance, the others from 1. There is
    no info. Polygon coordinates and areas are truncated to integers; boxes are not. A rectangle has no segmentation.
    """
    images, annotations, classes = [], [], []
    for index, scene in enumerate(_scenes(boxes)):
        name = f"photos/img_{index}.jpg"
        _draw(folder / name, scene)
        images.append({"height": scene.height, "width": scene.width, "id": index + 1, "file_name": name})
        for thing in _one_part_each(scene):
            if thing.kind not in classes:
                classes.append(thing.kind)
            annotations.append(
                {
                    "iscrowd": 0,
                    "image_id": index + 1,
                    "bbox": list(map(float, thing.bounds)),
                    "segmentation": [] if thing.is_box else [[int(v) for v in thing.polygons[0]]],
                    "category_id": classes.index(thing.kind),
                    "id": len(annotations) + 1,
                    "area": int(_area(thing.parts[0])),
                }
            )
    categories = [
        {"id": index, "name": CLASSES[kind], "supercategory": CLASSES[kind]}
        for index, kind in enumerate(classes)
    ]
    content = {"images": images, "annotations": annotations, "categories": categories}
    return _write(folder / "runs" / "labelme2coco" / "dataset.json", _compact(content)), folder


def labelme(folder: Path, *, boxes: bool = True) -> tuple[Path, Path]:
    """labelme's own script: `annotations.json` next to `JPEGImages/`.

    Source: wkentaro/labelme 7.1, examples/instance_segmentation/labelme2coco.py, and labelme/_utils/shape.py (the
    masks). All ids count from 0. Category 0 is `_background_`, without objects. Box and area are those of a mask
    drawn with its outline, so that a box is up to a pixel larger than its polygon. Shapes of one group are one object.
    """
    images, annotations = [], []
    for index, scene in enumerate(_scenes(boxes)):
        name = f"JPEGImages/2011_{index:06d}.jpg"
        _draw(folder / name, scene)
        images.append(
            {
                "license": 0,
                "url": None,
                "file_name": name,
                "height": scene.height,
                "width": scene.width,
                "date_captured": None,
                "id": index,
            }
        )
        for thing in scene.objects:
            canvas = Image.new("L", (scene.width, scene.height))
            for part in thing.parts:
                if thing.is_box:
                    ImageDraw.Draw(canvas).rectangle((part[0], part[2]), outline=1, fill=1)
                else:
                    ImageDraw.Draw(canvas).polygon(part, outline=1, fill=1)
            mask = np.asarray(canvas)
            annotations.append(
                {
                    "id": len(annotations),
                    "image_id": index,
                    "category_id": thing.kind + 1,
                    "segmentation": thing.polygons,
                    "area": float(mask.sum()),
                    "bbox": _mask_box(mask),
                    "iscrowd": 0,
                }
            )
    content = {
        "info": {
            "description": None,
            "url": None,
            "version": None,
            "year": 2026,
            "contributor": None,
            "date_created": "2026-08-18 10:14:03.512331",
        },
        "licenses": [{"url": None, "id": 0, "name": None}],
        "type": "instances",
        "images": images,
        "categories": [
            {"supercategory": None, "id": index, "name": name}
            for index, name in enumerate(("_background_", *CLASSES))
        ],
        "annotations": annotations,
    }
    return _write(folder / "annotations.json", json.dumps(content)), folder


def fiftyone(folder: Path, *, boxes: bool = True) -> tuple[Path, Path]:
    """FiftyOne, `COCODetectionDataset`: `labels.json` next to `data/`.

    Source: voxel51/fiftyone, fiftyone/utils/coco.py, `COCODetectionDatasetExporter`, at df149db; with category
    ids from 1, as later versions number them. License, `coco_url` and supercategory are null. Boxes are
    products of relative coordinates, areas those of the boxes. A mask becomes closed polygons between the pixels,
    simplified to 2 pixels; a crowd an uncompressed RLE; an object without a mask has no `segmentation`. Attributes
    of an object are fields of its annotation.
    """
    images, annotations = [], []
    for index, scene in enumerate(_scenes(boxes)):
        name = f"{index:06d}.png"
        _draw(folder / "data" / name, scene)
        images.append(
            {
                "id": index + 1,
                "file_name": name,
                "height": scene.height,
                "width": scene.width,
                "license": None,
                "coco_url": None,
            }
        )
        for thing in scene.objects:
            sizes = (scene.width, scene.height) * 2
            box = [v / size * size for v, size in zip(thing.bounds, sizes, strict=True)]
            is_crowd = len(thing.parts) > 1
            mask: Entry = {"segmentation": [_outline(scene, part) for part in thing.parts]}
            if thing.is_box:
                mask = {}
            elif is_crowd:
                counts = _counts(scene.mask(thing))
                mask = {"segmentation": {"counts": counts, "size": [scene.height, scene.width]}}
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": index + 1,
                    "category_id": thing.kind + 1,
                    "bbox": box,
                    **mask,
                    "area": box[2] * box[3],
                    "iscrowd": int(is_crowd),
                    "occluded": False,
                    "source": "manual",
                }
            )
    content = {
        "info": {
            "year": "",
            "version": "",
            "contributor": "",
            "url": "https://voxel51.com/fiftyone",
            "date_created": "2025-06-19T09:48:27",
        },
        "licenses": [],
        "categories": [
            {"id": i + 1, "name": name, "supercategory": None} for i, name in enumerate(sorted(CLASSES))
        ],
        "images": images,
        "annotations": annotations,
    }
    return _write(folder / "labels.json", json.dumps(content)), folder / "data"


def via(folder: Path, *, boxes: bool = True) -> tuple[Path, Path]:
    """VIA 2.0.11 (the same in 2.0.10): a downloaded `via_export_coco.json`, and the folder of the pictures.

    Source: ox-vgg/via, via-2.x.y/src/via.js, `export_project_to_coco_format`. Ids count from 1. Rectangles are
    polygons, circles are polygons of 72 points. Coordinates are whole pixels, except in circles. Areas are
    those of the boxes. `coco_url` and `flickr_url` are missing for pictures that were added as local files.
    """
    images, annotations = [], []
    for index, scene in enumerate(_whole_pixels(boxes)):
        name = f"part_{index}.jpg"
        _draw(folder / "pictures" / name, scene)
        images.append(
            {
                "id": index + 1,
                "width": scene.width,
                "height": scene.height,
                "file_name": name,
                "license": 0,
                **(dict.fromkeys(("flickr_url", "coco_url"), f"pictures/{name}") if index == 3 else {}),
                "date_captured": "",
            }
        )
        for thing in scene.objects:
            annotations.append(
                {
                    **_via_shape(thing),
                    "id": len(annotations) + 1,
                    "image_id": index + 1,
                    "category_id": thing.kind + 1,
                }
            )
    content = {
        "info": _via_info("1.0", "VIA project exported to COCO format using VGG Image Annotator"),
        "images": images,
        "annotations": annotations,
        "licenses": [{"id": 0, "name": "Unknown License", "url": ""}],
        "categories": [
            {"supercategory": "part", "id": index + 1, "name": name} for index, name in enumerate(CLASSES)
        ],
    }
    return _write(folder / "via_export_coco.json", _compact(content)), folder / "pictures"


def via_2_0_8(folder: Path, *, boxes: bool = True) -> tuple[Path, Path]:
    """VIA 2.0.8, which differs from later versions.

    Source: ox-vgg/via, tag via-2.0.8, via-2.x.y/src/via.js, `pack_via_metadata`. Ids count from 0, an `image_id` is a
    string while the `id` of the image is a number, and a segmentation is a flat list instead of a list of lists.
    """
    return _old_via(folder, boxes, repeated_categories=False)


def via_2_0_9(folder: Path, *, boxes: bool = True) -> tuple[Path, Path]:
    """VIA 2.0.9: as 2.0.8, and all categories are repeated for each image.

    Source: ox-vgg/via, tag via-2.0.9, via-2.x.y/src/via.js, `pack_via_metadata`.
    """
    return _old_via(folder, boxes, repeated_categories=True)


def _old_via(folder: Path, boxes: bool, *, repeated_categories: bool) -> tuple[Path, Path]:
    images, annotations = [], []
    for index, scene in enumerate(_whole_pixels(boxes)):
        name = f"part_{index}.jpg"
        _draw(folder / "pictures" / name, scene)
        images.append(
            {
                "id": index,
                "width": scene.width,
                "height": scene.height,
                "file_name": name,
                "license": 1,
                "date_captured": "",
            }
        )
        for thing in scene.objects:
            shape = _via_shape(thing)
            annotations.append(
                {
                    "id": len(annotations),
                    "image_id": str(index),
                    "category_id": thing.kind + 1,
                    **shape,
                    "segmentation": shape["segmentation"][0],
                }
            )
    categories = [{"id": i + 1, "name": name, "supercategory": "part"} for i, name in enumerate(CLASSES)]
    content = {
        "info": _via_info("1", "Exported using VGG Image Annotator"),
        "images": images,
        "annotations": annotations,
        "licenses": [{"id": 1, "name": "Unknown", "url": ""}],
        "categories": categories * (len(images) if repeated_categories else 1),
    }
    return _write(folder / "via_export_coco.json", _compact(content)), folder / "pictures"


def _via_info(version: str, description: str) -> Entry:
    url = "http://www.robots.ox.ac.uk/~vgg/software/via/"
    return {
        "year": 2025,
        "version": version,
        "description": f"{description} ({url})",
        "contributor": "",
        "url": url,
        "date_created": "Tue Mar 11 2025 15:35:30 GMT+0100 (Central European Standard Time)",
    }


def _via_shape(thing: _Object) -> Entry:
    """Return the fields of the geometry as VIA writes them, of an object whose corners are whole pixels."""
    points: Any = thing.parts[0]
    if thing.circle:
        x, y, radius = thing.circle
        angles = [math.radians(degrees) for degrees in range(0, 360, 5)]
        points = [(_short(x + radius * math.cos(a)), _short(y + radius * math.sin(a))) for a in angles]
    box = _bounds(points)
    return {"segmentation": [_flat(points)], "area": box[2] * box[3], "bbox": box, "iscrowd": 0}


def _scenes(boxes: bool) -> tuple[_Scene, ...]:
    if boxes:
        return _SCENES
    return tuple(
        replace(scene, objects=tuple(thing for thing in scene.objects if not thing.is_box))
        for scene in _SCENES
    )


def _whole_pixels(boxes: bool) -> list[_Scene]:
    """Return the scenes with the corners of all objects at whole pixels, and one object for each polygon."""
    return [
        replace(
            scene,
            objects=tuple(
                replace(thing, parts=(tuple((round(x), round(y)) for x, y in thing.parts[0]),))
                for thing in _one_part_each(scene)
            ),
        )
        for scene in _scenes(boxes)
    ]


def _one_part_each(scene: _Scene) -> list[_Object]:
    """Return the objects for a tool that knows only objects of one polygon."""
    return [replace(thing, parts=(part,)) for thing in scene.objects for part in thing.parts]


def _draw(path: Path, scene: _Scene) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.new("RGB", (scene.width, scene.height), (30, 30, 30))
    for thing in scene.objects:
        for part in thing.parts:
            ImageDraw.Draw(picture).polygon(part, fill=_COLORS[thing.kind])
    picture.save(path)


def _write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def _compact(content: Entry) -> str:
    return json.dumps(content, separators=(",", ":"))


def _flat(points: Any) -> list[float]:
    return [value for point in points for value in point]


def _bounds(points: Any) -> list[float]:
    """Return (x, y, width, height) of points."""
    xs, ys = zip(*points, strict=True)
    return [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]


def _area(points: Any) -> float:
    """Return the area of a polygon: the shoelace formula."""
    pairs = zip(points, [*points[1:], points[0]], strict=True)
    return abs(sum(x0 * y1 - x1 * y0 for (x0, y0), (x1, y1) in pairs)) / 2


def _short(value: float) -> float:
    """Return a number with at most 3 decimals, as an integer if it is whole, as JavaScript prints it."""
    value = round(value, 3)
    return int(value) if value == int(value) else value


def _mask_box(mask: np.ndarray) -> list[float]:
    """Return (x, y, width, height) of the pixels of a mask, as floats."""
    ys, xs = np.nonzero(mask)
    return [float(xs.min()), float(ys.min()), float(np.ptp(xs) + 1), float(np.ptp(ys) + 1)]


def _counts(mask: np.ndarray) -> list[int]:
    """Return the uncompressed RLE of a mask: the lengths of runs of 0 and 1 in turn, column by column."""
    flat = mask.ravel(order="F")
    ends = [0, *(np.flatnonzero(np.diff(flat)) + 1).tolist(), flat.size]
    runs = np.diff(ends).tolist()
    return [0, *runs] if flat[0] else runs


def _outline(scene: _Scene, part: Part) -> list[float]:
    """Return the closed polygon half a pixel around the pixels of a part without dents in its rows."""
    mask = scene.mask(_Object(0, (part,)))
    rows = np.flatnonzero(mask.any(axis=1))
    spans = [np.flatnonzero(mask[row])[[0, -1]] for row in rows]
    left = [(start - 0.5, row) for row, (start, _) in zip(rows, spans, strict=True)]
    right = [(end + 0.5, row) for row, (_, end) in zip(rows, spans, strict=True)]
    top = [(x, rows[0] - 0.5) for x in spans[0]]
    bottom = [(x, rows[-1] + 0.5) for x in spans[-1][::-1]]
    ring = np.array([*top, *right, *bottom, *left[::-1]], dtype=np.float32)
    corners = cv2.approxPolyDP(ring.reshape(-1, 1, 2), 2, closed=True).reshape(-1, 2).tolist()
    return [max(value, 0) for value in _flat([*corners, corners[0]])]


EXPORTS: dict[str, Callable[..., tuple[Path, Path]]] = {
    "COCO": coco,
    "Label Studio": label_studio,
    "CVAT": cvat,
    "Roboflow": roboflow,
    "labelme2coco": labelme2coco,
    "labelme": labelme,
    "FiftyOne": fiftyone,
    "VIA": via,
}
# Exports that cannot be used as they are: the pictures are not where `file_name` says, or ids and masks do not fit
ODD_EXPORTS: dict[str, Callable[..., tuple[Path, Path]]] = {
    "Label Studio, paths of the server": label_studio_server_paths,
    "VIA 2.0.8": via_2_0_8,
    "VIA 2.0.9": via_2_0_9,
}
