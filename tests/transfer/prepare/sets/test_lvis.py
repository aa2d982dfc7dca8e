"""LVIS: the files of both versions on COCO's images, and detectron2's loader reading the checked files."""

import argparse
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

from pretrain.common.errors import UserError
from transfer.data import on_disk
from transfer.prepare.sets import lvis

CATEGORIES = {name: version.categories for name, version in on_disk.LVIS_VERSIONS.items()}  # before `small`
CLASSES = 3
# of both splits, as in the real v1: val uses images of train2017 too
PLACES = {
    "train": ["train2017/000000000001.jpg", "train2017/000000000002.jpg"],
    "val": ["val2017/000000000003.jpg"],
}


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """LVIS with 3 classes and 3 or 4 images."""
    for version, val in (("v0.5", 1), ("v1", 2)):
        wanted = on_disk.LVIS_VERSIONS[version]._replace(categories=CLASSES, images={"train": 2, "val": val})
        monkeypatch.setitem(on_disk.LVIS_VERSIONS, version, wanted)
    monkeypatch.setattr(on_disk, "COCO_IMAGES", {"train2017": 3, "val2017": 1})


def content(places: list[str]) -> dict[str, Any]:
    """An LVIS file in the published format, with one triangle per image."""
    images = [
        {
            "id": int(Path(place).stem), "width": 64, "height": 48, "license": 1,
            "coco_url": f"http://images.cocodataset.org/{place}", "flickr_url": "", "date_captured": "",
            "neg_category_ids": [2], "not_exhaustive_category_ids": [],
        }
        for place in places
    ]  # fmt: skip
    categories = [
        {
            "id": number, "name": f"thing_{number}", "synset": f"thing.n.0{number}", "synonyms": [f"thing_{number}"],
            "def": "a thing", "frequency": "frc"[number % 3], "image_count": 1, "instance_count": 1,
        }
        for number in range(1, CLASSES + 1)
    ]  # fmt: skip
    annotations = [
        {
            "id": index + 1, "image_id": image["id"], "category_id": index % CLASSES + 1, "bbox": [4, 4, 8, 8],
            "area": 32.0, "segmentation": [[4, 4, 12, 4, 4, 12]],
        }
        for index, image in enumerate(images)
    ]  # fmt: skip
    return {
        "info": {},
        "licenses": [],
        "images": images,
        "categories": categories,
        "annotations": annotations,
    }


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Images of COCO, and the archives of both versions in ROOT/downloads."""
    for place in (*PLACES["train"], *PLACES["val"], "train2017/000000000009.jpg"):
        image = tmp_path / "coco" / place
        image.parent.mkdir(parents=True, exist_ok=True)
        image.write_bytes(b"jpeg")
    (tmp_path / "downloads").mkdir()
    for version in on_disk.LVIS_VERSIONS:
        for split, places in PLACES.items():
            more = ["train2017/000000000009.jpg"] if (version, split) == ("v1", "val") else []
            name = f"lvis_{version}_{split}.json"
            with zipfile.ZipFile(tmp_path / "downloads" / f"{name}.zip", "w") as archive:
                archive.writestr(name, json.dumps(content(places + more)))
    return tmp_path


def arguments(root: Path, version: str, **others: object) -> argparse.Namespace:
    given = {"version": version, "root": root, "archives": None, "no_checksum": False, "keep_archives": False}
    return argparse.Namespace(**(given | others))


def refusal(call: Any, *args: Any, **more: Any) -> str:
    with pytest.raises(UserError) as caught:
        call(*args, **more)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(("version", "val"), [("v0.5", 1), ("v1", 2)])
def test_build_and_what_detectron2_reads(
    version: str, val: int, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lvis.build(root, arguments(root, version))
    assert (
        f"LVIS {version} is complete: train 2 images with 2 annotations, val {val} images"
        in capsys.readouterr().out
    )
    assert not list((root / "downloads").glob(f"lvis_{version}_*")), (
        "archives are removed when they have been used"
    )
    lvis.build(root, arguments(root, version))  # everything is there, so nothing is downloaded
    assert "in place" in on_disk.check_lvis(root, version)

    from detectron2.data.datasets.lvis import load_lvis_json

    read = load_lvis_json(str(root / "lvis" / f"lvis_{version}_val.json"), f"{root / 'coco'}/")
    assert len(read) == val
    assert all(Path(image["file_name"]).is_file() for image in read)


def test_kept_archives_and_those_of_another_folder(root: Path, tmp_path: Path) -> None:
    (root / "downloads").rename(tmp_path / "mine")
    lvis.build(root, arguments(root, "v1", archives=tmp_path / "mine"))
    assert len(list((tmp_path / "mine").iterdir())) == 4


def test_cheap_check_names_what_is_missing(root: Path) -> None:
    said = refusal(on_disk.check_lvis, root, "v0.5")
    assert (
        "lvis_v0.5_train.json is missing" in said and f"{on_disk.LVIS_URL}/lvis_v0.5_train.json.zip" in said
    )
    lvis.build(root, arguments(root, "v0.5"))
    (root / "coco/train2017/000000000001.jpg").unlink()
    said = refusal(on_disk.check_lvis, root, "v0.5")
    assert "train2017 holds 2 of 3 images" in said and "prepare_data.py coco" in said
    assert "in place" in on_disk.check_lvis(root, "v0.5", splits=("val",))  # which needs val2017 only
    (root / "lvis/lvis_v0.5_val.json").unlink()
    assert "lvis_v0.5_val.json is missing" in refusal(on_disk.check_lvis, root, "v0.5", splits=("val",))


def test_thorough_check_names_the_image(root: Path) -> None:
    lvis.build(root, arguments(root, "v1"))
    (root / "coco/train2017/000000000009.jpg").rename(root / "coco/train2017/other.jpg")
    assert "in place" in on_disk.check_lvis(root, "v1")  # counts only
    assert "train2017/000000000009.jpg is missing" in refusal(lvis.check, root, arguments(root, "v1"))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda c: c["images"].pop(), "has 1 images, not 2"),
        (lambda c: c["categories"].pop(), "2 category ids are not 1 to 3, those of v0.5"),
        (lambda c: c["categories"][0].update(id=7), "3 category ids are not 1 to 3"),
        (lambda c: c["images"][0].pop("coco_url"), "image 1 has no coco_url"),
        (lambda c: c["annotations"][1].update(id=1), "annotation 1: its id is missing or used twice"),
        (lambda c: c["annotations"][1].update(image_id=77), "annotation 2: its image_id or category_id"),
        (lambda c: c["annotations"][0].update(segmentation=[[1, 1, 2, 2]]), "annotation 1: its mask"),
        (lambda c: c["annotations"][0].pop("area"), "annotation 1: its box or its area is missing"),
        (lambda c: c.pop("annotations"), "not a complete LVIS file"),
    ],
)
def test_thorough_check_reads_the_annotations(spoil: Any, said: str, root: Path) -> None:
    lvis.build(root, arguments(root, "v0.5"))
    file = root / "lvis/lvis_v0.5_train.json"
    spoilt = json.loads(file.read_text())
    spoil(spoilt)
    file.write_text(json.dumps(spoilt))
    assert said in refusal(lvis.check, root, arguments(root, "v0.5"))


def test_a_cut_json(root: Path) -> None:
    lvis.build(root, arguments(root, "v0.5"))
    file = root / "lvis/lvis_v0.5_val.json"
    file.write_text(file.read_text()[:100])
    assert "not a complete LVIS file" in refusal(lvis.build, root, arguments(root, "v0.5"))


def test_the_versions_are_those_of_detectron2() -> None:
    from detectron2.data.datasets.lvis_v0_5_categories import LVIS_CATEGORIES as V05
    from detectron2.data.datasets.lvis_v1_categories import LVIS_CATEGORIES as V1

    assert {"v0.5": len(V05), "v1": len(V1)} == CATEGORIES
