"""Data sets by name, one's own data, and what is said when files are missing."""

import json
from collections.abc import Callable
from pathlib import Path

import detection_data
import pytest
from detectron2.data import DatasetCatalog

from pretrain.errors import UserError
from transfer import config, datasets


def _load(name: str, root: Path, *overrides: str):
    return config.load(
        f"transfer/{name}.yaml", ["MODEL.INIT", "random", "DATASETS.ROOT", str(root), *overrides]
    )


@pytest.mark.parametrize(
    ("name", "missing", "source"),
    [
        ("coco_R50_FPN", "instances_train2017.json", "annotations_trainval2017.zip"),
        ("voc_R50_C4_24k", "trainval.txt", "VOCtrainval_06-Nov-2007.tar"),
        ("voc_mask_R50_FPN", "JPEGImages", "VOCtrainval_11-May-2012.tar"),
        ("demo_R18_FPN", "demo_standard", "prepare_data.py demo"),
    ],
)
def test_missing_data_is_named_with_its_source(tmp_path: Path, name: str, missing: str, source: str) -> None:
    with pytest.raises(UserError) as caught:
        datasets.prepare(_load(name, tmp_path))
    assert missing in str(caught.value)
    assert source in str(caught.value)


def test_voc_layout_under_another_root(tmp_path: Path) -> None:
    detection_data.write_voc(tmp_path, images=3)
    cfg = _load("voc_R50_C4_24k", tmp_path)
    datasets.prepare(cfg)
    records = DatasetCatalog.get("voc_2007_test")
    assert len(records) == 3
    assert all(Path(record["file_name"]).is_relative_to(tmp_path) for record in records)
    (tmp_path / "VOC2007/JPEGImages/2007_test_1.jpg").unlink()
    with pytest.raises(UserError, match=r"2007_test_1\.jpg"):
        datasets.prepare(cfg)


def test_own_data_brings_its_class_count(tmp_path: Path) -> None:
    data = detection_data.write_coco(tmp_path / "a", classes=("cup", "key", "pen"))
    cfg = _load("coco_R50_FPN", tmp_path, *detection_data.custom(data, data))
    datasets.prepare(cfg)
    assert cfg.MODEL.ROI_HEADS.NUM_CLASSES == 3
    assert datasets.class_names("custom_train") == ["cup", "key", "pen"]


def _edit(data: tuple[Path, Path], change: Callable[[dict], None]) -> tuple[Path, Path]:
    """A copy of a set's json with a change, beside the original."""
    content = json.loads(data[0].read_text())
    change(content)
    copy = data[0].with_name(f"changed{len(list(data[0].parent.iterdir()))}.json")
    copy.write_text(json.dumps(content))
    return copy, data[1]


MISTAKES: list[tuple[Callable[[dict], None], str]] = [
    (
        lambda c: c["annotations"][1].pop("segmentation"),
        r"annotation 2 has no segmentation: add MODEL\.MASK_ON False",
    ),
    (lambda c: c["annotations"][1].pop("iscrowd"), "annotation 2 has no iscrowd"),
    (lambda c: c.update(annotations=[]), "no annotation"),
    (lambda c: c["images"][0].update(file_name="gone.png"), r"gone\.png is missing"),
    (lambda c: c.pop("categories"), "not a COCO json"),
]


@pytest.mark.parametrize(("change", "message"), MISTAKES)
@pytest.mark.parametrize("part", ["TRAIN", "TEST"])
def test_own_data_mistakes(tmp_path: Path, change: Callable[[dict], None], message: str, part: str) -> None:
    good = detection_data.write_coco(tmp_path / "a")
    bad = _edit(good, change)
    pair = (bad, good) if part == "TRAIN" else (good, bad)
    with pytest.raises(UserError, match=rf"DATASETS\.{part}_JSON .*{message}"):
        datasets.prepare(_load("coco_R50_FPN", tmp_path, *detection_data.custom(*pair)))


def test_own_data_whose_test_set_means_other_classes(tmp_path: Path) -> None:
    train = detection_data.write_coco(tmp_path / "a", classes=("cup", "key"))
    test = detection_data.write_coco(tmp_path / "b", classes=("key", "cup"))
    with pytest.raises(UserError, match=r"TEST_JSON.*\['key', 'cup'\].*\['cup', 'key'\]"):
        datasets.prepare(_load("coco_R50_FPN", tmp_path, *detection_data.custom(train, test)))
    with pytest.raises(UserError, match=r"DATASETS.TEST_JSON .*together"):
        datasets.prepare(_load("coco_R50_FPN", tmp_path, *detection_data.custom(train, train)[:4]))


def test_boxes_only_train_without_masks(tmp_path: Path) -> None:
    boxes = detection_data.write_coco(tmp_path / "a", masks=False)
    cfg = _load("coco_R50_FPN", tmp_path, *detection_data.custom(boxes, boxes), "MODEL.MASK_ON", "False")
    datasets.prepare(cfg)
    assert all("segmentation" not in a for r in DatasetCatalog.get("custom_train") for a in r["annotations"])


def test_testing_needs_no_training_set(tmp_path: Path) -> None:
    cfg = _load(
        "demo_R18_FPN", tmp_path, "DATASETS.TEST", "('voc_2007_test',)", "MODEL.ROI_HEADS.NUM_CLASSES", "20"
    )
    detection_data.write_voc(tmp_path)
    datasets.prepare(cfg, train=False)
    with pytest.raises(UserError, match="demo_standard"):
        datasets.prepare(cfg)


def test_wrong_class_count_and_unknown_name(tmp_path: Path) -> None:
    detection_data.write_voc(tmp_path)
    cfg = _load("voc_R50_C4_24k", tmp_path, "MODEL.ROI_HEADS.NUM_CLASSES", "21")
    with pytest.raises(UserError, match=r"NUM_CLASSES 21.*20"):
        datasets.prepare(cfg)
    with pytest.raises(UserError, match="unknown data set my_data"):
        datasets.prepare(_load("voc_R50_C4_24k", tmp_path, "DATASETS.TEST", "('my_data',)"))


def test_cityscapes_are_read_as_detectron2_reads_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("cityscapesscripts")
    pytest.importorskip("shapely")
    from detectron2.data.datasets.cityscapes import load_cityscapes_instances

    from transfer import cityscapes

    detection_data.write_cityscapes(tmp_path, images=4)
    folders = [str(tmp_path / "cityscapes" / kind / "val") for kind in ("leftImg8bit", "gtFine")]
    d2_compat.alias_cityscapes()
    expected = load_cityscapes_instances(*folders)
    assert {a["category_id"] for r in expected for a in r["annotations"]} == {0, 2}  # person, car
    assert cityscapes.instances(*folders) == expected
    monkeypatch.setattr(cityscapes, "CHUNK", 1)
    monkeypatch.setattr(cityscapes.os, "cpu_count", lambda: 2)
    assert cityscapes.instances(*folders) == expected  # by two processes
