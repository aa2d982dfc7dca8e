"""Label maps and other files next to the images: one image of a sample in a shard, a line about a folder, a choice."""

import io
import json
import os
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import webdataset
from PIL import Image

from pretrain import config
from pretrain.common.errors import UserError
from pretrain.data import sources, tar_index
from pretrain.data.folders import Endings, class_folders
from pretrain.train.knn_monitor import Probe, bank_folder
from tests.support.pretrain_runs import overrides, pretrain


@pytest.fixture(autouse=True)
def no_cache_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def shard(path: Path, names: Sequence[str]) -> str:
    """Write a shard whose members hold their own names."""
    with tarfile.open(path, "w") as archive:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size = len(name)
            archive.addfile(member, io.BytesIO(name.encode()))
    return str(path)


def folder(path: Path, names: Sequence[str]) -> str:
    for name in names:
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text(name)
    return str(path)


def used(source: str, *endings: str) -> list[str]:
    files = sources.find([source], Endings(endings))
    return [files.read(index).decode() for index in range(len(files))]


PAIRS = [f"a/{n:03}.{ending}" for n in range(16) for ending in ("seg.png", "cls", "jpg", "depth.png")]


def test_one_image_of_each_sample(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = shard(tmp_path / "x.tar", PAIRS)
    theirs = [sample["jpg"].decode() for sample in webdataset.WebDataset([path], shardshuffle=False)]
    for _ in range(2):  # the second time, from the stored index
        assert used(path) == theirs and len(theirs) == 16
        notes = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note: ")]
        assert notes == [
            f"note: files with the ending {ending} in tar shards are not used (16): the image of their sample is its "
            "jpg; DATA.ENDINGS chooses others"
            for ending in ("seg.png", "depth.png")
        ]
    assert used(path, "seg.png") == [name for name in PAIRS if name.endswith("seg.png")]
    assert used(path, "!seg.png", "!jpg") == [name for name in PAIRS if name.endswith("depth.png")]
    assert used(path, "depth.png", "jpg") == [name for name in PAIRS if name.endswith("depth.png")]
    assert used(path) == theirs  # and the index of another choice was not taken


@pytest.mark.parametrize(
    ("members", "left_out"),
    [
        (["1.left.png", "1.right.png", "2.left.png"], []),  # a stereo pair: none is the image
        (["2021.01.jpg", "2021.02.jpg", "2021.jpg", "Dr. A.jpg", "Dr. B.jpg", "Dr.jpg"], []),  # dots in names
        (["1.jpg", "1.jpg", "2.jpg"], []),  # appended again
        (["a/1.jpg", "b/1.png", "a/2.PNG"], []),  # samples of two folders
        (["1.png", "1.JPG", "2.webp", "2.jpeg", "3.tif", "3.mask.tif"], ["1.png", "2.webp", "3.mask.tif"]),
        (["1.mask.png", "2.jpg", "1.jpg"], ["1.mask.png"]),  # not in one place, as `tar` may write them
    ],
)
def test_real_images_are_not_left_out(tmp_path: Path, members: list[str], left_out: list[str]) -> None:
    assert used(shard(tmp_path / "x.tar", members)) == [name for name in members if name not in left_out]


def test_endings_of_a_folder(tmp_path: Path) -> None:
    names = ["a.jpg", "a_mask.PNG", "b.JPG", "b_mask.png", "c.png", "d.rgb.png", "deep/e.jpg"]
    path = folder(tmp_path / "d", names)
    assert used(path) == names
    assert used(path, "jpg") == used(path, ".JPG") == ["a.jpg", "b.JPG", "deep/e.jpg"]
    assert used(path, "!_mask.png") == ["a.jpg", "b.JPG", "c.png", "d.rgb.png", "deep/e.jpg"]
    assert used(path, "png", "!_mask.png") == ["c.png", "d.rgb.png"]
    assert used(path, "rgb.png") == ["d.rgb.png"]
    with pytest.raises(UserError, match=r"no image below .*/d \(looked for DATA.ENDINGS \.webp\)"):
        used(path, "webp")
    with pytest.raises(UserError, match=r"no image in .*x.tar .*DATA.ENDINGS \.webp"):
        used(shard(tmp_path / "x.tar", names), "webp")
    for wrong in ("npy", "_mask", "", "(jpg, png)", "*.jpg", "!*_mask.png", "photos/a.jpg"):
        with pytest.raises(UserError, match=r"DATA\.ENDINGS .*: the name of an image cannot end like this"):
            config.load("pretrain/moco_v2_R50.yaml", ["DATA.ENDINGS", wrong])
    assert config.load("pretrain/moco_v2_R50.yaml", ["DATA.ENDINGS", "jpg"]).DATA.ENDINGS == ["jpg"]


@pytest.mark.parametrize(
    ("names", "notes"),
    [
        (["images/1.jpg", "images/2.jpg", "masks/1.png", "masks/2.png"], ["2 of 4 .*masks/1.png.*name the folder"]),
        (["JPEGImages/2007_1.jpg", "SegmentationClass/2007_1.png"], ["1 of 2 .*SegmentationClass/2007_1.png"]),
        (["leftImg8bit/a/a_01_leftImg8bit.png", "gtFine/a/a_01_gtFine_labelIds.png", "gtFine/a/a_01_gtFine_color.png"],
         ["2 of 3 .*gtFine/a/a_01"]),
        (["train/images/1.jpg", "train/annotations/1.png"], ["1 of 2 .*train/annotations/1.png"]),
        (["img_dir/1.jpg", "ann_dir/1.png"], ["1 of 2 .*ann_dir/1.png"]),
        (["1.jpg", "1_mask.png", "2.jpg", "2.seg.png", "3_mask.png"],
         [r"""1 of 5 .*1_mask.png.*leave them out: DATA.ENDINGS '\["!_mask.png"\]'""", r'2.seg.png.*"!.seg.png"']),
        (["1.a.png", "1.b.png", "photo_label.jpg", "masks/7.jpg", "instances.png"], []),  # none is named after another
        (["class a/1.jpg", "class b/1.jpg"], []),
    ],
)  # fmt: skip
def test_a_line_about_label_maps_in_a_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], names: list[str], notes: list[str]
) -> None:
    path = folder(tmp_path / "masks", names)  # what is above the folder says nothing
    assert sorted(used(path)) == sorted(names)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(notes)
    for line, note in zip(lines, notes, strict=True):
        with pytest.raises(UserError, match=f"^note: DATA.TRAIN {path}: .*{note}"):
            raise UserError(line)
    used(path, "jpg", "png")  # the user has chosen
    assert not capsys.readouterr().out
    used(shard(tmp_path / "x.tar", [name for name in names if name.count(".") == 1]))
    assert ("named like label maps of others" in capsys.readouterr().out) == bool(notes)


