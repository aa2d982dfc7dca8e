"""VOC 2007 and 2012 from their archives to where detectron2 finds them."""

import shutil
from pathlib import Path

import pytest

from pretrain.common.errors import UserError
from tests.support import voc_archives
from tests.support.scripts import run_script
from transfer.prepare.command import main
from transfer.prepare.sets import voc


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("archives")
    voc_archives.write_voc2007(folder)
    voc_archives.write_voc2012(folder)
    return folder


def prepare(root: Path, folder: Path) -> None:
    main("", ["voc", "--root", str(root), "--archives", str(folder), "--no-checksum"])


def names(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*"))


def test_archives_become_detectron2s_layout(archives: Path, tmp_path: Path) -> None:
    options = ["--root", str(tmp_path), "--archives", str(archives), "--no-checksum"]
    done = run_script("tools/prepare_data.py", "voc", *options)
    assert done.returncode == 0, done.stderr
    assert "PASCAL VOC 2007 and 2012 is in place" in done.stdout
    # A relative link, so that ROOT can be moved.
    assert (tmp_path / "VOC2007").readlink() == Path("VOCdevkit/VOC2007")
    from detectron2.data.datasets.pascal_voc import load_voc_instances

    from transfer.data.voc_boxes import CLASSES

    for year, split, name, category in (
        ("2007", "trainval", "000005", "chair"),
        ("2007", "test", "000001", "chair"),
        ("2012", "trainval", "2010_000005", "tvmonitor"),
    ):
        records = load_voc_instances(str(tmp_path / f"VOC{year}"), split, CLASSES)
        record = next(record for record in records if record["image_id"] == name)
        assert Path(record["file_name"]).is_file()
        assert [CLASSES[found["category_id"]] for found in record["annotations"]] == [category]
    assert len(list(archives.iterdir())) == 3  # the user's files stay


def test_a_repeated_run_changes_nothing(archives: Path, tmp_path: Path) -> None:
    root, empty = tmp_path / "root", tmp_path / "empty"
    empty.mkdir()
    prepare(root, archives)
    before = names(root)
    prepare(root, empty)
    assert names(root) == before
    main("", ["voc", "--root", str(root), "--check"])


def test_an_interrupted_run_goes_on(archives: Path, tmp_path: Path) -> None:
    partly, root = tmp_path / "partly", tmp_path / "root"
    partly.mkdir()
    shutil.copy(archives / "VOCtrainval_06-Nov-2007.tar", partly)
    with pytest.raises(UserError, match=r"VOCtest_06-Nov-2007\.tar is missing: it comes from https://"):
        prepare(root, partly)
    (root / "VOC2007" / "JPEGImages" / "000005.jpg").unlink()
    prepare(root, archives)
    main("", ["voc", "--root", str(root), "--check"])


def test_a_folder_of_the_users_is_left_alone(archives: Path, tmp_path: Path) -> None:
    (tmp_path / "VOC2007").mkdir()
    with pytest.raises(UserError, match=r"trainval\.txt is missing.*after moving .*VOC2007 away"):
        prepare(tmp_path, archives)
    assert names(tmp_path) == ["VOC2007"]


def test_a_check_changes_nothing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"VOCtrainval_06-Nov-2007\.tar"):
        main("", ["voc", "--check", "--root", str(tmp_path / "none")])
    assert not list(tmp_path.iterdir())


def test_checksums_are_torchvisions() -> None:
    from torchvision.datasets import voc as reference

    for (year, split), archive in voc.ARCHIVES.items():
        known = reference.DATASET_YEAR_DICT[year if split == "trainval" else f"{year}-{split}"]
        assert (archive.name, archive.md5) == (known["filename"], known["md5"])


def test_a_download_is_removed_once_unpacked(
    archives: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def copy(url: str, path: Path, **_: object) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        return Path(shutil.copy(archives / path.name, path))

    monkeypatch.setattr("transfer.prepare.sets.archives.fetch", copy)
    main("", ["voc", "--root", str(tmp_path / "a")])
    assert not list((tmp_path / "a" / "downloads").iterdir())
    main("", ["voc", "--root", str(tmp_path / "b"), "--keep-archives"])
    assert len(list((tmp_path / "b" / "downloads").iterdir())) == 3
