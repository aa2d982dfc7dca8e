"""The user's COCO json: the report, the repaired copy (loaded by pycocotools and detectron2), and subsets."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from pretrain.common.errors import UserError
from pretrain.data.decode import shown_size
from tests.support.detection_data import TINY, write_coco
from tests.support.detection_data import custom as custom_keys
from tests.support.scripts import run_script
from transfer.data.coco.image_files import size_differences
from transfer.prepare.command import main

Data = tuple[Path, Path]
ORIENTATION = 0x0112


@pytest.fixture
def data(tmp_path: Path) -> Data:
    """(json, image folder): 6 images of 2 objects each, categories 3 "cup" and 6 "key", RLE masks."""
    return write_coco(tmp_path / "mine", images=6)


def spoil(data: Data, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(data[0].read_text())
    change(content)
    data[0].write_text(json.dumps(content))


def run(data: Data, *options: object) -> None:
    main("", ["custom", "--json", str(data[0]), "--images", str(data[1]), *map(str, options)])


def refusal(call: Callable[..., object], *arguments: object) -> str:
    with pytest.raises(UserError) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_summary(data: Data, capsys: pytest.CaptureFixture[str]) -> None:
    run(data, "--check")
    lines = capsys.readouterr().out.splitlines()
    content = json.loads(data[0].read_text())
    assert "  6 images, 0 of them without annotations" in lines
    assert "  12 annotations, 0 of them crowds, in 2 categories" in lines
    assert "  masks: 12 of 12 annotations (0 as polygons, 12 as RLE)" in lines
    assert "  keypoints: none" in lines
    assert "  image sizes: 2, from 96 x 128 to 128 x 96; most frequent 128 x 96 (4 images)" in lines
    for number, name in ((3, "cup"), (6, "key")):
        objects = [a for a in content["annotations"] if a["category_id"] == number]
        seen = len({a["image_id"] for a in objects})
        assert [line.split() for line in lines if f" {name} " in line] == [
            [str(number), name, str(len(objects)), str(seen)]
        ]
    assert any("category ids 3, 6 are not 1 to 2" in line for line in lines)
    assert lines[-1] == f"{data[0]}: no problem was found"


def bad_box(content: dict[str, Any]) -> None:
    mask = [[100, 10, 160, 10, 160, 30, 100, 30]]
    content["annotations"][2].update(
        bbox=[100, 10, 60, 20], segmentation=mask, area=1200
    )  # image 2 is 128 wide


PROBLEMS = [
    (bad_box, "annotation 3 has bbox [100, 10, 60, 20] outside its image of 128 x 96"),
    (
        lambda c: c["annotations"][0].update(image_id=99),
        "annotation 1 has image_id 99, which is not in the file",
    ),
    (lambda c: c["annotations"][0].pop("segmentation"), "annotation 1 has no segmentation"),
    (
        lambda c: c["images"][1].update(width=100),
        "image 2: its file",
    ),  # then its masks have another size, too
    (lambda c: c["images"][1].update(file_name="no.png"), "image 2: its file"),
    (lambda c: c["annotations"][1].update(id=1), "annotation 1 has the id of another annotation"),
]


@pytest.mark.parametrize(("change", "said"), PROBLEMS)
def test_a_problem_is_named_and_mended(
    change: Callable[[dict[str, Any]], object],
    said: str,
    data: Data,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    spoil(data, change)
    before = data[0].read_bytes()
    assert "--repair --output FILE" in refusal(run, data)
    assert said in capsys.readouterr().out
    repaired = tmp_path / "out" / "repaired.json"
    run(data, "--repair", "--output", repaired)
    assert data[0].read_bytes() == before, "the user's file stays as it is"
    capsys.readouterr()
    run((repaired, data[1]), "--check")
    assert "no problem was found" in capsys.readouterr().out
    made_from = json.loads(repaired.read_text())["info"]["made_from"]
    assert made_from["file"] == "instances.json" and sum(made_from["repaired"].values()) >= 1

    coco = COCO(str(repaired))
    assert len(coco.anns) >= 10
    for annotation in coco.anns.values():
        assert coco.annToMask(annotation).any()


def test_a_clipped_box(data: Data, tmp_path: Path) -> None:
    spoil(data, bad_box)
    run(data, "--repair", "--output", tmp_path / "g.json")
    assert json.loads((tmp_path / "g.json").read_text())["annotations"][2]["bbox"] == [100, 10, 28, 20]


def test_only_the_first_ten_of_a_kind_are_printed(data: Data, capsys: pytest.CaptureFixture[str]) -> None:
    spoil(data, lambda c: [a.update(iscrowd=None, area=None) for a in c["annotations"]])  # 24 problems
    assert "and 23 more problem(s)" in refusal(run, data, "--check")
    lines = capsys.readouterr().out.splitlines()
    assert (
        lines[-1] == "  ... and 4 more of these kinds" and sum("annotation " in line for line in lines) == 20
    )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: c.pop("categories"), "no list 'categories'"),
        (lambda c: c.update(images="x"), "no list 'images'"),
        (lambda c: c["categories"][1].update(id=3), "category id 3: used 2 times"),
    ],
)
def test_what_cannot_be_mended(
    change: Callable[[dict[str, Any]], object], said: str, data: Data, tmp_path: Path
) -> None:
    spoil(data, change)
    for options in ((), ("--repair", "--output", tmp_path / "g.json")):
        text = refusal(run, data, *options)
        assert said in text and "by hand" in text
    assert not (tmp_path / "g.json").exists()


def test_files_that_are_no_json_or_no_coco(data: Data) -> None:
    data[0].write_text("[1]")
    assert "its top level is not an object" in refusal(run, data)
    data[0].write_text('{"images": [')
    assert "not a complete JSON file" in refusal(run, data)


def test_headers(data: Data, tmp_path: Path) -> None:
    """A rotated photograph has the size that detectron2 sees; broken files and other sizes are found."""
    from detectron2.data.detection_utils import read_image

    turned = data[1] / "turned.jpg"
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    Image.new("RGB", (40, 30)).save(turned, exif=exif)
    assert shown_size(turned) == read_image(str(turned), "RGB").shape[1::-1] == (30, 40)

    (data[1] / "broken.jpg").write_bytes(turned.read_bytes()[:30])
    images = [
        {"file_name": "turned.jpg", "width": 30, "height": 40},
        {"file_name": "turned.jpg", "width": 40, "height": 30},
        {"file_name": "broken.jpg", "width": 40, "height": 30},
        {"file_name": "absent.jpg", "width": 40, "height": 30},
        {"file_name": "turned.jpg"},
    ]
    found = dict(size_differences(images, data[1]))
    assert set(found) == {1, 2}
    assert "is 30 x 40, but the json says 40 x 30" in found[1] and "not a readable image" in found[2]


def test_sizes_are_read_from_the_files(data: Data, tmp_path: Path) -> None:
    """Missing sizes in a json are filled in, also for a rotated photograph, and boxes are checked again afterwards."""
    exif = Image.Exif()
    exif[ORIENTATION] = 8
    Image.fromarray(np.zeros((96, 128, 3), np.uint8)).save(data[1] / "turned.jpg", exif=exif)

    def change(content: dict[str, Any]) -> None:
        content["images"][0] = {"id": 1, "file_name": "turned.jpg"}
        content["annotations"][0].update(
            bbox=[60, 100, 80, 20], area=800, segmentation=[[60, 100, 140, 100, 60, 120]]
        )
        content["annotations"][1].update(bbox=[1, 1, 5, 5], area=13, segmentation=[[1, 1, 6, 1, 1, 6]])

    spoil(data, change)
    run(data, "--repair", "--output", tmp_path / "g.json")
    repaired = json.loads((tmp_path / "g.json").read_text())
    assert (repaired["images"][0]["width"], repaired["images"][0]["height"]) == (96, 128)
    assert repaired["annotations"][0]["bbox"] == [60, 100, 36, 20]


def test_what_is_to_be_learnt(data: Data, capsys: pytest.CaptureFixture[str]) -> None:
    spoil(data, lambda c: c["annotations"][0].pop("segmentation"))  # one mask is missing
    assert "annotation 1 has no segmentation" in refusal(run, data)
    run(data, "--learn", "boxes")
    spoil(
        data, lambda c: [a.pop("segmentation") for a in c["annotations"][1:5]]
    )  # a mixture of boxes and masks
    run(data)
    assert "5 of 12 annotations have no segmentation" in refusal(run, data, "--learn", "masks")
    spoil(data, lambda c: [a.pop("segmentation") for a in c["annotations"][5:]])
    capsys.readouterr()
    run(data)  # with boxes only, the file has no problem
    assert "masks: none" in capsys.readouterr().out
    assert "no segmentation" in refusal(run, data, "--learn", "masks")
    spoil(data, lambda c: [x.update(keypoints=["left", "right"]) for x in c["categories"]])
    assert "has no keypoints" in refusal(run, data, "--learn", "keypoints")


def test_flags_that_do_not_fit(data: Data, tmp_path: Path) -> None:
    output = tmp_path / "g.json"
    assert "--output" in refusal(run, data, "--repair")
    assert "--output" in refusal(run, data, "--shots", 1)
    assert "there is nothing to change" in refusal(run, data, "--output", output)
    assert "--check writes nothing" in refusal(run, data, "--check", "--fraction", 0.5, "--output", output)
    assert "never overwritten" in refusal(run, data, "--repair", "--output", data[0])
    assert "no such file" in refusal(run, (tmp_path / "no.json", data[1]))
    assert "no such folder" in refusal(run, (data[0], tmp_path / "no"))
    assert not output.exists()


def test_a_part_with_problems_is_refused(data: Data, tmp_path: Path) -> None:
    spoil(data, bad_box)
    assert "outside its image" in refusal(run, data, "--fraction", 0.5, "--output", tmp_path / "g.json")
    run(data, "--fraction", 0.5, "--repair", "--output", tmp_path / "g.json")
    made_from = json.loads((tmp_path / "g.json").read_text())["info"]["made_from"]
    assert made_from["repaired"] == {"annotations: clipped": 1} and made_from["fraction"] == 0.5


def part(data: Data, output: Path, *options: object) -> dict[str, Any]:
    run(data, *options, "--output", output)
    content: dict[str, Any] = json.loads(output.read_text())
    return content


def test_part(data: Data, tmp_path: Path) -> None:
    full = json.loads(data[0].read_text())
    half = part(data, tmp_path / "a.json", "--fraction", 0.5, "--seed", 3)
    assert len(half["images"]) == 3 and half["categories"] == full["categories"]
    kept = {image["id"] for image in half["images"]}
    assert half["annotations"] == [a for a in full["annotations"] if a["image_id"] in kept]
    made_from = half["info"]["made_from"]
    assert {key: made_from[key] for key in ("fraction", "shots", "seed")} == {
        "fraction": 0.5, "shots": 0, "seed": 3
    }  # fmt: skip
    part(data, tmp_path / "b.json", "--fraction", 0.5, "--seed", 3)
    assert (tmp_path / "b.json").read_bytes() == (tmp_path / "a.json").read_bytes()
    third = part(data, tmp_path / "c.json", "--fraction", 0.33, "--seed", 3)
    assert {image["id"] for image in third["images"]} < kept

    shots = part(data, tmp_path / "d.json", "--shots", 2)
    for number in (3, 6):
        assert sum(a["category_id"] == number for a in shots["annotations"]) >= 2

    spoil(data, lambda c: [a.update(category_id=6 if a["image_id"] == 6 else 3) for a in c["annotations"]])
    said = refusal(run, data, "--fraction", 0.1, "--shots", 1, "--output", tmp_path / "e.json")
    assert "--shots 1: no image of the chosen fraction" in said and "raise --fraction" in said


def test_the_part_is_that_of_a_training(data: Data, tmp_path: Path) -> None:
    """`DATASETS.FRACTION` and `SHOTS` choose the same images in a training run on the whole file."""
    from transfer.config.load import load_config
    from transfer.data import datasets

    def change(content: dict[str, Any]) -> None:
        content["images"].reverse()  # the order of the ids counts, not that of the file
        crowd = content["annotations"][0]  # image 1 has only a crowd left
        crowd["iscrowd"] = 1
        del content["annotations"][1]

    spoil(data, change)
    for seed in range(4):
        for settings in ({"fraction": 0.4, "shots": 0}, {"fraction": 1.0, "shots": 1}):
            options = [value for key, v in settings.items() for value in (f"--{key}", v)]
            chosen = part(data, tmp_path / "part.json", *options, "--seed", seed)
            overrides = [
                *custom_keys(data, data), "DATASETS.FRACTION", str(settings["fraction"]), "DATASETS.SHOTS",
                str(settings["shots"]), "DATASETS.SUBSET_SEED", str(seed), "MODEL.INIT", "random", *TINY,
            ]  # fmt: skip
            cfg = load_config(Path("configs/transfer/custom_R50_FPN.yaml"), overrides)
            datasets.prepare(cfg)
            records = datasets.training_records(cfg)
            assert [r["image_id"] for r in records] == [image["id"] for image in chosen["images"]]


def test_as_a_command(data: Data, tmp_path: Path) -> None:
    spoil(data, bad_box)
    options = ("--json", str(data[0]), "--images", str(data[1]))
    done = run_script("tools/prepare_data.py", "custom", *options)
    assert done.returncode == 2
    assert (
        done.stderr.count("\n") == 1 and done.stderr.startswith("error: ") and "annotation 3" in done.stderr
    )
    output = tmp_path / "g.json"
    done = run_script("tools/prepare_data.py", "custom", *options, "--repair", "--output", str(output))
    assert done.returncode == 0, done.stderr
    assert "1 annotations: clipped" in done.stdout and output.is_file()


def test_names_of_categories_and_images_do_not_steer_the_terminal(
    data: Data, capsys: pytest.CaptureFixture[str]
) -> None:
    def rename(content: dict[str, Any]) -> None:
        content["categories"][0]["name"] = "cup\x1b[2J"
        image = content["images"][0]
        (data[1] / image["file_name"]).rename(data[1] / "a\x1b[2J.png")
        image["file_name"] = "a\x1b[2J.png"

    spoil(data, rename)
    spoil(data, lambda content: content["images"][1].update(file_name="gone\x1b[2J.png"))
    with pytest.raises(UserError) as error:
        run(data, "--check")
    assert str(error.value).isprintable()
    printed = capsys.readouterr().out
    assert r"cup\x1b[2J" in printed and r"gone\x1b[2J.png" in printed
    assert all(line.isprintable() for line in printed.split("\n"))