def test_a_choice_is_part_of_the_data(tmp_path: Path) -> None:
    """Another choice with the same number of images has another digest; no choice has the digest of old checkpoints."""
    path = shard(tmp_path / "x.tar", [name for name in PAIRS if "depth" not in name])
    chosen = {e: sources.find([path], Endings(e)).digest for e in ((), ("jpg",), ("seg.png",))}
    assert len(set(chosen.values())) == 3
    (tmp_path / "old").mkdir()
    old = shard(tmp_path / "old" / "x.tar", [name for name in PAIRS if name.endswith("jpg")])
    assert sources.find([old]).digest == chosen[()]


def test_sizes_json_counts_samples(tmp_path: Path) -> None:
    path = shard(tmp_path / "x.tar", PAIRS)
    (tmp_path / "sizes.json").write_text(json.dumps({"x.tar": 16}))
    assert used(path)[3] == "a/003.jpg"
    (tmp_path / "sizes.json").write_text(json.dumps({"x.tar": 48}))
    with pytest.raises(UserError, match=r"holds 16 images, and 48 are expected.*each sample has one image"):
        used(path)


def test_an_index_of_an_older_version_is_not_read(tmp_path: Path) -> None:
    """It counted every file with the extension of an image."""
    path = shard(tmp_path / "x.tar", PAIRS)
    assert len(used(path)) == 16
    (kept,) = tmp_path.rglob("x.tar.index")
    status = os.stat(path)
    rows = [[status.st_size, status.st_mtime_ns, 0], *([512, 1024, 4] for _ in range(48))]
    np.array(rows, "<i8").tofile(kept)
    assert tar_index.stored(path) is None and len(used(path)) == 16


def test_runs_with_a_choice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The kNN monitor uses the same images; a resumed run keeps the choice."""
    for name in ("a", "b"):
        for number in range(20):
            pixels = np.random.default_rng(number).integers(0, 255, (40, 40, 3), dtype=np.uint8)
            (tmp_path / "d" / name).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(tmp_path / "d" / name / f"{number}.jpg")
            Image.fromarray(pixels[..., 0]).save(tmp_path / "d" / name / f"{number}_mask.png")
    (tmp_path / "d" / "masks").mkdir()
    Image.new("L", (8, 8)).save(tmp_path / "d" / "masks" / "1.png")
    run = (tmp_path / "d", tmp_path / "run", "SOLVER.MAX_EPOCH", "1", "INPUT.SIZE", "32", "KNN.PERIOD", "1")
    assert pretrain(*run, "DATA.ENDINGS", "jpg")["images"] == 40
    assert "40 images" in capsys.readouterr().out
    cfg = config.load("pretrain/moco_v2_R50.yaml", overrides(*run, "DATA.ENDINGS", "jpg"))
    assert bank_folder(cfg) == ("DATA.TRAIN", str(tmp_path / "d"))
    assert class_folders(str(tmp_path / "d"), Endings(["jpg"])) == ["a", "b"]
    assert len(Probe(cfg, None, device=None).train.files) == 40  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"DATA\.ENDINGS"):
        pretrain(*run, "SOLVER.MAX_EPOCH", "2", "DATA.ENDINGS", "!png", resume=True)
