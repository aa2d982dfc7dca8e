"""Masks of VOC and SBD as COCO files and per-pixel labels, from archives in the real layouts."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from pretrain.common.errors import UserError
from tests.support import voc_archives
from tests.support.scripts import run_script
from transfer.data import on_disk, voc_boxes
from transfer.data.voc_boxes import Box
from transfer.data.voc_labels import Mask, match, tight_box
from transfer.prepare.command import main

SHAPE = (voc_archives.HEIGHT, voc_archives.WIDTH)


def prepare(root: Path, archives: Path, *options: str) -> None:
    main("", ["voc-masks", "--root", str(root), "--archives", str(archives), "--workers", "1", *options])


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("archives")
    voc_archives.write_voc2012(folder)
    voc_archives.write_sbd(folder)
    return folder


@pytest.fixture(scope="module")
def built(archives: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("root")
    options = ["--archives", str(archives), "--no-checksum", "--workers", "2"]
    done = run_script("tools/prepare_data.py", "voc-masks", "--root", str(root), *options)
    assert done.returncode == 0, done.stderr
    assert "1 of these images are VOC2007's" in done.stdout and "never evaluate" in done.stdout
    assert "train_aug: 4 images, 7 masks, 1 of them difficult" in done.stdout
    return root


def pixels(*rects: tuple[int, int, int, int]) -> np.ndarray:
    found = np.zeros(SHAPE, bool)
    for r0, r1, c0, c1 in rects:
        found[r0:r1, c0:c1] = True
    return found


def load(root: Path, split: str) -> dict[str, list[tuple[str, list[float], np.ndarray, int]]]:
    """Return for each image name (category name, bbox, mask, iscrowd) of each annotation, as pycocotools reads them."""
    coco = COCO(root / "VOC2012" / "annotations_masks" / f"instances_{split}.json")
    found: dict[str, list[tuple[str, list[float], np.ndarray, int]]] = {}
    for image in coco.loadImgs(coco.getImgIds()):
        assert (image["height"], image["width"]) == SHAPE
        rows = found.setdefault(image["file_name"].removesuffix(".jpg"), [])
        for annotation in coco.loadAnns(coco.getAnnIds(image["id"])):
            mask = coco.annToMask(annotation).astype(bool)
            assert annotation["area"] == mask.sum()
            kind = coco.loadCats(annotation["category_id"])[0]["name"]
            rows.append((kind, annotation["bbox"], mask, annotation["iscrowd"]))
    return found


def same(found: list[Any], expected: list[Any]) -> bool:
    return len(found) == len(expected) and all(
        f[0] == e[0] and f[1] == e[1] and np.array_equal(f[2], e[2]) and f[3] == e[3]
        for f, e in zip(found, expected, strict=True)
    )


def test_training_takes_every_public_mask_outside_val(built: Path) -> None:
    found = load(built, "train_aug")
    assert list(found) == ["2007_000001", "2008_000002", "2008_000003", "2009_000004"]
    # VOC's own: no void in the mask; the XML's box, and a grown one where only another class has a box there
    assert same(
        found["2007_000001"],
        [
            ("person", [8, 8, 19, 14], pixels((10, 20, 10, 25)), 0),
            ("car", [38, 28, 14, 10], pixels((30, 36, 40, 50)), 0),
        ],
    )
    # both have masks: SBD's; two parts are one object, whose tight box does not grow
    assert same(
        found["2008_000002"],
        [
            ("cat", [4.5, 4, 15.5, 8], pixels((4, 12, 4, 20)), 0),
            ("sheep", [30, 20, 15, 5], pixels((20, 25, 30, 35), (20, 25, 40, 45)), 0),
        ],
    )
    assert same(found["2008_000003"], [("bicycle", [3, 2, 20, 10], pixels((2, 12, 3, 23)), 1)])
    assert same(
        found["2009_000004"],
        [
            ("person", [5, 5, 15, 30], pixels((5, 35, 5, 20)), 0),
            ("person", [20, 5, 15, 30], pixels((5, 35, 20, 35)), 0),
        ],
    )


def test_val_is_vocs_own(built: Path) -> None:
    found = load(built, "val")
    assert same(found["2010_000005"], [("tvmonitor", [10, 10, 32, 22], pixels((12, 30, 12, 40)), 0)])
    assert found["2007_000006"] == []  # an image without a mask is counted, too


def test_labels_per_pixel(built: Path) -> None:
    folder = built / "VOC2012" / "semseg"
    assert (folder / "val.txt").read_text().split() == ["2007_000006", "2010_000005"]
    expected = {
        "train_aug/2007_000001": voc_archives.voc_labels("2007_000001")[1],
        "train_aug/2008_000002": voc_archives.voc_labels("2008_000002")[1],  # in both sets: VOC's own is used
        "train_aug/2008_000003": voc_archives.sbd_labels("2008_000003")[1],
        "train_aug/2009_000004": voc_archives.sbd_labels("2009_000004")[1],
        "val/2007_000006": np.zeros(SHAPE, np.uint8),
        "val/2010_000005": voc_archives.voc_labels("2010_000005")[1],
    }
    assert {str(p.relative_to(folder).with_suffix("")) for p in folder.rglob("*.png")} == set(expected)
    for name, label in expected.items():
        with Image.open(folder / f"{name}.png") as image:
            assert image.mode == "L"
            assert np.array_equal(np.asarray(image), label), name


def test_classes_are_detectron2s() -> None:
    from detectron2.data.datasets.pascal_voc import CLASS_NAMES

    assert tuple(CLASS_NAMES) == voc_boxes.CLASSES


def outputs(root: Path) -> dict[str, bytes]:
    folders = [root / "VOC2012" / part for part in ("annotations_masks", "semseg")]
    return {str(p.relative_to(root)): p.read_bytes() for f in folders for p in f.rglob("*") if p.is_file()}


def test_again_and_elsewhere(
    built: Path, archives: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = outputs(built)
    prepare(built, tmp_path)  # nothing is missing, so no archive is needed
    assert "already" in capsys.readouterr().out and outputs(built) == before
    assert not (built / "SBD" / "benchmark_RELEASE" / "dataset" / "img").exists()
    prepare(tmp_path / "other", archives, "--no-checksum")  # with one process instead of two
    assert outputs(tmp_path / "other") == before


def test_what_is_lost_is_made_again(built: Path, archives: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(built, tmp_path / "root", symlinks=True))
    before = outputs(root)
    (root / "VOC2012/semseg/val/2010_000005.png").unlink()
    (root / "SBD/benchmark_RELEASE/dataset/inst/2008_000003.mat").unlink()
    with pytest.raises(UserError, match=r"semseg/val/2010_000005\.png is missing"):
        main("", ["voc_masks", "--check", "--root", str(root)])
    prepare(root, archives, "--no-checksum")
    assert outputs(root) == before


def test_refusals_are_one_line(archives: Path, tmp_path: Path) -> None:
    def refused(folder: Path, *options: str) -> str:
        with pytest.raises(UserError) as caught:
            prepare(root, folder, *options)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    root, partly = tmp_path / "root", tmp_path / "partly"
    partly.mkdir()
    assert "bytes, not 1999639040" in refused(archives)
    said = refused(partly, "--no-checksum")
    assert f"{partly / 'VOCtrainval_11-May-2012.tar'} is missing" in said and "https://" in said
    shutil.copy(archives / "VOCtrainval_11-May-2012.tar", partly)
    said = refused(partly, "--no-checksum")
    assert f"{partly / 'benchmark.tgz'} is missing" in said and "berkeley" in said
    assert not outputs(root)
    shutil.copy(archives / "benchmark.tgz", partly)
    prepare(root, partly, "--no-checksum")
    (root / "VOC2012/semseg/val.txt").unlink()  # from here on, the archives are not needed any more
    assert "name 4 images, not 10582" in refused(partly)
    (root / "SBD/benchmark_RELEASE/dataset/inst/2009_000004.mat").write_bytes(b"broken" * 99)
    shutil.rmtree(root / "VOC2012/semseg/train_aug")
    assert "2009_000004.mat cannot be read" in refused(partly, "--no-checksum", "--workers", "2")
    assert not (root / "VOC2012/semseg/train_aug").exists()  # training must not see half of it


def test_each_box_goes_to_one_mask_and_the_sum_counts() -> None:
    def rect(r0: int, r1: int, c0: int, c1: int, kind: int = 1) -> Mask:
        return Mask(kind, pixels((r0, r1, c0, c1)))

    # the first mask overlaps both boxes, and the first one more; only it can serve the second mask
    masks = [rect(0, 10, 0, 20), rect(0, 10, 3, 18)]
    boxes = [Box(1, (1, 0, 19, 10), False), Box(1, (0, 0, 29, 10), True)]
    assert match(masks, boxes, grow=0) == [boxes[1], boxes[0]]
    # another class, or less than half in common: the mask's own box
    assert match([rect(0, 10, 0, 20, kind=2)], boxes, grow=2) == [Box(2, (0, 0, 22, 12), False)]
    assert match([rect(0, 10, 0, 9)], boxes[:1], grow=0) == [Box(1, (0, 0, 9, 10), False)]
    assert match([], boxes, grow=0) == [] and match(masks[:1], [], grow=0)[0].xyxy == (0, 0, 20, 10)


def test_a_grown_box_stays_inside() -> None:
    assert tight_box(pixels((0, 3, 57, 60)), grow=2) == (55, 0, 60, 5)
    assert tight_box(pixels((5, 6, 7, 8))) == (7, 5, 8, 6)


def test_layout_checks_name_the_first_missing_file(built: Path, tmp_path: Path) -> None:
    assert "in place" in on_disk.check_voc_semseg(built)
    on_disk.check_voc_segmentation(built)
    root = Path(shutil.copytree(built, tmp_path / "root", symlinks=True))
    (root / "VOC2012/SegmentationObject/2010_000005.png").unlink()
    with pytest.raises(UserError, match=r"SegmentationObject/2010_000005\.png is missing.*May-2012"):
        on_disk.check_voc_segmentation(root)
    (root / "VOC2012/JPEGImages/2008_000003.jpg").unlink()
    with pytest.raises(UserError, match=r"2008_000003\.jpg is missing"):
        on_disk.check_voc_semseg(root)
    (root / "VOC2012/semseg/train_aug.txt").unlink()
    with pytest.raises(UserError, match=r"train_aug\.txt is missing.*voc-masks"):
        on_disk.check_voc_semseg(root)
