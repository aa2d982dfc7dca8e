"""VOC's AP is detectron2's on complete files, and the same on the files that labelling tools write."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.evaluation import PascalVOCDetectionEvaluator
from detectron2.structures import Boxes, Instances

from tests.support import detection_data
from transfer.data import catalog
from transfer.metrics.voc import Voc

SET = "voc_2007_test"


def _prepared(root: Path) -> Path:
    detection_data.write_voc(root, images=6)
    folder = root / "VOC2007/Annotations"
    for file in sorted(folder.glob("2007_test_[13].xml")):  # a difficult object in two of the files
        file.write_text(file.read_text().replace("<difficult>0", "<difficult>1", 1))
    catalog.register_builtin(root)
    return folder


def _outputs() -> list[tuple[dict, dict]]:
    """Pairs of a model's input and output: the true boxes, some of them shifted, and some false ones."""
    rng = np.random.default_rng(0)
    pairs = []
    for record in DatasetCatalog.get(SET):
        boxes = np.array([a["bbox"] for a in record["annotations"]] * 2)
        boxes += rng.normal(0, 2.5, boxes.shape).round(1)
        found = Instances((record["height"], record["width"]))
        found.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32))
        found.scores = torch.tensor(rng.uniform(0.1, 1, len(boxes)).round(3))
        found.pred_classes = torch.tensor([a["category_id"] for a in record["annotations"]] * 2)
        pairs.append(({"image_id": record["image_id"]}, {"instances": found}))
    return pairs


def _measured(evaluator: PascalVOCDetectionEvaluator, pairs: list[tuple[dict, dict]]) -> dict[str, float]:
    evaluator.reset()
    for given, output in pairs:
        evaluator.process([given], [output])
    with np.errstate(invalid="ignore"):
        return evaluator.evaluate()["bbox"]


def test_complete_files_give_the_ap_of_detectron2(tmp_path: Path) -> None:
    _prepared(tmp_path)
    pairs = _outputs()
    aps: dict[str, list[float]] = {}
    from detectron2.evaluation import pascal_voc_evaluation

    original = pascal_voc_evaluation.voc_eval

    def recorded(*arguments: object, **options: object) -> tuple:
        result = original(*arguments, **options)
        aps.setdefault(str(arguments[3]), []).append(result[2] * 100)
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pascal_voc_evaluation, "voc_eval", recorded)
        _measured(PascalVOCDetectionEvaluator(SET), pairs)
    ours = _measured(Voc(SET), pairs)
    for kind in ("dog", "chair"):
        assert 5 < ours[f"AP-{kind}"] < 95
        assert ours[f"AP-{kind}"] == np.mean(aps[kind])  # bit for bit
    assert ours["AP"] == pytest.approx(np.mean([aps["dog"], aps["chair"]]), abs=1e-12)
    assert np.isnan(ours["AP-cat"])


def _without(*parts: str):
    return lambda text: re.sub(rf"<({'|'.join(parts)})>\w*</\1>", "", text)


@pytest.mark.parametrize(
    "change",
    [
        _without("pose", "truncated"),
        lambda text: text.replace("<difficult>0</difficult>", ""),
        lambda text: text.replace("<difficult>0</difficult>", "<difficult/>"),
        lambda text: re.sub(r"(<[xy]m\w+>\d+)<", r"\1.00<", text),
        lambda text: re.sub(r"<size>.*</size>", "<path>/x.jpg</path>", text),
        lambda text: re.sub(r"<name>(\w+)<", r"<name> \1\n<", text),
    ],
    ids=["pose", "no difficult", "empty difficult", "fractions", "no size", "spaces"],
)  # fmt: skip
def test_incomplete_files_give_the_same_ap(tmp_path: Path, change) -> None:
    folder = _prepared(tmp_path)
    pairs, records = _outputs(), DatasetCatalog.get(SET)
    expected = _measured(Voc(SET), pairs)
    for file in folder.glob("2007_test_*.xml"):
        old = file.read_text()
        file.write_text(change(old))
        assert file.read_text() != old
    assert DatasetCatalog.get(SET) == records  # training takes the same boxes
    assert {k: v for k, v in _measured(Voc(SET), pairs).items() if v == v} == {
        k: v for k, v in expected.items() if v == v
    }


