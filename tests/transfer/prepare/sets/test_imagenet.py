"""ImageNet and Imagenette: archives in the real layout become class folders; interruptions; missing files."""

import argparse
import io
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.io import savemat

from pretrain.common.errors import UserError
from transfer.prepare.sets import imagenet, imagenette
from transfer.prepare.sets import imagenet as sets_imagenet

WNIDS = ["n01440764", "n01443537", "n01484850"]
TRUTH = [3, 1, 1, 2]  # class numbers of the four validation images
NUMBER = {1: WNIDS[1], 2: WNIDS[0], 3: WNIDS[2]}  # the devkit's order differs from that of the names


def image(name: str) -> bytes:
    return b"\xff\xd8" + name.encode() + b"\xff\xd9"


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def inner_tar(wnid: str) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for number in (1, 12):
            add(tar, f"{wnid}_{number}.JPEG", image(f"{wnid}_{number}"))
    return file.getvalue()


def write_devkit(path: Path) -> None:
    """meta.mat as a struct array with the real fields: classes, then a synset with children."""
    rows = [(number, wnid, f"words {wnid}", "gloss", 0) for number, wnid in NUMBER.items()]
    rows.append((4, "n00001740", "entity", "gloss", 3))
    names = ("ILSVRC2012_ID", "WNID", "words", "gloss", "num_children")
    synsets = np.empty((len(rows), 1), dtype=[(name, object) for name in names])
    for index, row in enumerate(rows):
        synsets[index, 0] = row
    meta = io.BytesIO()
    savemat(meta, {"synsets": synsets})
    with tarfile.open(path, "w:gz") as tar:
        add(tar, "ILSVRC2012_devkit_t12/data/meta.mat", meta.getvalue())
        truth = "".join(f"{number}\n" for number in TRUTH).encode()
        add(tar, "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt", truth)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three classes of two training images, four validation images; the archives in ROOT/downloads."""
    monkeypatch.setattr(imagenet, "IMAGES", {"train": 6, "val": 4})
    monkeypatch.setattr(imagenet, "CLASSES", 3)
    downloads = tmp_path / "downloads"
    downloads.mkdir()
    with tarfile.open(downloads / "ILSVRC2012_img_train.tar", "w") as tar:
        for wnid in WNIDS:
            add(tar, f"{wnid}.tar", inner_tar(wnid))
    with tarfile.open(downloads / "ILSVRC2012_img_val.tar", "w") as tar:
        for number in (2, 1, 4, 3):  # the order in the tar does not matter
            name = f"ILSVRC2012_val_{number:08}.JPEG"
            add(tar, name, image(name))
    write_devkit(downloads / "ILSVRC2012_devkit_t12.tar.gz")
    return tmp_path


def arguments(root: Path, **others: object) -> argparse.Namespace:
    given = {"root": root, "archives": None, "no_checksum": True, "keep_archives": False}
    return argparse.Namespace(**(given | others))


def refusal(call: Any, *args: Any, **more: Any) -> str:
    with pytest.raises(UserError) as caught:
        call(*args, **more)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def tree(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


EXPECTED = {
    **{f"train/{wnid}/{wnid}_{n}.JPEG": image(f"{wnid}_{n}") for wnid in WNIDS for n in (1, 12)},
    **{
        f"val/{wnid}/ILSVRC2012_val_0000000{n}.JPEG": image(f"ILSVRC2012_val_0000000{n}.JPEG")
        for n, wnid in ((1, WNIDS[2]), (2, WNIDS[1]), (3, WNIDS[1]), (4, WNIDS[0]))
    },
}


def test_build(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    imagenet.build(root, arguments(root))
    assert tree(root / "imagenet") == EXPECTED
    assert "is complete: 6 train and 4 val images" in capsys.readouterr().out
    for archive in list((root / "downloads").iterdir()):  # they were kept, but are not needed again
        archive.unlink()
    imagenet.build(root, arguments(root))


def test_torchvision_reads_the_devkit_alike(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torchvision.datasets.imagenet as reference

    monkeypatch.setattr(reference, "_verify_archive", lambda *_: None)
    reference.parse_devkit_archive(root / "downloads")
    devkit = root / "downloads/ILSVRC2012_devkit_t12.tar.gz"
    assert sets_imagenet.val_classes(devkit) == reference.load_meta_file(root / "downloads")[1]


def test_sizes_and_sums_are_those_of_torchvision() -> None:
    from torchvision.datasets import Imagenette
    from torchvision.datasets.imagenet import ARCHIVE_META

    for archive, kind in ((imagenet.VAL, "val"), (imagenet.DEVKIT, "devkit")):
        assert (archive.name, archive.md5) == ARCHIVE_META[kind]
    assert imagenet.TRAIN.name == ARCHIVE_META["train"][0]
    for size, name in (("full", "full"), ("320", "320px"), ("160", "160px")):
        archive = imagenette.ARCHIVES[size]
        assert (archive.url, archive.md5) == Imagenette._ARCHIVES[name]
    assert set(imagenette.CLASSES) == set(Imagenette._WNID_TO_CLASS)


def test_interrupted_it_goes_on(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, left = sets_imagenet.write_bytes, [7]

    def stops(path: Path, content: bytes) -> None:
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        write(path, content)

    monkeypatch.setattr(sets_imagenet, "write_bytes", stops)
    with pytest.raises(KeyboardInterrupt):
        imagenet.build(root, arguments(root))
    made = tree(root / "imagenet")
    assert len(made) == 7 and made.items() <= EXPECTED.items()
    left[0] = 3  # exactly the number of missing images
    imagenet.build(root, arguments(root))
    assert tree(root / "imagenet") == EXPECTED


def test_missing_archives_are_all_named(root: Path) -> None:
    downloads = root / "downloads"
    (downloads / "ILSVRC2012_img_val.tar").unlink()
    (downloads / "ILSVRC2012_devkit_t12.tar.gz").unlink()
    said = refusal(imagenet.build, root, arguments(root))
    assert f"{downloads} lacks ILSVRC2012_img_val.tar (6.7 GB) and ILSVRC2012_devkit_t12.tar.gz" in said
    assert "img_train" not in said and "image-net.org" in said


def test_wrong_archives_are_refused(root: Path) -> None:
    said = refusal(imagenet.build, root, arguments(root, no_checksum=False))
    assert "ILSVRC2012_img_train.tar has" in said and "not 147897477120" in said
    train = root / "downloads/ILSVRC2012_img_train.tar"
    train.write_bytes(train.read_bytes()[:4000])
    assert f"{train} is not a complete archive" in refusal(imagenet.build, root, arguments(root))
    devkit = root / "downloads/ILSVRC2012_devkit_t12.tar.gz"
    with tarfile.open(devkit, "w:gz") as tar:
        add(tar, "ILSVRC2012_devkit_t12/readme.txt", b"")
    assert f"{devkit} is not a complete ImageNet devkit" in refusal(sets_imagenet.val_classes, devkit)


@pytest.mark.parametrize("name", ["../../evil.JPEG", "n01440764_1.sh", "n0144/n01440764_1.JPEG"])
def test_foreign_names_are_refused(name: str, root: Path) -> None:
    inner = io.BytesIO()
    with tarfile.open(fileobj=inner, mode="w") as tar:
        add(tar, name, b"x")
    train = root / "downloads/ILSVRC2012_img_train.tar"
    with tarfile.open(train, "w") as tar:
        add(tar, f"{WNIDS[0]}.tar", inner.getvalue())
    assert f"{train}: {name!r} is not an ImageNet image" in refusal(imagenet.build, root, arguments(root))
    assert not list(root.rglob("*evil*"))


def test_checks_name_what_is_missing(root: Path) -> None:
    said = refusal(imagenet.check_imagenet, root)
    assert "train holds 0 of 3 class folders" in said and "ILSVRC2012_img_train.tar" in said
    imagenet.build(root, arguments(root))
    folder = root / "imagenet/train"
    (folder / WNIDS[1]).rename(folder / "away")
    assert f"{folder / WNIDS[1]} is missing" in refusal(imagenet.check_imagenet, root)
    (folder / "away").rename(folder / WNIDS[1])
    file = folder / WNIDS[2] / f"{WNIDS[2]}_12.JPEG"
    file.unlink()
    said = refusal(imagenet.check_imagenet, root)
    assert "holds 5 images, not 6 (fewest, 1, in n01484850)" in said
    imagenet.build(root, arguments(root))  # puts it back
    assert tree(root / "imagenet") == EXPECTED
    (file.parent / ".of_a_killed_run.tmp").write_bytes(b"")
    assert "is complete" in imagenet.check(root, arguments(root))
    file.write_bytes(b"")
    assert f"{file} is empty" in refusal(imagenet.check, root, arguments(root))


@pytest.mark.parametrize(("size", "folder"), [("full", "imagenette2"), ("160", "imagenette2-160")])
def test_imagenette(size: str, folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imagenette, "IMAGES", {"train": 10, "val": 10})
    (tmp_path / "downloads").mkdir()
    archive = tmp_path / "downloads" / f"{folder}.tgz"
    with tarfile.open(archive, "w:gz") as tar:
        add(tar, f"{folder}/noisy_imagenette.csv", b"")
        for split in ("train", "val"):
            for wnid in imagenette.CLASSES:
                add(tar, f"{folder}/{split}/{wnid}/{wnid}_{split}.JPEG", image(wnid))
    # The archive is not the real one.
    said = refusal(imagenette.build, tmp_path, arguments(tmp_path, size=size, no_checksum=False))
    assert "has md5" in said
    args = arguments(tmp_path, size=size)
    assert f"{folder}.tgz" in refusal(imagenette.check, tmp_path, args)
    imagenette.build(tmp_path, args)
    assert not archive.exists()
    assert f"{tmp_path / folder} is complete" in imagenette.check(tmp_path, args)
    file = tmp_path / folder / "val" / "n03888257" / "n03888257_val.JPEG"
    file.unlink()
    assert "val holds 9 images, not 10" in refusal(imagenette.check_imagenette, tmp_path, size)
    file.write_bytes(b"")
    assert f"{file} is empty" in refusal(imagenette.check, tmp_path, args)
    (tmp_path / folder / "train" / "n01440764").rename(tmp_path / "away")
    assert "train/n01440764 is missing" in refusal(imagenette.check, tmp_path, args)
