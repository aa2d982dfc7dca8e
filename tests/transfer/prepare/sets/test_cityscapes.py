"""Cityscapes: archives in the real layout are unpacked, label images are drawn, and detectron2 loads the result."""

import argparse
import io
import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pretrain.common.errors import UserError
from transfer import d2_compat
from transfer.data import on_disk
from transfer.prepare.sets import cityscapes

# (split, city, frame); the test split is in the archives too and is not needed
FRAMES = [
    ("train", "aachen", "aachen_000000_000019"), ("train", "bochum", "bochum_000000_000313"),
    ("train", "bochum", "bochum_000000_000600"), ("val", "munster", "munster_000001_000019"),
    ("test", "bonn", "bonn_000000_000019"),
]  # fmt: skip
HEIGHT, WIDTH = 32, 64
ROAD, CAR = 7, 26  # label ids (cityscapesScripts, helpers/labels.py)
TRAIN_ID = {"road": 0, "car": 13}
POLYGONS = {
    "imgHeight": HEIGHT,
    "imgWidth": WIDTH,
    "objects": [
        {"label": "road", "polygon": [[0, 16], [63, 16], [63, 31], [0, 31]]},
        {"label": "car", "polygon": [[10, 10], [29, 10], [29, 20], [10, 20]]},  # over the road
        {"label": "ego vehicle", "polygon": [[0, 30], [63, 30], [63, 31], [0, 31]]},  # ignored
        {"label": "license plate", "polygon": [[12, 12], [14, 12], [14, 14], [12, 14]]},  # not drawn
    ],
}


