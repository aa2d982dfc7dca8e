"""The rule by which the demo's pictures are chosen, on cases computed by hand, and the files that it writes."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from tests.support import detection_data
from transfer.config.load import load_config
from transfer.demo import pictures
from transfer.predict.predictor import Detections
from transfer.visualize.instances import Objects


def found(scores: list[float]) -> Objects:
    count = len(scores)
    return Objects(np.tile([0, 0, 10, 10], (count, 1)), np.zeros(count), np.array(scores))


def test_the_threshold_is_the_highest_at_which_every_row_detects_something_in_half_of_the_images() -> None:
    strong, weak = [found([0.9]), found([0.8, 0.6])], [found([0.35]), found([0.05])]
    assert pictures.threshold({"strong": strong}) == 0.5
    assert pictures.threshold({"strong": strong, "weak": weak}) == 0.3
    assert pictures.threshold({"strong": strong, "none": [found([]), found([])]}) == 0.05


def test_f1_by_hand() -> None:
    """Two objects and a crowd; a right detection, a second one on the same object, and one inside the crowd."""
    boxes = [[0, 0, 10, 10], [50, 50, 60, 60], [100, 0, 200, 100]]
    truth = Objects(np.array(boxes), np.zeros(3), crowd=np.array([False, False, True]))
    detected = Objects(
        np.array([[0, 0, 10, 9], [0, 0, 10, 8], [110, 10, 120, 20]]), np.zeros(3), np.array([0.9, 0.8, 0.7])
    )
    assert pictures.f1(truth, detected) == pytest.approx(2 * 1 / (2 + 2))
    assert pictures.f1(truth, found([])) == 0
    none = Objects(np.zeros((0, 4)), np.zeros(0))
    assert pictures.f1(none, found([])) == 1 and pictures.f1(none, found([0.9])) == 0


def test_images_are_sorted_by_the_f1_of_the_best_row() -> None:
    f1s = [{"a": 0.2, "b": 0.5}, {"a": 0.0, "b": 1.0}, {"a": 0.4, "b": 0.5}, {"a": 0.9, "b": 0.0}]
    assert pictures.best_first(f1s) == ([1, 2, 0, 3], "b")


def test_the_files_show_the_annotations_and_each_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One row finds the first object of each image, the other one nothing."""
    data = detection_data.write_coco(tmp_path / "a", images=3)
    content = json.loads(data[0].read_text())
    files = {image["id"]: image["file_name"] for image in content["images"]}
    firsts = {}
    for annotation in content["annotations"]:
        firsts.setdefault(files[annotation["image_id"]], annotation)
    overrides = ["MODEL.INIT", "random", *detection_data.TINY, *detection_data.custom(data, data)]
    cfg = load_config("transfer/coco_R50_FPN.yaml", overrides)

    def predictor(run: Path, *, threshold: float) -> object:
        def detect(path: str) -> Detections:
            annotation = firsts[Path(path).name]
            x, y, width, height = annotation["bbox"]
            kind = sorted(each["id"] for each in content["categories"]).index(annotation["category_id"])
            count = int(run.name == "good")
            boxes = np.array([[x, y, x + width, y + height]] * count, np.float32).reshape(-1, 4)
            scores = np.full(count, 0.9, np.float32)
            return Detections((0, 0), boxes, np.full(count, kind), [], scores)

        detect.cfg = cfg  # type: ignore[attr-defined]
        return detect

    monkeypatch.setattr(pictures, "Predictor", predictor)
    pictures.write(tmp_path / "out", {"good": tmp_path / "good", "bad": tmp_path / "bad"})
    state = SimpleNamespace(**json.loads((tmp_path / "out/pictures.json").read_text()))
    assert (state.score, state.examined, len(state.shown)) == (0.05, 3, 3)
    objects = {name: 0 for name in files.values()}
    for annotation in content["annotations"]:
        objects[files[annotation["image_id"]]] += 1
    for number, each in enumerate(state.shown):
        assert each["f1"] == {"good": pytest.approx(2 / (1 + objects[each["name"]])), "bad": 0}
        truth, good, bad = (
            np.asarray(Image.open(tmp_path / f"out/{number:02}-{key}.jpg")).astype(int)
            for key in ("truth", "good", "bad")
        )
        assert np.abs(truth - bad).max() > 60 and np.abs(good - bad).max() > 60
    assert state.quartile == state.shown[0] and (tmp_path / "out/quartile-bad.jpg").is_file()
    f1s = [each["f1"]["good"] for each in state.shown]
    assert f1s == sorted(f1s, reverse=True)
