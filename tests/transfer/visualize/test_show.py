"""Pictures and contact sheets: they show the data, and mistakes are described and sorted correctly."""

import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, BoxMode, Instances
from PIL import Image

from pretrain import config as pretrain_config
from pretrain.common.errors import UserError
from pretrain.data import sources, views_sheet
from tests.support import detection_data
from tests.support.scripts import run_script
from transfer.config.load import load_config
from transfer.data import datasets, train_stream
from transfer.models import init_weights
from transfer.visualize import contact_sheet, drawing, instances, mistakes, show
from transfer.visualize.instances import Objects

NAMES = ["cat", "dog"]


def _found(boxes: list, classes: list[int], scores: list[float]) -> Objects:
    return Objects(np.array(boxes), np.array(classes), np.array(scores))


def test_matching_of_a_case_computed_by_hand() -> None:
    """Two cats (10 x 10), a dog (20 x 20) and a crowd of dogs."""
    truth = Objects(
        np.array([[0, 0, 10, 10], [100, 0, 110, 10], [40, 40, 60, 60], [200, 0, 300, 100]]),
        np.array([0, 0, 1, 1]),
        crowd=np.array([False, False, False, True]),
    )
    found = _found(
        [
            [0, 0, 10, 8],  # IoU 80 / 100 with the first cat, but a lower score than the next detection
            [0, 0, 10, 5],  # IoU 50 / 100: just enough, and its turn comes first
            [100, 0, 110, 10],  # the box of the second cat, classified as a dog
            [40, 40, 60, 49],  # IoU 180 / 400 = .45 with the dog
            [400, 400, 420, 420],  # far from all objects
            [210, 10, 230, 30],  # inside the crowd
            [290, 90, 310, 110],  # a quarter of it inside the crowd
        ],
        [0, 0, 1, 1, 1, 1, 1],
        [0.6, 0.7, 0.9, 0.8, 0.3, 0.95, 0.2],
    )
    matched = mistakes.match(truth, found)
    assert matched.object_of.tolist() == [-1, 0, -1, -1, -1, -1, -1]
    assert matched.excused.tolist() == [False] * 5 + [True, False]
    assert matched.overlaps[0, 0] == pytest.approx(0.8)
    assert matched.overlaps[3, 2] == pytest.approx(0.45)
    assert matched.overlaps[6, 3] == pytest.approx(0.25)

    wrong = mistakes.false_positives(7, truth, found, matched, NAMES)
    captions = {round(m.weight, 2): m.caption for m in wrong}
    assert captions == {
        0.9: "dog, score 0.90: it is annotated as cat (IoU 1.00)",
        0.8: "dog, score 0.80: its box overlaps a dog with an IoU of only 0.45",
        0.6: "cat, score 0.60: a second box on the same cat (IoU 0.80)",
        0.3: "dog, score 0.30: nothing is annotated there",
        0.2: "dog, score 0.20: nothing is annotated there",
    }
    missed = mistakes.misses(7, truth, found, matched, NAMES, score=0.75)
    assert [(m.weight, m.caption) for m in missed] == [
        (pytest.approx(100 * 0.3), "cat, 10 x 10 pixels: its best detection has score 0.70"),
        (100.0, "cat, 10 x 10 pixels: the nearest detection is a dog, score 0.90, IoU 1.00"),
        (400.0, "dog, 20 x 20 pixels: the nearest detection is a dog, score 0.80, IoU 0.45"),
    ]
    assert [m.weight for m in mistakes.misses(7, truth, found, matched, NAMES, score=0.5)] == [100.0, 400.0]


def test_no_image_has_its_second_mistake_before_the_first_of_another() -> None:
    weights = [(0, 0.9), (0, 0.8), (0, 0.7), (1, 0.2), (2, 0.85), (2, 0.1)]
    found = [mistakes.Mistake(image, None, weight, "") for image, weight in weights]
    order = [(mistake.image, mistake.weight) for mistake in mistakes.worst_first(found)]
    assert order == [(0, 0.9), (2, 0.85), (1, 0.2), (0, 0.8), (2, 0.1), (0, 0.7)]


