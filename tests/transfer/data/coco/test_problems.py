"""Annotation files with mistakes: each one is reported with its id, and repaired where that is possible."""

import copy
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from pretrain.common.errors import UserError
from tests.support import detection_data
from transfer.data.coco import masks
from transfer.data.coco import problems as coco_problems
from transfer.data.coco.image_files import ImageFolder, meant_files, size_differences
from transfer.data.coco.remarks import remarks

Content = dict[str, Any]


@pytest.fixture
def good(tmp_path: Path) -> tuple[Content, Path]:
    """4 images (1, 2 and 4: 128 x 96; 3: 96 x 128) with 2 objects each, and their folder."""
    json_file, images = detection_data.write_coco(tmp_path / "data", keypoints=2)
    return json.loads(json_file.read_text()), images


def _problems(content: Any, images: Path | None = None, **wanted: bool) -> list[coco_problems.Problem]:
    return coco_problems.problems(content, images, **({"masks": True, "keypoints": False} | wanted))


def _set(part: str, index: int, **values: Any) -> Callable[[Content], None]:
    return lambda content: content[part][index].update(values)


def _unset(part: str, index: int, key: str) -> Callable[[Content], None]:
    return lambda content: content[part][index].pop(key)


SQUARE = [15, 43, 53, 43, 53, 74, 15, 74]  # the edges of annotation 2
FROM_MASK = {"bbox": [15, 43, 38, 31]}


def _box(*box: float, **values: Any) -> Callable[[Content], None]:
    """Set the box and the mask of annotation 2 to the same rectangle."""
    x, y, w, h = box
    polygon = [x, y, x + w, y, x + w, y + h, x, y + h]
    return _set("annotations", 1, bbox=list(box), segmentation=[polygon], area=w * h, **values)


# (change, the text that reports it, what annotation 2 (index 1) contains after the repair; None: it is left out)
CASES: list[tuple[Callable[[Content], None], str, dict[str, Any] | None]] = [
    (_set("annotations", 1, image_id=99), "annotation 2 has image_id 99, which is not in the file", None),
    (_set("annotations", 1, image_id=[1]), r"annotation 2 has image_id \[1\], which is not", None),
    (_unset("annotations", 1, "image_id"), "annotation 2 has no image_id", None),
    (_set("annotations", 1, category_id=4), "annotation 2 has category_id 4, which is not in the file", None),
    (_set("annotations", 1, id=1), "annotation 1 has the id of another annotation", {"id": 10}),
    (_unset("annotations", 1, "id"), "annotation at position 1 has no id", {"id": 10}),
    (_set("annotations", 1, ignore=1), "annotation 2 has 'ignore'", None),
    (_unset("annotations", 1, "iscrowd"), "annotation 2 has no iscrowd", {"iscrowd": 0}),
    (_unset("annotations", 1, "area"), "annotation 2 has no area", {}),
    (_unset("annotations", 1, "bbox"), "annotation 2 has no bbox", FROM_MASK),
    (_set("annotations", 1, bbox=[1, 2, 3]), r"annotation 2 has bbox \[1, 2, 3\], which is not 4", FROM_MASK),
    (_set("annotations", 1, bbox=[1, 2, float("nan"), 4]), "annotation 2 has bbox .*nan", FROM_MASK),
    (_set("annotations", 1, bbox=[1, 2, 0, 4]), "annotation 2 has bbox .* without a positive size", FROM_MASK),
    (_set("annotations", 1, bbox=[1, 2, 5, -4]), "annotation 2 has bbox .* without a positive size", FROM_MASK),
    (
        _box(100, -9, 50, 20), "annotation 2 has bbox .* outside its image of 128 x 96",
        {"bbox": [100, 0, 28, 11]},
    ),

    (_unset("annotations", 1, "segmentation"), r"annotation 2 has no segmentation: set MODEL\.MASK_ON False", None),
    (_set("annotations", 1, segmentation=[[1, 2, 3]]), "annotation 2 has no polygon of at least 3 points", None),
    (
        _set("annotations", 1, segmentation=[[15, 43, 53, 74]]), "annotation 2 has polygons of two points",
        {"segmentation": [SQUARE]},
    ),
    (_set("annotations", 1, segmentation=[SQUARE[:7]]), "annotation 2 has no polygon", None),
    (_set("annotations", 1, segmentation=[[1, 2, 3, 4], SQUARE]), "annotation 2 has 1 of 2 polygons",
     {"segmentation": [SQUARE]}),
    (_set("annotations", 1, segmentation={"size": [128, 96], "counts": "abc"}),
     "annotation 2 has an RLE mask of size 128 x 96, but its image is 96 x 128", None),
    (_set("annotations", 1, segmentation={"size": [96, 128], "counts": [5, 7]}),
     "counts do not add up to 96 x 128", None),
    (_set("annotations", 1, segmentation={"size": [96, 128]}), "annotation 2 has an RLE mask without counts", None),
    (_set("annotations", 1, segmentation="abc"), "annotation 2 has a segmentation of type str", None),
]  # fmt: skip


