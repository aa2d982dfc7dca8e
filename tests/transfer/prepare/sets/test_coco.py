"""COCO 2017 from its three archives, including keypoints."""

import json
import zipfile
from pathlib import Path

import pytest

from pretrain.common.errors import UserError
from transfer.data import on_disk
from transfer.prepare.command import main

IMAGES = {"train2017": ["000000000009.jpg", "000000000025.jpg"], "val2017": ["000000000139.jpg"]}


@pytest.fixture
def archives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(on_disk, "COCO_IMAGES", {split: len(names) for split, names in IMAGES.items()})
    folder = tmp_path / "archives"
    folder.mkdir()
    for split, names in IMAGES.items():
        with zipfile.ZipFile(folder / f"{split}.zip", "w") as archive:
            archive.mkdir(split) if hasattr(archive, "mkdir") else archive.writestr(f"{split}/", "")
            for name in names:
                archive.writestr(f"{split}/{name}", b"\xff\xd8photo\xff\xd9")
    with zipfile.ZipFile(folder / "annotations_trainval2017.zip", "w") as archive:
        for split, names in IMAGES.items():
            content = {"images": [{"id": n, "file_name": name} for n, name in enumerate(names)]}
            for kind in ("instances", "person_keypoints", "captions"):
                archive.writestr(f"annotations/{kind}_{split}.json", json.dumps(content))
    return folder


def prepare(root: Path, folder: Path, *options: str) -> None:
    main("", ["coco", "--root", str(root), "--archives", str(folder), *options])


def test_archives_become_detectron2s_layout(
    archives: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "root"
    prepare(root, archives, "--no-checksum")
    for split, names in IMAGES.items():
        assert sorted(file.name for file in (root / "coco" / split).iterdir()) == names
    assert "keypoints are in place" in capsys.readouterr().out
    main("", ["coco", "--root", str(root), "--check"])
    prepare(root, tmp_path)  # everything is there: no archive is needed
    (root / "coco" / "val2017" / IMAGES["val2017"][0]).unlink()
    with pytest.raises(UserError, match=r"000000000139\.jpg is missing.*zips/val2017\.zip"):
        main("", ["coco", "--root", str(root), "--check"])
    prepare(root, archives, "--no-checksum")


def test_missing_and_wrong_archives(archives: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    with pytest.raises(UserError, match=r"annotations_trainval2017\.zip has \d+ bytes, not 252907541"):
        prepare(root, archives)
    (archives / "val2017.zip").unlink()
    with pytest.raises(UserError, match=r"val2017\.zip is missing: it comes from http://images\.coco"):
        prepare(root, archives, "--no-checksum")
    assert (root / "coco" / "annotations" / "person_keypoints_val2017.json").is_file()


def test_an_archive_with_too_few_images(archives: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(archives / "train2017.zip", "w") as archive:
        archive.writestr("train2017/000000000009.jpg", b"photo")
    with pytest.raises(UserError, match="train2017 holds 1 of 2 images"):
        prepare(tmp_path / "root", archives, "--no-checksum")