@pytest.mark.parametrize("annotated", [False, True])
@pytest.mark.parametrize("box", [(20, 20, 60, 60), (100, 60, 158, 118), (2, 2, 158, 118)])
def test_the_box_of_a_mistake_is_labelled_in_its_half(box: tuple[int, ...], annotated: bool) -> None:
    picture = np.full((240, 2 * 320 + drawing.COLUMN_GAP, 3), 128, np.uint8)
    framed, labelled = (
        drawing.highlight(picture, np.array(box), 160, text, annotated=annotated).astype(int)
        for text in ("", "wrong: dog 90%")
    )
    changed = np.abs(framed - labelled).max(axis=(0, 2)) > 60
    assert changed[:320].any() == annotated and changed[-320:].any() == (not annotated)
    assert not changed[320:-320].any() and changed.sum() > 40


def test_nothing_annotated_and_nothing_found() -> None:
    none, empty = _found([], [], []), Objects(np.zeros((0, 4)), np.zeros(0))
    matched = mistakes.match(empty, _found([[0, 0, 5, 5]], [0], [0.9]))
    assert matched.object_of.tolist() == [-1]
    truth = Objects(np.array([[0, 0, 5, 5]]), np.array([1]))
    (miss,) = mistakes.misses(0, truth, none, mistakes.match(truth, none), NAMES, score=0.5)
    assert miss.caption == "dog, 5 x 5 pixels: nothing is detected there"


def test_mean_iou_of_labels_computed_by_hand() -> None:
    truth = np.array([[0, 0, 1, 255]])
    found = np.array([[0, 1, 1, 1]])  # cat 1 of 2, dog 1 of 2; the last pixel is ignored
    mistake = mistakes.labelling(3, truth, found, NAMES)
    assert mistake.weight == pytest.approx(0.5)
    assert mistake.caption == "mean IoU 0.50; lowest: cat 0.50, dog 0.50"