@pytest.mark.parametrize(("change", "text", "left"), CASES, ids=[case[1][:60] for case in CASES])
def test_each_mistake_is_named_and_mended(
    good: tuple[Content, Path], change: Callable[[Content], None], text: str, left: dict[str, Any] | None
) -> None:
    content, images = good
    change(content)
    before = copy.deepcopy(content)
    found = _problems(content, images)
    assert len(found) == 1
    with pytest.raises(AssertionError, match=text):
        raise AssertionError(found[0].text)
    repaired = coco_problems.repaired(content, found)
    assert _problems(repaired, images) == []
    assert json.dumps(content) == json.dumps(before)  # the input is unchanged
    others = [a for i, a in enumerate(content["annotations"]) if i != 1]
    if left is None:
        assert repaired["annotations"] == others
    else:
        assert repaired["annotations"][0] == content["annotations"][0]
        assert repaired["annotations"][2:] == others[1:]
        assert {**repaired["annotations"][1], **left} == repaired["annotations"][1]


def test_a_good_file_has_no_problem(good: tuple[Content, Path]) -> None:
    content, images = good
    assert _problems(content, images, keypoints=True) == []
    _box(0, -0.5, 128.7, 96.9)(content)  # rounded outwards by an exporter
    assert _problems(content, images) == []
    assert remarks(content) == [
        "category ids 3, 6 are not 1 to 2: classes are numbered in the order of their ids"
    ]
    content["categories"] = [{"id": i, "name": f"c{i}"} for i in (0, 3, 6)]
    assert remarks(content)[0].startswith("category ids 0, 3, 6 are not 1 to 3")
    assert remarks(content)[1] == "1 of 3 categories have no annotation: c0"


@pytest.mark.parametrize("part", ["images", "annotations", "categories"])
def test_files_without_their_lists(good: tuple[Content, Path], part: str) -> None:
    content, _ = good
    (empty,) = _problems({**content, part: []})
    assert empty.text == f"its list '{part}' is empty"
    (other,) = _problems({**content, part: {"a": 1}})
    assert other.text == f"not a COCO json: it has no list '{part}'"
    del content[part]
    (missing,) = _problems(content)
    assert missing.text == f"not a COCO json: it has no list '{part}'"
    with pytest.raises(UserError, match=f"no list '{part}'.*this must be fixed by hand"):
        coco_problems.repaired(content, [missing])
    assert "its top level is not an object" in _problems([1])[0].text


IMAGE_CASES: list[tuple[Callable[[Content], None], str, int]] = [
    (_set("images", 1, file_name="gone.png"), r"image 2: its file .*gone\.png is missing", 3),
    (_unset("images", 1, "file_name"), "image 2 has no file_name", 3),
    (_set("images", 1, width="128"), "image 2: its width and height are '128' and 96", 4),
    (_unset("images", 1, "height"), "image 2: its width and height are 128 and None", 4),
    (_unset("images", 1, "id"), "image at position 1 has no id", 3),
    (lambda c: c["images"].append(c["images"][1]), "image 2: the id is used twice", 4),
]


