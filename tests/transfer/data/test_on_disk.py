"""The checks name the first missing file, and the archive that it comes from."""

import json
from pathlib import Path

import pytest
from PIL import Image

from pretrain.common.errors import UserError
from transfer.data import on_disk


def put(file: Path, text: str = "") -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return file


def refusal(call: object, *arguments: object, **options: object) -> str:
    with pytest.raises(UserError) as caught:
        call(*arguments, **options)  # type: ignore[operator]
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("kind", "check"),
    [("instances", on_disk.check_coco), ("person_keypoints", on_disk.check_keypoints)],
)
def test_coco(kind: str, check: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_disk, "COCO_IMAGES", {"train2017": 2, "val2017": 1})
    said = refusal(check, tmp_path)
    assert f"{kind}_train2017.json" in said and "annotations_trainval2017.zip" in said
    assert f"prepare_data.py coco --root {tmp_path}" in said
    for split in on_disk.COCO_IMAGES:
        put(tmp_path / "coco" / "annotations" / f"{kind}_{split}.json")
    assert "zips/train2017.zip" in refusal(check, tmp_path)
    put(tmp_path / "coco" / "train2017" / "1.jpg")
    assert "1 of 2 images" in refusal(check, tmp_path)
    put(tmp_path / "coco" / "train2017" / "2.jpg")
    put(tmp_path / "coco" / "val2017" / "3.jpg")
    assert "in place" in check(tmp_path)  # type: ignore[operator]
    for split, names in (("train2017", ["1.jpg", "9.jpg"]), ("val2017", ["3.jpg"])):
        listed = {"images": [{"file_name": name} for name in names]}
        (tmp_path / "coco/annotations" / f"{kind}_{split}.json").write_text(json.dumps(listed))
    assert "train2017/9.jpg is missing" in refusal(check, tmp_path, thorough=True)
    (tmp_path / "coco" / "train2017" / "2.jpg").rename(tmp_path / "coco" / "train2017" / "9.jpg")
    assert "in place" in check(tmp_path, thorough=True)  # type: ignore[operator]


def voc(root: Path, year: str, split: str, names: list[str]) -> None:
    put(root / f"VOC{year}" / "ImageSets" / "Main" / f"{split}.txt", "".join(f"{name}\n" for name in names))
    for name in names:
        Image.new("RGB", (8, 6)).save(put(root / f"VOC{year}" / "JPEGImages" / f"{name}.jpg"))
        put(root / f"VOC{year}" / "Annotations" / f"{name}.xml", "<annotation/>")


def test_voc(tmp_path: Path) -> None:
    assert "VOCtrainval_06-Nov-2007.tar" in refusal(on_disk.check_voc, tmp_path)
    voc(tmp_path, "2007", "trainval", ["000005", "000007"])
    assert "VOCtest_06-Nov-2007.tar" in refusal(on_disk.check_voc, tmp_path)
    voc(tmp_path, "2007", "test", ["000001"])
    assert "in place" in on_disk.check_voc(tmp_path, ["2007"])
    said = refusal(on_disk.check_voc, tmp_path)
    assert "VOC2012" in said and "VOCtrainval_11-May-2012.tar" in said and "VOCdevkit/VOC2012" in said
    voc(tmp_path, "2012", "trainval", ["2008_000002"])
    assert "in place" in on_disk.check_voc(tmp_path)
    (tmp_path / "VOC2007" / "Annotations" / "000007.xml").write_text("<annotation>")
    assert "Annotations/000007.xml: not an XML file" in refusal(on_disk.check_voc, tmp_path)
    (tmp_path / "VOC2007" / "Annotations" / "000007.xml").unlink()
    assert "Annotations/000007.xml is missing" in refusal(on_disk.check_voc, tmp_path)
    (tmp_path / "VOC2007" / "JPEGImages" / "000005.jpg").unlink()
    assert "JPEGImages/000005.jpg is missing" in refusal(
        on_disk.check_voc_split, tmp_path, "2007", "trainval"
    )
    # a folder of one's own needs only the lists that the run names
    voc(tmp_path / "own", "2007", "val", ["a"])
    on_disk.check_voc_boxes(tmp_path / "own", "2007", "val")
    said = refusal(on_disk.check_voc_boxes, tmp_path / "own", "2007", "train")
    assert "Main/train.txt is missing" in said and "VOCtrainval_06-Nov-2007.tar" in said


def test_voc_masks(tmp_path: Path) -> None:
    folder = tmp_path / "VOC2012"
    assert "VOCtrainval_11-May-2012.tar" in refusal(on_disk.check_voc_masks, tmp_path)
    put(folder / "JPEGImages" / "a.jpg")
    said = refusal(on_disk.check_voc_masks, tmp_path)
    assert "instances_train_aug.json is missing" in said and "prepare_data.py voc-masks" in said
    put(
        folder / "annotations_masks" / "instances_train_aug.json",
        json.dumps({"images": [{"file_name": "a.jpg"}]}),
    )
    val = put(
        folder / "annotations_masks" / "instances_val.json", json.dumps({"images": [{"file_name": "b.jpg"}]})
    )
    assert "b.jpg is missing" in refusal(on_disk.check_voc_masks, tmp_path)
    put(val, "{")
    assert "not a complete JSON" in refusal(on_disk.check_voc_masks, tmp_path)
    put(val, "[]")
    assert "not a COCO annotation file" in refusal(on_disk.check_voc_masks, tmp_path)
    put(folder / "JPEGImages" / "b.jpg")
    put(val, json.dumps({"images": [{"file_name": "b.jpg"}]}))
    assert "in place" in on_disk.check_voc_masks(tmp_path)