@pytest.mark.parametrize("channels", ["RGB", "BGR"])
def test_augmented_boxes_lie_on_their_objects(tmp_path: Path, channels: str) -> None:
    """The objects have the colour (220, 60, 60) or (60, 60, 220) on a dark background; flips and sizes are random."""
    data = detection_data.write_coco(tmp_path / "a", images=6)
    overrides = [
        "MODEL.INIT", "random", *detection_data.TINY, *detection_data.custom(data, data), "INPUT.FORMAT", channels,
    ]  # fmt: skip
    cfg = load_config("transfer/coco_R50_FPN.yaml", overrides)
    datasets.prepare(cfg)
    for item in [
        image
        for _, batch in zip(range(6), train_stream.training_batches(cfg, 0), strict=False)
        for image in batch
    ]:
        picture, caption = show._augmented(item, "custom_train", channels)
        assert re.match(r"\d+\.png, \d+ x \d+ pixels: (1|2) (cup|key)", caption)
        plain = item["image"].numpy().transpose(1, 2, 0)
        plain = plain if channels == "RGB" else plain[:, :, ::-1]
        shown = instances.of_training(item["instances"])
        x0, y0, x1, y1 = shown.boxes[-1].round().astype(int)  # the last one lies on top
        middle = plain[(y0 + y1) // 2, (x0 + x1) // 2]
        assert np.abs(middle - np.array([(60, 60, 220), (220, 60, 60)][shown.classes[-1]])).max() < 12
        assert picture.shape[1] >= drawing.NARROWEST
        assert shown.masks is not None and len(shown.masks) == len(shown)


@pytest.fixture
def place(tmp_path: Path):
    """Yield an image; register data sets with two classes, for objects and for per-pixel labels."""
    path = tmp_path / "a.png"
    Image.fromarray(np.full((60, 80, 3), 128, np.uint8)).save(path)
    names = ["h8_things", "h8_labels"]
    MetadataCatalog.get(names[0]).set(thing_classes=NAMES)
    MetadataCatalog.get(names[1]).set(stuff_classes=NAMES)
    yield path
    for name in names:
        MetadataCatalog.pop(name)


def _instances(count: int, **fields) -> Instances:
    found = Instances((60, 80))
    found.pred_boxes = Boxes(torch.tensor([[10.0, 10.0, 40.0, 50.0]]).repeat(count, 1))
    found.pred_classes, found.scores = torch.arange(count) % 2, torch.full((count,), 0.9)
    for name, value in fields.items():
        found.set(name, value)
    return found


ANNOTATION = {"bbox": [10, 10, 30, 40], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 1}
POLYGON = {"segmentation": [[10.0, 10.0, 40.0, 10.0, 40.0, 50.0]]}
POINTS = {"keypoints": [20.0, 20.0, 2.0] * 17}


@pytest.mark.parametrize("count", [0, 2])
@pytest.mark.parametrize(
    "annotations",
    [
        None,
        [],
        [ANNOTATION],
        [ANNOTATION | POLYGON, ANNOTATION],
        [ANNOTATION | POINTS, ANNOTATION | {"iscrowd": 1}],
    ],
)
@pytest.mark.parametrize("kind", ["boxes", "masks", "keypoints", "proposals"])
def test_every_kind_of_detector_can_be_drawn(place: Path, kind: str, annotations, count: int) -> None:
    record = {"file_name": str(place), "width": 80, "height": 60}
    if annotations is not None:
        record["annotations"] = annotations
    fields = {}
    if kind == "masks":
        fields["pred_masks"] = torch.ones(count, 60, 80, dtype=torch.bool)
    if kind == "keypoints":
        fields["pred_keypoints"] = torch.rand(count, 17, 3) * 40
    output = {"instances": _instances(count, **fields)}
    if kind == "proposals":
        proposals = Instances((60, 80))
        proposals.proposal_boxes = Boxes(torch.rand(count, 4) * 20 + torch.tensor([0, 0, 30, 30]))
        proposals.objectness_logits = torch.zeros(count)
        output = {"proposals": proposals}
    picture = drawing.beside_truth(record, output, "h8_things", score=0.5)
    assert picture.shape == (240, 2 * 320 + drawing.COLUMN_GAP, 3)
    left, right = picture[:, :320].astype(int), picture[:, -320:].astype(int)
    assert bool(np.abs(left - 128).max() > 20) == bool(annotations)
    assert bool(np.abs(right - 128).max() > 20) == (count > 0)


def test_labels_are_drawn_side_by_side(place: Path) -> None:
    labels = np.zeros((60, 80), np.uint8)
    labels[:, 40:] = 1
    labels[50:] = 255
    Image.fromarray(labels).save(place.with_name("labels.png"))
    record = {"file_name": str(place), "sem_seg_file_name": str(place.with_name("labels.png"))}
    output = {"sem_seg": torch.stack([torch.ones(60, 80), torch.zeros(60, 80)])}
    picture = drawing.beside_truth(record, output, "h8_labels", score=0.5).astype(int)
    left, right = picture[:, :320], picture[:, -320:]
    assert np.abs(left[10, 10] - right[10, 10]).max() == 0  # cat in both
    assert np.abs(left[10, 310] - right[10, 310]).max() > 50  # dog annotated, cat predicted
    assert left[235, 10].tolist() == [38, 38, 38]  # ignored: dark
    assert drawing.draw_labels(np.full((60, 80, 3), 128, np.uint8), None, "h8_labels").shape == (240, 320, 3)


def test_page_is_complete_in_itself(tmp_path: Path) -> None:
    picture = np.zeros((8, 8, 3), np.uint8)
    section = contact_sheet.Section("Missed <objects>", "&", "miss", [(picture, 'a "caption"')] * 2)
    empty = contact_sheet.Section("Wrong", "", "wrong")
    *images, page = contact_sheet.write(tmp_path, "Title", "about", [section, empty])
    assert [path.name for path in images] == ["miss_00.jpg", "miss_01.jpg"]
    text = page.read_text()
    assert "Missed &lt;objects&gt;" in text and "a &quot;caption&quot;" in text and "None." in text
    assert text.count('src="data:image/jpeg;base64,') == 2
    assert not re.findall(r'(?:src|href)="(?!data:)', text)
    assert "color-scheme: light dark" in text and 'name="viewport"' in text


def test_predictions_put_the_worst_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = detection_data.write_coco(tmp_path / "a", images=3)
    cfg = load_config(
        "transfer/coco_R50_FPN.yaml",
        ["MODEL.WEIGHTS", str(data[0]), *detection_data.TINY, *detection_data.custom(data, data)],
    )

    class Model(torch.nn.Module):
        """It finds everything in the first image, nothing in the second, and two wrong boxes in the third."""

        def forward(self, batch):
            record = next(
                r for r in DatasetCatalog.get("custom_test") if r["image_id"] == batch[0]["image_id"]
            )
            found = Instances((record["height"], record["width"]))
            boxes = [[0, 0, 3, 3], [0, 0, 2, 2]] if record["image_id"] == 3 else []
            kinds, scores = [0, 1][: len(boxes)], [0.8, 0.9][: len(boxes)]
            if record["image_id"] == 1:
                boxes = [
                    BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS)
                    for a in record["annotations"]
                ]
                kinds, scores = [a["category_id"] for a in record["annotations"]], [0.99] * len(boxes)
            found.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
            found.pred_classes, found.scores = torch.tensor(kinds, dtype=torch.long), torch.tensor(scores)
            return [{"instances": found}]

    monkeypatch.setattr(show, "build_model", lambda cfg: Model())
    monkeypatch.setattr(init_weights, "load_detector", lambda model, path: None)
    *images, page = show.show_predictions(cfg, tmp_path / "out", count=3, images=100)
    assert sum(path.name.startswith("false_positive") for path in images) == 2
    assert sum(path.name.startswith("miss") for path in images) == 3
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", page.read_text())
    assert captions[:2] == [
        "key, score 0.90: nothing is annotated there (003.png)",
        "cup, score 0.80: nothing is annotated there (003.png)",
    ]
    sizes = [tuple(map(int, re.search(r"(\d+) x (\d+) pixels", c).groups())) for c in captions[2:5]]
    areas = [w * h for w, h in sizes]
    everything = [
        a["bbox"][2] * a["bbox"][3] for r in DatasetCatalog.get("custom_test")[1:] for a in r["annotations"]
    ]
    assert areas == sorted(everything, reverse=True)[:3]
    with pytest.raises(UserError, match="no annotations"):
        monkeypatch.setattr(drawing, "spread", lambda records, count: [{"file_name": "x"}])
        show.show_predictions(cfg, tmp_path / "out", count=3, images=100)