@pytest.mark.parametrize(("change", "text", "left"), IMAGE_CASES)
def test_images(good: tuple[Content, Path], change: Callable[[Content], None], text: str, left: int) -> None:
    content, images = good
    change(content)
    found = [problem for problem in _problems(content, images) if problem.part == "images"]
    assert len(found) == 1
    with pytest.raises(AssertionError, match=text):
        raise AssertionError(found[0].text)
    repaired = coco_problems.repaired(content, _problems(content, images))
    assert _problems(repaired, images) == []
    assert len(repaired["images"]) == left
    assert len(repaired["annotations"]) == 2 * left
    assert all(image["width"] in (96, 128) for image in repaired["images"])


def test_categories(good: tuple[Content, Path]) -> None:
    content, _ = good
    content["categories"].append({"id": 3, "name": "again"})
    assert [p.text for p in _problems(content)] == ["category id 3: used 2 times"]
    content["categories"][2] = {"id": "x", "name": "text"}
    assert [p.text for p in _problems(content)] == [
        "1 of 3 category ids are strings, such as 'x', but others are integers, such as 3"
    ]
    content["categories"][2] = {"id": 9, "name": 5}
    assert [p.text for p in _problems(content)] == [
        "category at position 2 needs an 'id' and a 'name' that is a string"
    ]


def test_masks_matter_only_where_they_are_wanted(good: tuple[Content, Path]) -> None:
    content, images = good
    del content["annotations"][1]["segmentation"]
    assert _problems(content, images, masks=False) == []
    # detectron2 would leave out an object whose mask it cannot read, even if only boxes are trained
    content["annotations"][1]["segmentation"] = [[1, 2, 3]]
    found = _problems(content, images, masks=False)
    assert found[0].remedy == "mask left out"
    assert "segmentation" not in coco_problems.repaired(content, found)["annotations"][1]


def test_crowds_become_rle(good: tuple[Content, Path]) -> None:
    content, images = good
    square = [10, 10, 30, 10, 30, 30, 10, 30]
    content["annotations"][0].update(iscrowd=1, segmentation=[square], bbox=[10, 10, 20, 20], area=400)
    content["annotations"][1].update(iscrowd=1, segmentation=[], bbox=[4, 5, 6, 7], area=42)
    found = _problems(content, images)
    assert [problem.text for problem in found] == [
        "annotation 1 is a crowd whose mask is not an RLE", "annotation 2 is a crowd without a mask",
    ]  # fmt: skip
    first, second = coco_problems.repaired(content, found)["annotations"][:2]
    expected = np.zeros((96, 128), np.uint8)
    expected[10:30, 10:30] = 1
    assert np.array_equal(coco_mask.decode(first["segmentation"]), expected)
    assert coco_mask.toBbox(second["segmentation"]).tolist() == [4, 5, 6, 7]


def test_keypoints(good: tuple[Content, Path]) -> None:
    content, images = good
    content["annotations"][0]["keypoints"] = [1, 2, 2]
    content["annotations"][1].pop("keypoints")
    content["annotations"][2].pop("num_keypoints")
    found = _problems(content, images, keypoints=True)
    assert [problem.text for problem in found] == [
        "annotation 1 has 3 keypoint values, not 6 finite numbers (x, y and visibility of each)",
        "annotation 2 has no keypoints",
        "annotation 3 has no num_keypoints",
    ]
    repaired = coco_problems.repaired(content, found)["annotations"]
    assert repaired[0]["keypoints"] == repaired[1]["keypoints"] == [0] * 6
    assert [repaired[i]["num_keypoints"] for i in range(3)] == [0, 0, 2]
    for category in content["categories"]:
        category.pop("keypoints")
    for annotation in content["annotations"]:
        annotation.pop("keypoints", None)
    assert "MODEL.KEYPOINT_ON False" in _problems(content, keypoints=True)[0].advice


