"""VOC's and SBD's archives in their true layouts, with a few small images drawn by hand."""

import io
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy.io import savemat
from scipy.sparse import csc_matrix

HEIGHT, WIDTH = 40, 60
Rect = tuple[int, int, int, int]  # rows r0..r1-1, columns c0..c1-1
SEG_TRAIN, SEG_VAL = ["2007_000001", "2008_000002"], ["2007_000006", "2010_000005"]
SBD_TRAIN, SBD_VAL = ["2008_000002", "2008_000003", "2010_000005"], ["2009_000004"]
# VOC's own masks: name -> (class, the object without its void band)
VOC_OBJECTS: dict[str, list[tuple[int, Rect]]] = {
    "2007_000001": [(15, (10, 20, 10, 25)), (7, (30, 36, 40, 50))],
    "2008_000002": [(8, (6, 10, 6, 18))],
    "2010_000005": [(20, (12, 30, 12, 40))],
    "2007_000006": [],
}
# SBD's: name -> (class, parts of the object)
SBD_OBJECTS: dict[str, list[tuple[int, list[Rect]]]] = {
    "2008_000002": [(8, [(4, 12, 4, 20)]), (17, [(20, 25, 30, 35), (20, 25, 40, 45)])],
    "2008_000003": [(2, [(2, 12, 3, 23)])],
    "2009_000004": [(15, [(5, 35, 5, 20)]), (15, [(5, 35, 20, 35)])],
    "2010_000005": [(1, [(0, 5, 0, 5)])],
}
# The XML files: name -> (class name, xmin, ymin, xmax, ymax as VOC counts, difficult)
XML_OBJECTS: dict[str, list[tuple[str, float, float, float, float, int]]] = {
    "2007_000001": [("dog", 39, 29, 52, 38, 0), ("person", 9, 9, 27, 22, 0)],
    "2008_000002": [("cat", 5.5, 5, 20, 12, 0)],
    "2008_000003": [("bicycle", 4, 3, 23, 12, 1)],
    "2009_000004": [("person", 21, 6, 35, 35, 0), ("person", 6, 6, 20, 35, 0)],
    "2010_000005": [("tvmonitor", 11, 11, 42, 32, 0)],
    "2007_000006": [],
}


def voc_labels(name: str) -> tuple[np.ndarray, np.ndarray]:
    """(SegmentationObject, SegmentationClass) of an image: a void band of 2 pixels around each object."""
    objects, classes = np.zeros((2, HEIGHT, WIDTH), np.uint8)
    for number, (kind, (r0, r1, c0, c1)) in enumerate(VOC_OBJECTS[name], 1):
        for label, value in ((objects, number), (classes, kind)):
            label[max(r0 - 2, 0) : r1 + 2, max(c0 - 2, 0) : c1 + 2] = 255
            label[r0:r1, c0:c1] = value
    return objects, classes


def sbd_labels(name: str) -> tuple[np.ndarray, np.ndarray]:
    """(instances, classes) of an image of SBD, without void."""
    instances, classes = np.zeros((2, HEIGHT, WIDTH), np.uint8)
    for number, (kind, parts) in enumerate(SBD_OBJECTS[name], 1):
        for r0, r1, c0, c1 in parts:
            instances[r0:r1, c0:c1], classes[r0:r1, c0:c1] = number, kind
    return instances, classes


def write_voc2012(folder: Path) -> Path:
    names = sorted(XML_OBJECTS)
    base = "VOCdevkit/VOC2012"
    detection = [name for name in names if not name.startswith("2007")]
    files = {
        f"{base}/ImageSets/Main/trainval.txt": _lines(detection),
        f"{base}/ImageSets/Segmentation/train.txt": _lines(SEG_TRAIN),
        f"{base}/ImageSets/Segmentation/val.txt": _lines(SEG_VAL),
    }
    for name in names:
        files |= _photo_and_xml(base, name, XML_OBJECTS[name])
    for name in VOC_OBJECTS:
        for part, label in zip(("Object", "Class"), voc_labels(name), strict=True):
            files[f"{base}/Segmentation{part}/{name}.png"] = _palette_png(label)
    return write_tar(folder / "VOCtrainval_11-May-2012.tar", files)


def write_voc2007(folder: Path) -> list[Path]:
    """Both archives of 2007; they share the folder that they unpack to."""
    base, made = "VOCdevkit/VOC2007", []
    for split, names in (("trainval", ["000005", "000007"]), ("test", ["000001", "000002"])):
        files = {f"{base}/ImageSets/Main/{split}.txt": _lines(names)}
        for name in names:
            files |= _photo_and_xml(base, name, [("chair", 5, 5, 20, 20, 0)])
        made.append(write_tar(folder / f"VOC{split}_06-Nov-2007.tar", files))
    return made


def write_sbd(folder: Path) -> Path:
    base = "benchmark_RELEASE/dataset"
    files = {f"{base}/train.txt": _lines(SBD_TRAIN), f"{base}/val.txt": _lines(SBD_VAL)}
    for name, objects in SBD_OBJECTS.items():
        instances, classes = sbd_labels(name)
        kinds = np.array([[kind] for kind, _ in objects], float)
        borders = np.empty((len(objects), 1), object)
        for index in range(len(objects)):
            borders[index, 0] = csc_matrix(instances == index + 1)
        files[f"{base}/inst/{name}.mat"] = _mat(
            GTinst={"Boundaries": borders, "Segmentation": instances, "Categories": kinds}
        )
        files[f"{base}/cls/{name}.mat"] = _mat(
            GTcls={"Boundaries": borders, "Segmentation": classes, "CategoriesPresent": np.unique(kinds)}
        )
        files[f"{base}/img/{name}.jpg"] = b"not needed"
    return write_tar(folder / "benchmark.tgz", files)


def _lines(names: list[str]) -> bytes:
    return "".join(f"{name}\n" for name in names).encode()


def _photo_and_xml(base: str, name: str, objects: list[Any]) -> dict[str, bytes]:
    photo = io.BytesIO()
    Image.new("RGB", (WIDTH, HEIGHT), (90, 120, 60)).save(photo, "JPEG")
    boxes = "".join(
        f"<object><name>{kind}</name><difficult>{difficult}</difficult><bndbox><xmin>{x0}</xmin><ymin>{y0}</ymin>"
        f"<xmax>{x1}</xmax><ymax>{y1}</ymax></bndbox><part><name>head</name><bndbox><xmin>1</xmin></bndbox></part>"
        "</object>"
        for kind, x0, y0, x1, y1, difficult in objects
    )
    size = f"<size><width>{WIDTH}</width><height>{HEIGHT}</height><depth>3</depth></size>"
    return {
        f"{base}/JPEGImages/{name}.jpg": photo.getvalue(),
        f"{base}/Annotations/{name}.xml": f"<annotation>{size}{boxes}</annotation>".encode(),
    }


def _palette_png(label: np.ndarray) -> bytes:
    image = Image.fromarray(label)
    image.putpalette([value * factor % 256 for value in range(256) for factor in (37, 91, 151)])
    content = io.BytesIO()
    image.save(content, "PNG")
    assert Image.open(io.BytesIO(content.getvalue())).mode == "P"
    return content.getvalue()


def _mat(**records: Any) -> bytes:
    content = io.BytesIO()
    savemat(content, records, do_compression=True)
    return content.getvalue()


def write_tar(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz" if path.suffix == ".tgz" else "w") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path