@pytest.mark.parametrize("raw", [[], ["--raw"]])
def test_data_from_the_command_line(tmp_path: Path, raw: list[str]) -> None:
    data = detection_data.write_coco(tmp_path / "a", images=3)
    output = tmp_path / "out"
    done = run_script(
        "tools/visualize.py", "data", "--config", "transfer/coco_R50_FPN.yaml", *raw,
        *detection_data.custom(data, data), *detection_data.TINY, "--output", str(output), "--count", "2",
        "SEED", "3",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"wrote {output / 'index.html'} and 2 pictures"
    assert cv2.imread(str(output / "image_01.jpg")) is not None


def test_mistakes_on_the_command_line_are_one_line(tmp_path: Path) -> None:
    done = run_script("tools/visualize.py", "predictions", "--run", str(tmp_path), "--output", str(tmp_path))
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "no config.yaml" in done.stderr


def test_an_unfinished_run_says_what_can_be_done(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("SEED: 1\n")
    command = ["tools/visualize.py", "predictions", "--run", str(tmp_path), "--output", str(tmp_path / "out")]
    assert "no checkpoint yet either; start it again" in run_script(*command).stderr
    (tmp_path / "model_last.pth").write_bytes(b"")
    done = run_script(*command)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert (
        f"continue it with --resume, or use a checkpoint, MODEL.WEIGHTS {tmp_path}/model_last.pth"
        in done.stderr
    )


def test_views_in_a_format_that_is_not_written(tmp_path: Path) -> None:
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    cfg = pretrain_config.load("pretrain/moco_v2_R50.yaml", ["DATA.TRAIN", str(tmp_path), "INPUT.SIZE", "32"])
    files = sources.find(cfg.DATA.TRAIN)
    for name in ("v.webp", "v", "v.jpg.gz"):
        with pytest.raises(UserError, match=rf"{name}: .*\.jpg or \.png$"):
            views_sheet.write(tmp_path / name, files, cfg)
        assert not (tmp_path / name).exists()
    for name, kind in (("V.JPG", "JPEG"), ("v.jpeg", "JPEG"), ("v.png", "PNG")):
        views_sheet.write(tmp_path / "out" / name, files, cfg)
        assert Image.open(tmp_path / "out" / name).format == kind
