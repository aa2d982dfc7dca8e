"""Predictions are those that the run's own test made, with the user's ids, from the run's folder alone."""

import copy
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from pretrain.common.errors import UserError
from tests.support import detection_data
from tests.support.scripts import run_script
from transfer import detector_files
from transfer.config.load import load_config
from transfer.data import catalog
from transfer.metrics.coco import Coco
from transfer.predict import Detections, Predictor, command
from transfer.predict.arguments import parse
from transfer.train import run as training

FIRST_ID = 1001


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Yield a folder with `run`, which has been moved there, and the test set; the training data are deleted.

    `tested.json` holds what the run's own test found: image id -> COCO results with class indices.
    """
    folder = tmp_path_factory.mktemp("predict")
    train = detection_data.write_coco(folder / "train", images=6)
    test = detection_data.write_coco(folder / "test", images=4, seed=1)
    content = json.loads(test[0].read_text())
    for image in content["images"]:
        image["id"] += FIRST_ID - 1
    for annotation in content["annotations"]:
        annotation["image_id"] += FIRST_ID - 1
    test[0].write_text(json.dumps(content))
    tested: dict[int, Any] = {}
    original = Coco._eval_predictions

    def note(self: Coco, predictions: Any, img_ids: Any = None) -> None:
        tested.update({p["image_id"]: copy.deepcopy(p["instances"]) for p in predictions})
        original(self, predictions, img_ids)

    overrides = [
        *detection_data.TINY, *detection_data.NARROW, *detection_data.custom(train, test), "MODEL.INIT", "random",
        "SOLVER.MAX_ITER", "4", "SOLVER.STEPS", "(3,)", "SOLVER.BASE_LR", "0.01", "OUTPUT_DIR", str(folder / "before"),
    ]  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Coco, "_eval_predictions", note)
        training.run(load_config("transfer/coco_R50_FPN.yaml", overrides))
    (folder / "tested.json").write_text(json.dumps(tested))
    (folder / "before").rename(folder / "run")
    shutil.rmtree(folder / "train")
    yield folder


@pytest.fixture(scope="module")
def predictor(place: Path) -> Predictor:
    return Predictor(place / "run", device="cpu", threshold=0.05)


def _predict(place: Path, *arguments: object) -> int:
    words = ["--run", place / "run", "--device", "cpu", *arguments]
    return command.run(parse(None, [str(word) for word in words]))


def _average_precision(truth: Path, found: list[dict[str, Any]], kind: str) -> np.ndarray:
    api = COCO(str(truth))
    if kind == "segm":  # as in detectron2: areas are those of the masks
        found = [{key: value for key, value in result.items() if key != "bbox"} for result in found]
    evaluation = COCOeval(api, api.loadRes(found), kind)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return 100 * evaluation.stats[:3]


def _same(one: Detections, other: Detections) -> None:
    assert one.size == other.size and one.names == other.names
    np.testing.assert_array_equal(one.classes, other.classes)
    np.testing.assert_allclose(one.scores, other.scores, atol=1e-5)
    np.testing.assert_allclose(one.boxes, other.boxes, atol=1e-2)
    assert one.masks is not None and other.masks is not None
    assert (one.masks != other.masks).mean() < 1e-3


def test_results_are_those_of_the_runs_own_test(place: Path) -> None:
    truth, output = place / "test/instances.json", place / "results.json"
    json_without_annotations = place / "images.json"
    json_without_annotations.write_text(json.dumps({"images": json.loads(truth.read_text())["images"]}))
    arguments = ["--images-json", json_without_annotations, "--threshold", 0.05, place / "test/images"]
    assert _predict(place, "--results", output, *arguments) == 0
    found = json.loads(output.read_text())
    tested = json.loads((place / "tested.json").read_text())
    assert [int(key) for key in tested] == [FIRST_ID + i for i in range(4)]
    for key, expected in tested.items():
        mine = [result for result in found if result["image_id"] == int(key)]
        assert len(mine) == len(expected) > 0
        for one, other in zip(mine, expected, strict=True):
            assert one["category_id"] == (3, 6)[other["category_id"]]
            assert one["score"] == pytest.approx(other["score"], abs=1e-5)
            assert one["bbox"] == pytest.approx(other["bbox"], abs=1e-2)
            assert coco_mask.iou([one["segmentation"]], [other["segmentation"]], [0])[0, 0] > 0.99
    metrics = json.loads((place / "run/results.json").read_text())["metrics"]["custom_test"]
    for kind in ("bbox", "segm"):
        expected = [metrics[kind][name] for name in ("AP", "AP50", "AP75")]
        np.testing.assert_allclose(_average_precision(truth, found, kind), expected, atol=1e-6)


def test_from_the_command_line_without_a_json(place: Path, tmp_path: Path) -> None:
    """In a process that has never seen the training data; one file is broken."""
    photos = tmp_path / "photos"
    shutil.copytree(place / "test/images", photos / "more")
    (photos / "more/002.png").write_bytes((photos / "more/002.png").read_bytes()[:200])
    done = run_script(
        "tools/predict.py", "--run", str(place / "run"), "--device", "cpu", "--json", str(tmp_path / "found.json"),
        "--pictures", str(tmp_path / "pictures"), "--threshold", "0.05", "--batch", "3", str(photos),
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (1, "")
    *_, broken, last = done.stdout.splitlines()
    assert broken.startswith(f"{photos}/more/002.png: not a readable image")
    assert last == "1 of 4 images could not be read; the others were predicted"
    api = COCO(str(tmp_path / "found.json"))
    assert {key: image["file_name"] for key, image in api.imgs.items()} == {
        1: "more/001.png", 3: "more/003.png", 4: "more/004.png",
    }  # fmt: skip
    assert [(c["id"], c["name"]) for c in api.loadCats(api.getCatIds())] == [(3, "cup"), (6, "key")]
    tested = json.loads((place / "tested.json").read_text())
    for number in (1, 3, 4):
        scores = [annotation["score"] for annotation in api.loadAnns(api.getAnnIds(imgIds=[number]))]
        expected = [result["score"] for result in tested[str(FIRST_ID + number - 1)]]
        assert scores == pytest.approx(expected, abs=1e-5)
    for annotation in api.anns.values():
        assert annotation["area"] == api.annToMask(annotation).sum()
    with Image.open(tmp_path / "pictures/0003_003.jpg") as picture:
        assert picture.size == (320, 426)  # 96 x 128, enlarged so that names can be read
    assert len(list((tmp_path / "pictures").iterdir())) == 3


def test_batches_do_not_change_predictions(place: Path, predictor: Predictor) -> None:
    """The third image is upright, the others are not."""
    paths = sorted((place / "test/images").iterdir())
    singly = [predictor(path) for path in paths]
    predictor.batch = 3
    for one, other in zip(singly, predictor(paths), strict=True):
        _same(one, other)
    assert all((np.diff(each.scores) <= 0).all() for each in singly)
    found = singly[2]
    assert found.size == (128, 96)
    assert (
        found.masks is not None and found.masks.shape == (len(found), 128, 96) and found.masks.dtype == bool
    )
    assert found.boxes.shape == (len(found), 4) and found.scores.shape == found.classes.shape == (len(found),)
    assert found.names == [("cup", "key")[kind] for kind in found.classes]
    assert predictor.category_ids == [3, 6]


def test_arrays_and_turned_files(place: Path, predictor: Predictor, tmp_path: Path) -> None:
    with Image.open(place / "test/images/001.png") as image:
        pixels = np.asarray(image.convert("RGB"))
    expected = predictor(place / "test/images/001.png")
    _same(predictor(pixels), expected)
    _same(predictor(pixels[:, :, ::-1], channels="BGR"), expected)
    turned, exif = Image.fromarray(np.rot90(pixels).copy()), Image.Exif()
    exif[0x0112] = 6  # shown after a quarter turn clockwise
    turned.save(tmp_path / "turned.png", exif=exif)
    _same(predictor(str(tmp_path / "turned.png")), expected)
    for wrong in (pixels[:, :, 0], pixels / 255.0):
        with pytest.raises(ValueError, match="give uint8"):
            predictor(wrong)
    with pytest.raises(ValueError, match="give RGB or BGR"):
        predictor(pixels, channels="GRB")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_finds_the_same(place: Path, predictor: Predictor) -> None:
    paths = sorted((place / "test/images").iterdir())
    on_gpu = Predictor(place / "run", device="cuda", threshold=0.05)
    for path, found in zip(paths, on_gpu(paths), strict=True):
        expected = predictor(path)
        assert len(found) == len(expected)
        np.testing.assert_allclose(found.scores, expected.scores, atol=1e-3)


def test_a_higher_threshold_only_leaves_out(place: Path, predictor: Predictor) -> None:
    path = place / "test/images/001.png"
    every = predictor(path)
    threshold = float(np.median(every.scores))
    fewer = Predictor(place / "run", device="cpu", threshold=threshold)(path)
    assert 0 < len(fewer) < len(every)
    np.testing.assert_array_equal(fewer.scores, every.scores[every.scores > np.float32(threshold)])


def test_keypoints_and_weights_by_name(tmp_path: Path) -> None:
    overrides = [
        *detection_data.TINY, *detection_data.NARROW, "MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS", "(8,)",
        "MODEL.MASK_ON", "False", "MODEL.KEYPOINT_ON", "True", "MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS", "4",
        "MODEL.ROI_HEADS.NUM_CLASSES", "1",
    ]  # fmt: skip
    cfg = load_config("transfer/coco_R50_FPN.yaml", ["MODEL.INIT", "random", *overrides])
    (tmp_path / "config.yaml").write_text(cfg.dump())
    (tmp_path / "categories.json").write_text('[{"id": "p", "name": "person"}]')
    torch.save({"model": build_model(cfg).state_dict(), "iteration": 2}, tmp_path / "model_last.pth")
    with pytest.raises(
        UserError, match=r"not finished, .*model_final\.pth: continue .*--weights .*model_last\.pth$"
    ):
        Predictor(tmp_path, device="cpu")
    predictor = Predictor(tmp_path, device="cpu", weights=tmp_path / "model_last.pth", threshold=0)
    found = predictor(np.zeros((60, 80, 3), np.uint8))
    assert found.masks is None
    assert found.keypoints is not None and found.keypoints.shape == (len(found), 4, 3) and len(found)
    [result, *_] = command.coco_results.results(found, "a", predictor.category_ids)
    assert (result["image_id"], result["category_id"]) == ("a", "p")
    np.testing.assert_allclose(result["keypoints"][:2], found.keypoints[0, 0, :2] - 0.5)


def test_a_run_of_an_older_version(place: Path, tmp_path: Path) -> None:
    written = json.loads((place / "run/categories.json").read_text())
    assert written == [{"id": 3, "name": "cup"}, {"id": 6, "name": "key"}]
    for name in ("config.yaml", "model_final.pth"):
        (tmp_path / name).symlink_to(place / "run" / name)
    with pytest.raises(UserError, match=r"no categories\.json.*--train-json FILE"):
        detector_files.read_run(tmp_path)
    trained = tmp_path / "train.json"
    trained.write_text(json.dumps({"categories": written[::-1]}))
    assert detector_files.read_run(tmp_path, train_json=trained)[1] == written
    trained.write_text(json.dumps({"categories": written[:1]}))
    with pytest.raises(UserError, match=r"it has 1 categories, but the model .* has 2"):
        detector_files.read_run(tmp_path, train_json=trained)


def test_categories_of_sets_whose_files_have_no_ids(tmp_path: Path) -> None:
    cfg = load_config("transfer/voc_R50_C4_24k.yaml", ["MODEL.INIT", "random"])
    catalog.register_builtin(tmp_path)
    detector_files.write_categories(cfg, tmp_path)
    written = json.loads((tmp_path / "categories.json").read_text())
    assert written[:2] == [{"id": 1, "name": "aeroplane"}, {"id": 2, "name": "bicycle"}]
    assert len(written) == 20
    labels = load_config("transfer/semseg_voc_R50.yaml", ["MODEL.INIT", "random"])
    (tmp_path / "labels").mkdir()
    detector_files.write_categories(labels, tmp_path / "labels")
    assert not list((tmp_path / "labels").iterdir())
    (tmp_path / "labels/config.yaml").write_text(labels.dump())
    with pytest.raises(UserError, match="SemanticSegmentor does not detect objects"):
        detector_files.read_run(tmp_path / "labels")


def test_notes_about_a_json_that_differs(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = [{"id": "x", "file_name": "001.png", "width": 96, "height": 128, "licence": 7}]
    images += [{"id": "y", "file_name": "gone.png"}]
    (tmp_path / "a.json").write_text(json.dumps({"images": images, "categories": [{"id": 0, "name": "key"}]}))
    arguments = ["--images-json", tmp_path / "a.json", "--json", tmp_path / "b.json", place / "test/images"]
    assert _predict(place, *arguments) == 1
    printed = capsys.readouterr().out
    assert "note: key has the id 0 in the json and 6 in the run, whose ids are written" in printed
    assert (
        "note: 1 of 1 images have another size than the json says, the first: 001.png is 128 x 96" in printed
    )
    assert "gone.png: not a readable image: No such file" in printed
    written = json.loads((tmp_path / "b.json").read_text())
    assert written["images"] == [
        {"id": "x", "file_name": "001.png", "width": 128, "height": 96, "licence": 7}
    ]


MISTAKES: list[tuple[list[str], str]] = [
    (["--run", "PLACE/none", "--json", "OUT", "PLACE/test/images"], "--run .*none: no such folder"),
    (["--run", "PLACE/test", "--json", "OUT", "PLACE/test/images"], r"holds no config\.yaml"),
    (["--json", "OUT"], "no images: give"),
    (["PLACE/test/images"], "nothing to write: give --json"),
    (["--json", "OUT", "PLACE/none"], "none: no such file or folder"),
    (["--json", "OUT", "EMPTY"], "IMAGES: no image below"),
    (["--json", "OUT", "PLACE/tested.json"], r"none of the 1 images can be read, the first: .*tested\.json"),
    (["--json", "OUT", "--images-json", "PLACE/tested.json", "PLACE/test/images"], "has no list 'images'"),
    (["--json", "OUT", "--images-json", "PLACE/test/instances.json", "EMPTY"], "none of its 4 images is in"),
    (["--json", "OUT", "--images-json", "PLACE/none.json", "EMPTY"], r"none\.json: no such file"),
    (["--json", "OUT", "--images-json", "PLACE/none.json", "a", "b"], "exactly one folder"),
    (["--results", "OUT", "PLACE/test/images"], "--results needs --images-json"),
    (["--json", "OUT", "--threshold", "1.5", "PLACE/test/images"], "--threshold 1.5: give a score from 0 to 1"),
    (["--json", "OUT", "--threshold", "nan", "PLACE/test/images"], "--threshold nan: give"),
    (["--json", "OUT", "--batch", "0", "PLACE/test/images"], "--batch 0: give 1 or more"),
    (["--json", "OUT", "--device", "tpu", "PLACE/test/images"], "--device: invalid choice: 'tpu'"),
    (["--json", "OUT", "--weights", "PLACE/none.pth", "PLACE/test/images"], r"--weights .*none\.pth: no such file"),
    (["--json", "PLACE/tested.json", "PLACE/test/images"], "exists: name another file, or add --overwrite"),
    (["--json", "PLACE/run", "PLACE/test/images"], "is a folder; name a file"),
    (["--pictures", "PLACE/tested.json", "PLACE/test/images"], "is a file; name a folder"),
]  # fmt: skip


@pytest.mark.parametrize(("words", "said"), MISTAKES)
def test_each_mistake_is_one_line(place: Path, tmp_path: Path, words: list[str], said: str) -> None:
    (tmp_path / "empty").mkdir()
    named = {"PLACE": str(place), "OUT": str(tmp_path / "found.json"), "EMPTY": str(tmp_path / "empty")}
    for name, path in named.items():
        words = [word.replace(name, path) for word in words]
    run = [] if "--run" in words else ["--run", str(place / "run")]
    before = (place / "tested.json").read_bytes()
    with pytest.raises(UserError, match=said) as caught:
        command.run(parse(None, [*run, *words]))
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]
    assert (place / "tested.json").read_bytes() == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_a_gpu_that_is_not_there(place: Path, tmp_path: Path) -> None:
    words = ["--run", str(place / "run"), "--json", str(tmp_path / "a.json"), "--device", "cuda", str(place)]
    with pytest.raises(UserError, match="--device cuda: PyTorch sees no GPU here; use --device cpu"):
        command.run(parse(None, words))