def png(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return file.getvalue()


def label_image() -> np.ndarray:
    """The expected training labels, painted by hand; 255 everywhere else and where nothing is evaluated."""
    expected = np.full((HEIGHT, WIDTH), 255, np.uint8)
    expected[16:32, :] = TRAIN_ID["road"]
    expected[10:21, 10:30] = TRAIN_ID["car"]
    expected[30:32, :] = 255
    return expected


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The two archives in ROOT/downloads."""
    monkeypatch.setattr(on_disk, "CITYSCAPES_IMAGES", {"train": 3, "val": 1})
    ids = np.where(label_image() == 13, CAR, np.where(label_image() == 0, ROAD, 0))
    instances = np.where(ids == CAR, CAR * 1000, ids)
    downloads = tmp_path / "downloads"
    downloads.mkdir()
    with zipfile.ZipFile(downloads / "leftImg8bit_trainvaltest.zip", "w") as archive:
        archive.writestr("README", "")
        for split, city, stem in FRAMES:
            photo = png(np.zeros((HEIGHT, WIDTH, 3), np.uint8))
            archive.writestr(f"leftImg8bit/{split}/{city}/{stem}_leftImg8bit.png", photo)
    with zipfile.ZipFile(downloads / "gtFine_trainvaltest.zip", "w") as archive:
        for split, city, stem in FRAMES:
            for ending, data in (
                ("polygons.json", json.dumps(POLYGONS).encode()),
                ("instanceIds.png", png(instances.astype(np.uint16))),
                ("labelIds.png", png(ids.astype(np.uint8))),
                ("color.png", png(np.zeros((HEIGHT, WIDTH, 4), np.uint8))),
            ):
                archive.writestr(f"gtFine/{split}/{city}/{stem}_gtFine_{ending}", data)
    return tmp_path


def arguments(workers: int = 1, archives: Path | None = None) -> argparse.Namespace:
    return argparse.Namespace(archives=archives, no_checksum=False, keep_archives=False, workers=workers)


def refusal(call: Any, *args: Any, **more: Any) -> str:
    with pytest.raises(UserError) as caught:
        call(*args, **more)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def drawn(root: Path) -> list[Path]:
    return sorted((root / "cityscapes/gtFine").glob("*/*/*_labelTrainIds.png"))


@pytest.mark.parametrize("workers", [1, 2])
def test_build(workers: int, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cityscapes.build(root, arguments(workers))
    assert "in place: 3 train images and 1 val images" in capsys.readouterr().out
    assert len(drawn(root)) == 4  # not of the test split
    for file in drawn(root):
        np.testing.assert_array_equal(np.asarray(Image.open(file)), label_image())
    assert not list((root / "cityscapes").rglob("*.tmp*"))
    assert len(list((root / "downloads").iterdir())) == 2, "the user's files stay"


def test_detectron2_loads_it(root: Path) -> None:
    cityscapes.build(root, arguments())
    d2_compat.alias_cityscapes()
    from detectron2.data.datasets.cityscapes import load_cityscapes_instances, load_cityscapes_semantic

    folders = [str(root / "cityscapes" / kind / "val") for kind in ("leftImg8bit", "gtFine")]
    (image,) = load_cityscapes_semantic(*folders)
    assert image["sem_seg_file_name"] == str(drawn(root)[-1])
    (image,) = load_cityscapes_instances(*folders, from_json=False, to_polygons=False)
    (car,) = image["annotations"]
    assert car["bbox"] == (10, 10, 29, 20)


def test_interrupted_anywhere_it_goes_on(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = root / "cityscapes"
    with zipfile.ZipFile(
        root / "downloads/gtFine_trainvaltest.zip"
    ) as archive:  # as an interrupted run leaves it
        archive.extract(archive.namelist()[0], folder)
    draw = cityscapes._draw
    seen: list[Path] = []

    def stops(stem: Path) -> None:
        if len(seen) == 2:
            raise KeyboardInterrupt
        seen.append(stem)
        draw(stem)

    monkeypatch.setattr(cityscapes, "_draw", stops)
    with pytest.raises(KeyboardInterrupt):
        cityscapes.build(root, arguments())
    before = {file: file.stat().st_mtime_ns for file in drawn(root)}
    assert len(before) == 2
    monkeypatch.setattr(cityscapes, "_draw", draw)
    shutil.rmtree(root / "downloads")  # both are unpacked and no longer needed
    cityscapes.build(root, arguments())
    assert len(drawn(root)) == 4
    assert {file: file.stat().st_mtime_ns for file in before} == before


def test_it_says_which_archive_to_put_where(root: Path, tmp_path: Path) -> None:
    (root / "downloads/gtFine_trainvaltest.zip").rename(tmp_path / "gtFine_trainvaltest.zip")
    said = refusal(cityscapes.build, root, arguments())
    assert f"{root / 'downloads'} lacks gtFine_trainvaltest.zip" in said and "csDownload" in said
    (root / "downloads/leftImg8bit_trainvaltest.zip").rename(tmp_path / "leftImg8bit_trainvaltest.zip")
    said = refusal(cityscapes.build, root, arguments())
    assert "leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip" in said
    cityscapes.build(root, arguments(archives=tmp_path))


def test_checks_name_the_file(root: Path) -> None:
    folder = root / "cityscapes"
    said = refusal(on_disk.check_cityscapes, root)
    assert "holds 0 of 3 images" in said and "leftImg8bit_trainvaltest.zip" in said
    cityscapes.build(root, arguments())
    assert "in place" in on_disk.check_cityscapes(root)

    drawn(root)[0].unlink()
    assert "in place" in on_disk.check_cityscapes(root, semantic=False)
    said = refusal(on_disk.check_cityscapes, root)
    assert "aachen_000000_000019_gtFine_labelTrainIds.png is missing" in said and "cityscapesscripts" in said
    cityscapes.build(root, arguments())

    for kind, ending, archive in (
        ("leftImg8bit", "leftImg8bit.png", "leftImg8bit_trainvaltest.zip"),
        ("gtFine", "gtFine_instanceIds.png", "gtFine_trainvaltest.zip"),
        ("gtFine", "gtFine_polygons.json", "gtFine_trainvaltest.zip"),
    ):
        file = folder / kind / "train/bochum" / f"bochum_000000_000600_{ending}"
        file.rename(file.with_suffix(".gone"))
        said = refusal(cityscapes.check, root, arguments())
        assert f"{file} is missing" in said and archive in said
        file.with_suffix(".gone").rename(file)
    assert "in place" in cityscapes.check(root, arguments())


def test_cut_and_foreign_images_are_found(root: Path) -> None:
    cityscapes.build(root, arguments())
    labels = drawn(root)[1]
    whole = labels.read_bytes()
    labels.write_bytes(whole[:-20])
    assert f"{labels} is not a complete PNG" in refusal(cityscapes.check, root, arguments())
    cityscapes.build(root, arguments())  # draws it again
    assert labels.read_bytes() == whole
    labels.write_bytes(png(np.zeros((8, 8), np.uint8)))
    said = refusal(cityscapes.check, root, arguments())
    assert f"{labels} is 8x8" in said and "64x32" in said


def test_strays_that_detectron2_stops_at(root: Path) -> None:
    cityscapes.build(root, arguments())
    photos = root / "cityscapes/leftImg8bit/train"
    for stray in (photos / ".DS_Store", photos / "aachen/Thumbs.db"):
        stray.write_bytes(b"")
        assert f"{stray} is not part of Cityscapes" in refusal(on_disk.check_cityscapes, root)
        stray.unlink()
    left = photos / "aachen/.aachen_000000_000019_leftImg8bit.png.77.tmp"  # left by a run that was killed
    left.write_bytes(b"")
    cityscapes.build(root, arguments())
    assert not left.exists()


def test_an_unknown_label(root: Path) -> None:
    cityscapes.build(root, arguments())
    labels = drawn(root)[0]
    labels.unlink()
    polygons = labels.with_name("aachen_000000_000019_gtFine_polygons.json")
    polygons.write_text(
        json.dumps(POLYGONS | {"objects": [{"label": "ufo", "polygon": [[0, 0], [1, 0], [1, 1]]}]})
    )
    assert f"{polygons} cannot be drawn" in refusal(cityscapes.build, root, arguments())
    assert not labels.exists()
