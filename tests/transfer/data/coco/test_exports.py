"""Files in the true structure of eight exporters: the check is silent, and training reads them."""

import json
from pathlib import Path
from typing import Any

import pytest
from detectron2.data import DatasetCatalog

from pretrain.common.errors import UserError
from tests.support import detection_data
from tests.transfer.data.coco.exports import EXPORTS, ODD_EXPORTS
from transfer.config.load import load_config
from transfer.data import datasets
from transfer.prepare.command import main


def _check(file: Path, images: Path, *options: str) -> None:
    main("", ["custom", "--json", str(file), "--images", str(images), *(options or ("--check",))])


@pytest.mark.parametrize("boxes", [True, False])
@pytest.mark.parametrize("tool", EXPORTS)
def test_the_check_is_silent(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], tool: str, boxes: bool
) -> None:
    file, images = EXPORTS[tool](tmp_path, boxes=boxes)
    _check(file, images)
    assert capsys.readouterr().out.endswith(f"{file}: no problem was found\n")


@pytest.mark.parametrize("tool", ["VIA 2.0.8", "VIA 2.0.9"])
def test_strings_for_ids_and_flat_polygons_are_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], tool: str
) -> None:
    file, images = ODD_EXPORTS[tool](tmp_path)
    _check(file, images)
    printed = capsys.readouterr().out
    assert "image_ids: '0' of annotation 0 is read as 0" in printed
    assert "is read as a list with one polygon" in printed and "no problem was found" in printed
    cfg = load_config(
        Path("configs/transfer/custom_R50_FPN.yaml"),
        [*detection_data.custom((file, images), (file, images)), *detection_data.TINY, "MODEL.INIT", "random",
         "OUTPUT_DIR", str(tmp_path / "run")],
    )  # fmt: skip
    datasets.prepare(cfg)
    content = json.loads(file.read_text())
    records = DatasetCatalog.get("custom_train")
    assert sum(len(record["annotations"]) for record in records) == len(content["annotations"])
    for record in records:
        of_image = [a for a in content["annotations"] if int(a["image_id"]) == record["image_id"]]
        assert [a["bbox"] for a in record["annotations"]] == [a["bbox"] for a in of_image]


def test_paths_of_a_server_are_found_in_the_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, images = ODD_EXPORTS["Label Studio, paths of the server"](tmp_path)
    with pytest.raises(UserError, match="--repair --output FILE writes a repaired copy"):
        _check(file, images)
    assert "was probably meant" in capsys.readouterr().out
    _check(file, images, "--repair", "--output", str(tmp_path / "repaired.json"))
    repaired = json.loads((tmp_path / "repaired.json").read_text())
    before: dict[str, Any] = json.loads(file.read_text())
    assert len(repaired["images"]) == len(before["images"])
    assert all((images / image["file_name"]).is_file() for image in repaired["images"])
    assert repaired["annotations"] == before["annotations"]
