"""One reader for annotation files: encodings, ids and flags written as strings, and what is left for the check."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from detectron2.data import DatasetCatalog

from pretrain.common.errors import UserError
from tests.support import detection_data
from transfer.config.load import load_config
from transfer.data import datasets
from transfer.data.coco.read import read

Content = dict[str, Any]


@pytest.fixture
def good(tmp_path: Path) -> tuple[Content, Path, Path]:
    """(content, file, image folder) with category ids 3 and 6."""
    file, images = detection_data.write_coco(tmp_path / "data", classes=("чашка", "key"))
    return json.loads(file.read_text()), file, images


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "ascii"]
)
def test_encodings(good: tuple[Content, Path, Path], encoding: str) -> None:
    content, file, _ = good
    file.write_bytes(json.dumps(content, ensure_ascii=encoding == "ascii").encode(encoding))
    result = read(file)
    assert result.content == content and result.notes == []
    assert result.plain == (encoding in ("utf-8", "ascii"))


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    for data, text in (
        ('{"name": "caf\u00e9"}'.encode("latin-1"), r"byte 13 is not text in UTF-8: save the file as UTF-8"),
        (b'{"images": [', "not a complete JSON file"),
        (b"[" * 100_000, "nested too deeply"),
    ):
        file.write_bytes(data)
        with pytest.raises(UserError, match=text):
            read(file)


def test_a_file_with_strings_is_read_as_one_without(good: tuple[Content, Path, Path]) -> None:
    content, file, _ = good
    strange: Content = copy.deepcopy(content)
    for image in strange["images"]:
        image["width"], image["height"] = str(image["width"]), float(image["height"])
    for category in strange["categories"]:
        category["id"] = str(category["id"])
    strange["categories"].append(strange["categories"][0])
    for number, annotation in enumerate(strange["annotations"]):
        annotation["image_id"] = str(annotation["image_id"]) if number % 2 else float(annotation["image_id"])
        annotation["iscrowd"] = (False, "0", "false")[number % 3]
        annotation["bbox"] = [str(v) for v in annotation["bbox"]]
        annotation["area"] = str(annotation["area"])
    strange["annotations"][1]["iscrowd"] = 0.0  # as pandas writes a column in which a value is missing
    strange["annotations"][2]["iscrowd"] = "1"
    content["annotations"][2]["iscrowd"] = 1
    flat = [1, 2, 9, 2, 9, 8]
    strange["annotations"][3]["segmentation"] = flat
    content["annotations"][3]["segmentation"] = [flat]
    file.write_text(json.dumps(strange))
    result = read(file)
    assert result.content == content and not result.plain
    assert "7 of 8 iscrowds: '0' of annotation 2 is read as 0" not in result.notes  # the first is False
    assert "8 of 8 image_ids: 1.0 of annotation 1 is read as 1" in result.notes
    assert "1 of 3 categories are repeated: left out" in result.notes
    assert len(result.notes) == 9


@pytest.mark.parametrize(
    ("part", "ids"),
    [
        ("images", ["1", "01", "2", "3"]),  # two would become one
        ("categories", ["cup", "key"]),
    ],
)
def test_ids_that_are_really_strings_stay(
    good: tuple[Content, Path, Path], part: str, ids: list[str]
) -> None:
    content, file, _ = good
    new = {entry["id"]: key for entry, key in zip(content[part], ids, strict=True)}
    for entry in content[part]:
        entry["id"] = new[entry["id"]]
    field = {"images": "image_id", "categories": "category_id"}[part]
    for annotation in content["annotations"]:
        annotation[field] = new[annotation[field]]
    file.write_text(json.dumps(content))
    assert read(file) == (content, [], True)


def test_training_reads_what_the_check_reads(
    good: tuple[Content, Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """detectron2 gets a copy of a file that it would not read, with the same records."""
    content, file, images = good
    records = {}
    for name in ("plain", "strange"):
        if name == "strange":
            for annotation in content["annotations"]:
                annotation["category_id"] = str(annotation["category_id"])
            file.write_bytes(json.dumps(content, ensure_ascii=False).encode("utf-16"))
        cfg = load_config(
            Path("configs/transfer/custom_R50_FPN.yaml"),
            [*detection_data.custom((file, images), (file, images)), *detection_data.TINY, "MODEL.INIT", "random",
             "OUTPUT_DIR", str(tmp_path / name)],
        )  # fmt: skip
        datasets.prepare(cfg)
        records[name] = DatasetCatalog.get("custom_train")
    assert records["plain"] == records["strange"]
    printed = capsys.readouterr().out
    assert f"detectron2 reads the copy {tmp_path}/strange/repaired/train.json" in printed
    assert "8 of 8 category_ids: '" in printed
