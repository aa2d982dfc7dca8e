"""Data sets by name, one's own data, and what is said when files are missing."""

import json
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
    datasets.check_classes(cfg)
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
    datasets.check_classes(cfg)
    assert cfg.MODEL.ROI_HEADS.NUM_CLASSES == 3
    assert datasets.class_names("custom_train") == ["cup", "key", "pen"]


def test_own_data_mistakes(tmp_path: Path) -> None:
    boxes_only = detection_data.write_coco(tmp_path / "a", masks=False)
    with pytest.raises(UserError, match=r"MODEL\.MASK_ON False"):
        datasets.prepare(_load("coco_R50_FPN", tmp_path, *detection_data.custom(boxes_only, boxes_only)))
    with pytest.raises(UserError, match=r"DATASETS.TEST_JSON .*together"):
        datasets.prepare(_load("coco_R50_FPN", tmp_path, *detection_data.custom(boxes_only, boxes_only)[:4]))
    no_coco = tmp_path / "x.json"
    no_coco.write_text(json.dumps(["a"]))
    with pytest.raises(UserError, match="not a COCO json"):
        datasets.prepare(
            _load("coco_R50_FPN", tmp_path, *detection_data.custom((no_coco, boxes_only[1]), boxes_only))
        )


def test_wrong_class_count_and_unknown_name(tmp_path: Path) -> None:
    detection_data.write_voc(tmp_path)
    cfg = _load("voc_R50_C4_24k", tmp_path, "MODEL.ROI_HEADS.NUM_CLASSES", "21")
    datasets.prepare(cfg)
    with pytest.raises(UserError, match=r"NUM_CLASSES 21.*20"):
        datasets.check_classes(cfg)
    with pytest.raises(UserError, match="unknown data set my_data"):
        datasets.prepare(_load("voc_R50_C4_24k", tmp_path, "DATASETS.TEST", "('my_data',)"))
