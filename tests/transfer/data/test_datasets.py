"""Data sets by name, the user's own data, and the messages about missing files."""

import hashlib
import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.pascal_voc import CLASS_NAMES, load_voc_instances

from pretrain.common.errors import UserError
from tests.support import detection_data
from tests.support.scripts import server
from transfer import d2_compat
from transfer.config.load import load_config
from transfer.data import catalog, datasets, train_stream
from transfer.data import digests as data_digests
from transfer.data.readers import voc_objects
from transfer.prepare import command as prepare_command


def _load(name: str, root: Path, *overrides: str):
    return load_config(
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
    assert "DATASETS.ROOT" in str(caught.value) and "DETECTRON2_DATASETS" in str(caught.value)


def test_the_root_is_detectron2s_variable_unless_it_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    detection_data.write_voc(tmp_path / "theirs")
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "theirs"))
    cfg = load_config("transfer/voc_R50_C4_24k.yaml", ["MODEL.INIT", "random"])
    assert str(tmp_path / "theirs") == cfg.DATASETS.ROOT
    datasets.prepare(cfg)
    assert Path(DatasetCatalog.get("voc_2007_test")[0]["file_name"]).is_relative_to(tmp_path / "theirs")
    assert prepare_command._parse(None, ["voc"]).root == tmp_path / "theirs"
    given = _load("voc_R50_C4_24k", tmp_path / "given")
    with pytest.raises(UserError, match="given/VOC2007"):
        datasets.prepare(given)
    monkeypatch.setenv("DETECTRON2_DATASETS", "")
    assert load_config("transfer/voc_R50_C4_24k.yaml", ["MODEL.INIT", "random"]).DATASETS.ROOT == "datasets"


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