def test_fractions_are_not_cut_off(tmp_path: Path) -> None:
    """An answer with the same edges has an IoU of 1. Cut off to 11..20, as detectron2 would, it is 90.25 / 109.75."""
    folder = _prepared(tmp_path)
    (tmp_path / "VOC2007/ImageSets/Main/test.txt").write_text("2007_test_0\n")  # and a list of one image
    size = "<size><width>128</width><height>96</height></size>"
    box = "<bndbox><xmin>11.5</xmin><ymin>11.5</ymin><xmax>20.5</xmax><ymax>20.5</ymax></bndbox>"
    (folder / "2007_test_0.xml").write_text(
        f"<annotation>{size}<object><name>dog</name>{box}</object></annotation>"
    )
    record = DatasetCatalog.get(SET)[0]
    assert record["annotations"][0]["bbox"] == [10.5, 10.5, 20.5, 20.5]
    found = Instances((96, 128))
    found.pred_boxes, found.scores = Boxes(torch.tensor([[10.5, 10.5, 20.5, 20.5]])), torch.tensor([0.9])
    found.pred_classes = torch.tensor([11])
    bbox = _measured(Voc(SET), [({"image_id": "2007_test_0"}, {"instances": found})])
    assert bbox["AP"] == pytest.approx(100) and bbox["AP-dog"] == pytest.approx(100)


def test_names_with_spaces_and_images_without_objects(tmp_path: Path) -> None:
    folder = _prepared(tmp_path)
    expected = _measured(Voc(SET), _outputs())
    pairs, place = _outputs(), tmp_path / "VOC2007"
    for i in range(6):
        (folder / f"2007_test_{i}.xml").rename(folder / f"my dog {i}.xml")
        (place / f"JPEGImages/2007_test_{i}.jpg").rename(place / f"JPEGImages/my dog {i}.JPG")
    (place / "ImageSets/Main/test.txt").write_text("".join(f"my dog {i} 1\r\n" for i in range(6)))
    renamed = [
        ({"image_id": r["image_id"]}, out) for r, (_, out) in zip(DatasetCatalog.get(SET), pairs, strict=True)
    ]
    assert renamed[0][0]["image_id"] == "my dog 0"
    found = _measured(Voc(SET), renamed)
    assert found["AP"] == expected["AP"] and found["AP-dog"] == expected["AP-dog"]


def test_an_answer_in_an_image_without_objects_is_wrong(tmp_path: Path) -> None:
    """One dog, found, and a surer answer where there is none: precision 1/2 at every recall."""
    folder = _prepared(tmp_path)
    (tmp_path / "VOC2007/ImageSets/Main/test.txt").write_text("2007_test_0\n2007_test_1\n")
    box = "<bndbox><xmin>11</xmin><ymin>11</ymin><xmax>20</xmax><ymax>20</ymax></bndbox>"
    (folder / "2007_test_0.xml").write_text(
        f"<annotation><object><name>dog</name>{box}</object></annotation>"
    )
    (folder / "2007_test_1.xml").write_text("<annotation/>")
    pairs = []
    for name, score in (("2007_test_0", 0.8), ("2007_test_1", 0.9)):
        found = Instances((96, 128))
        found.pred_boxes, found.scores = Boxes(torch.tensor([[10.0, 10, 20, 20]])), torch.tensor([score])
        found.pred_classes = torch.tensor([11])
        pairs.append(({"image_id": name}, {"instances": found}))
    assert _measured(Voc(SET), pairs)["AP"] == pytest.approx(50)