def test_extents_and_areas_of_masks_are_those_of_pycocotools() -> None:
    rng = np.random.default_rng(0)
    size = (37, 23)  # width, height
    for trial in range(200):
        pixels = rng.random((23, 37)) < rng.choice([0.02, 0.3, 0.9])
        pixels[rng.integers(23), rng.integers(37)] = True
        rle = coco_mask.encode(np.asfortranarray(pixels, dtype=np.uint8))
        x, y, w, h = coco_mask.toBbox(rle).tolist()
        counts = rle["counts"].decode()
        if trial % 2:  # as a list of runs
            steps = np.flatnonzero(np.diff(pixels.ravel(order="F"), prepend=False))
            counts = np.diff([0, *steps, pixels.size]).tolist()
        entry = {"segmentation": {"size": [23, 37], "counts": counts}}
        assert masks.extent(entry, size) == ((x, y, x + w, y + h), coco_mask.area(rle)), trial
        assert list(masks.masks(entry, size, wanted=True)) == []


def test_names_of_files_that_were_probably_meant(tmp_path: Path) -> None:
    for name in ("a.jpg", "caf\u00e9.png", "B.JPG", "sub/c.png", "sub/d.png", "other/d.png", "photo one.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    folder = ImageFolder(tmp_path)
    for name, meant in {
        "images\\a.jpg": "a.jpg",
        "images/a.jpg": "a.jpg",
        "/data/upload/1/a.jpg": "a.jpg",
        "C:\\Users\\me\\sub\\c.png": "sub/c.png",
        "../../media/upload/4/a.jpg": "a.jpg",
        "cafe\u0301.png": "caf\u00e9.png",  # the accent as a character of its own, as macOS writes it
        "b.jpg": "B.JPG",
        "a.jpeg": "a.jpg",
        "c.png": "sub/c.png",
        "d.png": None,  # in two folders
        "other\\d.png": "other/d.png",
        "/data/local-files/?d=sub/c.png": "sub/c.png",
        "photo%20one.jpg": "photo one.jpg",
        "1a2b3c4d-a.jpg": "a.jpg",
        "absent.jpg": None,
        "": None,
    }.items():
        assert folder.meant(name) == meant, name
    images = [{"file_name": name} for name in ("a.jpg", "x/a.jpg", "b.jpg", "y/b.jpg", "c.png")]
    # a.jpg is taken, and B.JPG is claimed twice
    assert meant_files(images, folder) == {1: None, 2: None, 3: None, 4: "sub/c.png"}


def test_a_repair_does_not_leave_out_a_third_of_the_file(good: tuple[Content, Path]) -> None:
    content, images = good
    for annotation in content["annotations"][:3]:
        annotation["category_id"] = 77
    with pytest.raises(UserError, match="leave out 3 of 8 annotations, too many"):
        coco_problems.repaired(content, _problems(content, images))


def test_remarks(good: tuple[Content, Path]) -> None:
    content, _ = good
    content["annotations"][0]["attributes"] = {"occluded": False, "rotation": 30.5}
    content["annotations"][1]["attributes"] = {"rotation": 0.0}
    content["annotations"].append({**content["annotations"][2], "id": 99})
    content["annotations"][3]["iscrowd"] = 1
    content["categories"][1]["name"] = "Cup "
    found = "\n".join(remarks(content))
    assert "1 annotations have attributes.rotation" in found
    assert "1 annotations have the image, category and box of another one" in found
    assert "1 of 9 annotations are crowds" in found and "'cup', 'Cup '" in found


def _lists(content: Content) -> None:
    content["images"][0]["id"] = [1]
    content["categories"][0]["id"] = {}


# Values of a wrong kind, and what is reported first
ODD: list[tuple[Callable[[Content], Any], str]] = [
    (_lists, "has no id, or one that is not an integer or a string"),
    (_set("images", 0, file_name=""), "image 1 has no file_name"),
    (_set("images", 0, file_name="."), "image 1: its file .* is missing"),
    (_set("images", 0, file_name="folder"), "image 1: its file .* is missing"),
    (_set("annotations", 0, area=float("inf")), "annotation 1 has area inf, which is not a finite number"),
    (lambda c: c["annotations"].append(None), "its list 'annotations' holds entries that are not objects"),
    (
        lambda c: c["categories"][0].update(keypoints=["a", "b", "c"]),
        "its categories have different keypoints",
    ),
    (
        lambda c: [a.update(num_keypoints="two") for a in c["annotations"]],
        "annotation 1 has num_keypoints 'two', not an integer",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("change", "text"), ODD, ids=[text[:40] for _, text in ODD])
def test_values_of_a_wrong_kind(
    good: tuple[Content, Path], change: Callable[[Content], Any], text: str
) -> None:
    content, images = good
    (images / "folder").mkdir()
    change(content)
    assert re.search(text, _problems(content, images, keypoints=True)[0].text)


def test_boxes_that_are_all_zero_are_missing_and_not_normalised(good: tuple[Content, Path]) -> None:
    content, images = good
    before = [annotation["bbox"] for annotation in content["annotations"]]
    for annotation in content["annotations"]:
        annotation["bbox"] = [0, 0, 0, 0]
    found = _problems(content, images)
    assert {problem.remedy for problem in found} == {"box set to that of its mask"}
    assert [a["bbox"] for a in coco_problems.repaired(content, found)["annotations"]] == before


def test_positions_instead_of_category_ids(good: tuple[Content, Path]) -> None:
    content, images = good
    content["categories"] = [{"id": i, "name": f"c{i}"} for i in (1, 2, 4, 5)]
    for number, annotation in enumerate(content["annotations"]):
        annotation["category_id"] = number % 4
    (problem,) = _problems(content, images)
    assert "category ids 0, 1, 2, 3, but the categories have 1, 2, 4, 5" in problem.text
    assert problem.repair is None and "category at that position" in problem.advice


def test_a_repair_does_not_remove_most_keypoints(good: tuple[Content, Path]) -> None:
    """Triples within the list, which some exporters write, are not a mistake of single annotations."""
    content, images = good
    for annotation in content["annotations"]:
        points = annotation["keypoints"]
        annotation["keypoints"] = [points[:3], points[3:]]
    found = _problems(content, images, keypoints=True)
    message = "would leave out 8 of 8 annotations' keypoints"
    assert message in coco_problems.refused(content, found)
    with pytest.raises(UserError, match=message):
        coco_problems.repaired(content, found)


def test_a_size_that_is_missing_is_not_a_size_that_differs(good: tuple[Content, Path]) -> None:
    content, images = good
    content["images"][0]["width"] = 0
    assert list(size_differences(content["images"], images)) == []
    repaired = coco_problems.repaired(content, _problems(content, images))
    assert repaired["images"][0]["width"] == 128


def test_texts_of_a_stranger_are_shown_in_one_line(good: tuple[Content, Path]) -> None:
    """Escapes for the terminal, half characters, huge numbers and deep containers, in every field that is shown."""
    deep: Any = []
    for _ in range(60):
        deep = ["x" * 100, deep]
    for value in ("\x1b[31mred", "a\nb", "\ud800", "x" * 10**6, 10**400, deep, {"a": deep}, float("inf")):
        for part, key in [
            ("images", "id"), ("images", "file_name"), ("images", "width"), ("annotations", "id"),
            ("annotations", "image_id"), ("annotations", "category_id"), ("annotations", "bbox"),
            ("annotations", "area"), ("categories", "id"), ("categories", "name"),
        ]:  # fmt: skip
            content = copy.deepcopy(good[0])
            content[part][0][key] = value
            for problem in _problems(content, good[1]):
                assert "\x1b" not in problem.text and len(problem.text) < 800 + len(str(good[1])), (part, key)


def test_names_with_control_characters_are_refused(good: tuple[Content, Path]) -> None:
    content = copy.deepcopy(good[0])
    content["categories"][0]["name"] = "\x1b[31mred"
    assert any("holds a control character" in problem.text for problem in _problems(content))