def test_own_data_brings_its_class_count(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Without what detectron2 says about category ids that are not 1, 2, 3."""
    logging.getLogger("detectron2").setLevel(logging.NOTSET)
    data = detection_data.write_coco(tmp_path / "a", classes=("cup", "key", "pen"))
    cfg = _load("coco_R50_FPN", tmp_path, *detection_data.custom(data, data))
    datasets.prepare(cfg)
    assert len(DatasetCatalog.get("custom_train")) == 4 and not caplog.records
    assert cfg.MODEL.ROI_HEADS.NUM_CLASSES == 3
    assert datasets.class_names("custom_train") == ["cup", "key", "pen"]


def _edit(data: tuple[Path, Path], change: Callable[[dict], None]) -> tuple[Path, Path]:
    """Write a changed copy of a set's json next to the original."""
    content = json.loads(data[0].read_text())
    change(content)
    copy = data[0].with_name(f"changed{len(list(data[0].parent.iterdir()))}.json")
    copy.write_text(json.dumps(content))
    return copy, data[1]


MISTAKES: list[tuple[Callable[[dict], None], str]] = [
    (
        lambda c: c["annotations"][1].pop("segmentation"),
        r"annotation 2 has no segmentation: set MODEL\.MASK_ON False",
    ),
    (lambda c: c["annotations"][1].pop("iscrowd"), "annotation 2 has no iscrowd"),
    (lambda c: c.update(annotations=[]), "its list 'annotations' is empty"),
    (
        lambda c: c["images"][0].update(file_name="gone.png"),
        r"image 1: its file .*gone\.png is missing.*REPAIR True",
    ),
    (lambda c: c.pop("categories"), "not a COCO json: it has no list 'categories'"),
    (lambda c: c.pop("images"), "not a COCO json: it has no list 'images'"),
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
    with pytest.raises(UserError, match=r"DATASETS.TEST_JSON .*needs all of"):
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


def test_class_counts_by_kind_of_model(tmp_path: Path) -> None:
    detection_data.write_voc(tmp_path)
    cfg = _load("voc_R50_C4_24k", tmp_path, "MODEL.ROI_HEADS.NUM_CLASSES", "21")
    with pytest.raises(
        UserError, match=r"ROI_HEADS\.NUM_CLASSES 21: voc_2007_trainval has 20 classes; set it to 20"
    ):
        datasets.prepare(cfg)
    cfg = _load("voc_R50_C4_24k", tmp_path, "MODEL.META_ARCHITECTURE", "RetinaNet")
    with pytest.raises(UserError, match=r"RETINANET\.NUM_CLASSES 80.*20"):
        datasets.prepare(cfg)
    cfg = _load("voc_R50_C4_24k", tmp_path, "MODEL.META_ARCHITECTURE", "SemanticSegmentor")
    with pytest.raises(UserError, match="voc_2007_trainval has no labels per pixel"):
        datasets.prepare(cfg)
    detection_data.write_voc_labels(tmp_path, "train_aug")
    labels = ("DATASETS.TRAIN", "('voc_2012_semseg_train',)", "DATASETS.TEST", "()")
    keys = ("MODEL.META_ARCHITECTURE", "SemanticSegmentor", "MODEL.SEM_SEG_HEAD.NUM_CLASSES")
    with pytest.raises(UserError, match=r"SEM_SEG_HEAD\.NUM_CLASSES 20.*21"):
        datasets.prepare(_load("voc_R50_C4_24k", tmp_path, *labels, *keys, "20"))
    cfg = _load("voc_R50_C4_24k", tmp_path, *labels, *keys, "21")
    datasets.prepare(cfg)
    (first, *rest) = datasets.training_records(cfg)
    assert (first["width"], first["height"], len(rest)) == (128, 96, 2)
    with pytest.raises(UserError, match="voc_2012_semseg_train has no objects"):
        datasets.prepare(_load("voc_R50_C4_24k", tmp_path, *labels))


def test_unknown_names_come_with_the_nearest(tmp_path: Path) -> None:
    for given, said in (
        ("coco_2017_trian", "unknown data set coco_2017_trian; did you mean coco_2017_train"),
        ("lvis_v0.5_valid", "did you mean .*lvis_v0.5_val"),
        ("qqq", "unknown data set qqq; choose one of .* DATASETS.TRAIN_JSON"),
    ):
        with pytest.raises(UserError, match=rf"DATASETS\.TEST: .*{said}"):
            datasets.prepare(_load("voc_R50_C4_24k", tmp_path, "DATASETS.TEST", f"('{given}',)"), train=False)


@pytest.mark.parametrize(
    ("name", "missing"),
    [
        ("keypoints_coco_2017_val", "person_keypoints_train2017.json"),
        ("coco_2017_val_100", "instances_val2017_100.json"),
        ("coco_2014_minival", "instances_minival2014.json"),
        ("ade20k_sem_seg_val", "ADEChallengeData2016"),
        ("lvis_v0.5_val", "lvis_v0.5_val.json"),
        ("lvis_v1_val", "lvis_v1_val.json"),
        ("lvis_v0.5_val_cocofied", "lvis_v0.5_val_cocofied.json"),
        ("cityscapes_fine_sem_seg_val", "cityscapes"),
        ("cityscapes_fine_instance_seg_val", "cityscapes"),
        ("cityscapes_fine_panoptic_val", "cityscapes"),
        ("coco_2017_val_panoptic", "val2017"),
        ("voc_2012_semseg_val", "semseg"),
    ],
)
def test_every_name_is_checked_before_the_start(tmp_path: Path, name: str, missing: str) -> None:
    cfg = _load("coco_R50_FPN", tmp_path, "DATASETS.TEST", f"('{name}',)")
    with pytest.raises(UserError, match=missing):
        datasets.prepare(cfg, train=False)


def test_a_package_that_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog.importlib.util, "find_spec", lambda _: None)
    for name, package in (("lvis_v1_val", "lvis"), ("cityscapes_fine_sem_seg_val", "cityscapesscripts")):
        cfg = _load("coco_R50_FPN", tmp_path, "DATASETS.TEST", f"('{name}',)")
        with pytest.raises(UserError, match=f"{name} needs the package {package}: pip install {package}"):
            datasets.prepare(cfg, train=False)


def test_voc_is_read_as_detectron2_reads_it(tmp_path: Path) -> None:
    detection_data.write_voc(tmp_path, images=4)
    folder = tmp_path / "VOC2007"
    assert voc_objects(folder, "test") == load_voc_instances(str(folder), "test", CLASS_NAMES)
    xml = folder / "Annotations/2007_test_2.xml"
    xml.write_text(xml.read_text().replace("dog", "dragon").replace("chair", "dragon"))
    with pytest.raises(
        UserError, match=r"2007_test_2\.xml: object 1 has the class 'dragon'.*aeroplane, .*tvmonitor"
    ):
        voc_objects(folder, "test")
    xml.write_text("<annotation>")
    with pytest.raises(UserError, match=r"2007_test_2\.xml: not an XML file of VOC"):
        voc_objects(folder, "test")


def _break(content: dict) -> None:
    mask = [[-20, 5, 20, 5, 20, 15, -20, 15]]
    content["annotations"][0].update(bbox=[-20, 5, 40, 10], segmentation=mask, area=200)
    content["annotations"][1]["category_id"] = 77
    for annotation in content["annotations"][2:]:
        annotation["iscrowd"] = None
    content["images"][3].pop("width")


def test_bad_annotations_are_listed_and_mended_on_request(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = detection_data.write_coco(tmp_path / "a", images=8)
    bad = _edit(good, _break)
    before = bad[0].read_text()
    options = [*detection_data.custom(bad, good), "OUTPUT_DIR", str(tmp_path / "run")]
    with pytest.raises(UserError, match=r"image 4: its width .*16 more problem.*DATASETS\.REPAIR True"):
        datasets.prepare(_load("coco_R50_FPN", tmp_path, *options))
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 11 and printed[-1] == "... and 7 more"
    assert "annotation 1 has bbox [-20, 5, 40, 10] outside its image" in printed[1]
    assert "annotation 2 has category_id 77" in printed[2]
    cfg = _load("coco_R50_FPN", tmp_path, *options, "DATASETS.REPAIR", "True")
    datasets.prepare(cfg)
    said = capsys.readouterr().out
    assert (
        "1 images: size read from the file, 1 annotations: clipped, 1 annotations: left out, "
        "14 annotations: iscrowd set to 0" in said
    )
    records = DatasetCatalog.get("custom_train")
    assert sum(len(record["annotations"]) for record in records) == 15
    assert records[0]["annotations"][0]["bbox"] == [0, 5, 20, 10]
    assert records[3]["width"] == 128
    assert bad[0].read_text() == before
    assert str(tmp_path / "run/repaired/train.json") in said
    assert data_digests.data_record(cfg)["sets"]["custom_train"]["annotations"] == 15


def test_what_cannot_be_mended(tmp_path: Path) -> None:
    good = detection_data.write_coco(tmp_path / "a")
    bad = _edit(good, lambda c: [a.pop("segmentation") for a in c["annotations"]])
    options = [
        *detection_data.custom(bad, bad),
        "DATASETS.REPAIR",
        "True",
        "OUTPUT_DIR",
        str(tmp_path / "run"),
    ]
    with pytest.raises(UserError, match=r"8 of 8 .* no segmentation; set MODEL.MASK_ON False"):
        datasets.prepare(_load("coco_R50_FPN", tmp_path, *options))
    datasets.prepare(_load("coco_R50_FPN", tmp_path, *options, "MODEL.MASK_ON", "False"))


def test_own_keypoints(tmp_path: Path) -> None:
    data = detection_data.write_coco(tmp_path / "a", keypoints=5)
    options = [*detection_data.custom(data, data), "MODEL.KEYPOINT_ON", "True"]
    with pytest.raises(UserError, match=r"KEYPOINT_OKS_SIGMAS has 0 numbers: give 5"):
        datasets.prepare(_load("coco_R50_FPN", tmp_path, *options))
    cfg = _load("coco_R50_FPN", tmp_path, *options, "TEST.KEYPOINT_OKS_SIGMAS", str([0.05] * 5))
    datasets.prepare(cfg)
    assert cfg.MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS == 5
    metadata = MetadataCatalog.get("custom_train")
    assert metadata.keypoint_names == ["left_a", "right_a", "left_b", "right_b", "left_c"]
    assert metadata.keypoint_flip_map == [("left_a", "right_a"), ("left_b", "right_b")]
    # mirrored images: detectron2's mapper exchanges left and right
    cfg.merge_from_list(
        ["INPUT.RANDOM_FLIP", "horizontal", "MODEL.DEVICE", "cpu", "DATALOADER.NUM_WORKERS", "0"]
    )
    seen = set()
    batches = train_stream.batches(train_stream.read(cfg), cfg, 0)
    for _ in range(3):
        for item in next(batches):
            points = item["instances"].gt_keypoints.tensor[0, :, :2]
            rightwards = points[0, 0] < points[4, 0]  # they lie on a diagonal, a to c
            ordered = (points[:, 1].diff() > 0).tolist()
            seen.add((bool(rightwards), tuple(ordered)))
    # mirrored: left and right are swapped, so the order downwards is 2, 1, 4, 3, 5
    assert seen == {(True, (True,) * 4), (False, (False, True, False, True))}
    unnamed = _edit(data, lambda c: [category.pop("keypoints") for category in c["categories"]])
    cfg = _load("coco_R50_FPN", tmp_path, *detection_data.custom(unnamed, unnamed), *options[8:],
                "TEST.KEYPOINT_OKS_SIGMAS", str([0.05] * 5))  # fmt: skip
    datasets.prepare(cfg)
    assert MetadataCatalog.get("custom_test").keypoint_names == [f"point{i}" for i in range(1, 6)]
    detection_data.write_voc(tmp_path)
    with pytest.raises(UserError, match=r"voc_2007_trainval has no keypoints.*KEYPOINT_ON False"):
        datasets.prepare(_load("voc_R50_C4_24k", tmp_path, "MODEL.KEYPOINT_ON", "True"))


def test_subsets_are_chosen_said_and_recorded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = detection_data.write_coco(tmp_path / "a", images=20)
    shutil.copy(data[1] / "001.png", data[1] / "099.png")
    empty = _edit(
        data, lambda c: c["images"].append({"id": 99, "file_name": "099.png", "width": 128, "height": 96})
    )
    options = detection_data.custom(empty, data)
    cfg = _load("coco_R50_FPN", tmp_path, *options)
    datasets.prepare(cfg)
    everything = [record["image_id"] for record in datasets.training_records(cfg)]
    assert len(everything) == 20  # without the image that has no annotation
    assert data_digests.data_record(cfg)["subset"] is None
    capsys.readouterr()
    cfg = _load("coco_R50_FPN", tmp_path, *options, "DATASETS.FRACTION", "0.25", "DATASETS.SUBSET_SEED", "3")
    datasets.prepare(cfg)
    part = [record["image_id"] for record in datasets.training_records(cfg)]
    assert (
        "training on 5 of 20 images (DATASETS.FRACTION 0.25; seed 3), with 10 of 40 objects"
        in capsys.readouterr().out
    )
    assert len(part) == 5 and set(part) < set(everything)
    assert len(train_stream.read(cfg).records) == 5
    record = data_digests.data_record(cfg)
    assert record["subset"] == {"fraction": 0.25, "shots": 0, "seed": 3}
    assert (
        record["sets"]["custom_train"]["images"] == 21 and record["sets"]["custom_test"]["annotations"] == 40
    )
    cfg = _load("coco_R50_FPN", tmp_path, *options, "DATASETS.SHOTS", "2")
    datasets.prepare(cfg)
    shots = datasets.training_records(cfg)
    kinds = [annotation["category_id"] for record in shots for annotation in record["annotations"]]
    assert min(kinds.count(0), kinds.count(1)) >= 2 and len(shots) < 5
    assert "until each class had 2 objects" in capsys.readouterr().out


def test_nothing_to_train_on(tmp_path: Path) -> None:
    data = detection_data.write_coco(tmp_path / "a")
    crowds = _edit(data, lambda c: [a.update(iscrowd=1) for a in c["annotations"]])
    with pytest.raises(UserError, match=r"TRAIN_JSON.*all 8 annotations have iscrowd 1"):
        datasets.prepare(_load("coco_R50_FPN", tmp_path, *detection_data.custom(crowds, data)))


def test_digests_tell_data_apart(tmp_path: Path) -> None:
    data = detection_data.write_coco(tmp_path / "a")
    other = _edit(data, lambda c: c["annotations"].pop())
    digests = []
    for train in (data, other):
        cfg = _load("coco_R50_FPN", tmp_path, *detection_data.custom(train, data))
        datasets.prepare(cfg)
        digests.append(data_digests.data_digests(cfg))
    assert digests[0]["custom_train"] == digests[0]["custom_test"] == digests[1]["custom_test"]
    assert digests[0]["custom_train"] != digests[1]["custom_train"]
    assert digests[0]["custom_train"] == hashlib.sha256(data[0].read_bytes()).hexdigest()
    assert list(data_digests.data_digests(cfg, train=False)) == ["custom_test"]
    detection_data.write_voc(tmp_path)
    cfg = _load("voc_R50_C4_24k", tmp_path)
    datasets.prepare(cfg)
    before = data_digests.data_digests(cfg)
    names = tmp_path / "VOC2007/ImageSets/Main/trainval.txt"
    names.write_text("\n".join(names.read_text().split()[:-1]))
    after = data_digests.data_digests(cfg)
    assert {name for name in before if before[name] != after[name]} == {"voc_2007_trainval"}


def test_cityscapes_are_read_as_detectron2_reads_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("cityscapesscripts")
    pytest.importorskip("shapely")
    from detectron2.data.datasets.cityscapes import load_cityscapes_instances

    from transfer.data import readers
    from transfer.data.readers import cityscapes_instances, os

    detection_data.write_cityscapes(tmp_path, images=4)
    folders = [str(tmp_path / "cityscapes" / kind / "val") for kind in ("leftImg8bit", "gtFine")]
    d2_compat.alias_cityscapes()
    expected = load_cityscapes_instances(*folders)
    assert {a["category_id"] for r in expected for a in r["annotations"]} == {0, 2}  # person, car
    assert cityscapes_instances(*folders) == expected
    monkeypatch.setattr(readers, "_CHUNK", 1)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.setattr(
        readers, "get_context", lambda _: server()
    )  # fresh interpreters take seconds to start
    assert cityscapes_instances(*folders) == expected  # by two processes
