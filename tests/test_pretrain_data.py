"""Image folders: what is found, in which order it is visited, and what broken files do."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from fvcore.common.config import CfgNode
from PIL import Image

from pretrain import config, data
from pretrain.decode import centre_view
from pretrain.errors import UserError
from pretrain.images import ImageFiles, class_folders, find_images

CPU = torch.device("cpu")


def settings(**values: object) -> CfgNode:
    cfg = config.defaults()
    cfg.merge_from_list(["INPUT.SIZE", 16, "SOLVER.IMS_PER_BATCH", 4, "DATA.NUM_WORKERS", 0])
    for key, value in values.items():
        config.set_key(cfg, key.replace("__", "."), value, origin="test")
    return cfg


def test_paths_survive_the_buffer() -> None:
    paths = ["a.jpg", "", "some/ünïcode 照片.jpg", "x" * 300]
    assert list(ImageFiles(paths)) == paths


def test_finds_images_recursively_and_sorted(tmp_path: Path) -> None:
    for name in [
        "b/2.JPG",
        "b/1.png",
        "a/deep/er/3.webp",
        "z.jpeg",
        "b/notes.txt",
        ".hidden/4.jpg",
        "b/._5.jpg",
    ]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    os.symlink(tmp_path, tmp_path / "b" / "loop")  # a link that leads back up does no harm
    found = [os.path.relpath(path, tmp_path) for path in find_images([str(tmp_path)], key="DATA.TRAIN")]
    assert found == ["a/deep/er/3.webp", "b/1.png", "b/2.JPG", "z.jpeg"]


def test_folders_without_images_are_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no image")
    for folders, words in [
        ([str(tmp_path)], "no image below"),
        (["nowhere"], "no such folder"),
        ([], "names no"),
    ]:
        with pytest.raises(UserError, match=f"DATA.TRAIN.*{words}"):
            find_images(folders, key="DATA.TRAIN")


def test_class_folders(tmp_path: Path) -> None:
    for name in ["cat/deep/1.jpg", "dog/2.png", "text/notes.txt", ".cache/3.jpg", "readme.txt"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert class_folders(str(tmp_path)) == ["cat", "dog"]
    (tmp_path / "4.jpg").write_bytes(b"")
    assert class_folders(str(tmp_path)) == []


def test_order_is_a_permutation_of_seed_and_epoch() -> None:
    first = data.epoch_order(50, 1, 0)
    assert sorted(first) == list(range(50))
    assert np.array_equal(first, data.epoch_order(50, 1, 0))
    assert not np.array_equal(first, data.epoch_order(50, 1, 1))
    assert not np.array_equal(first, data.epoch_order(50, 2, 0))


def test_batches_of_a_resumed_run_are_the_rest() -> None:
    whole = list(data.Batches(14, settings(), start=0, stop=8))
    assert list(data.Batches(14, settings(), start=5, stop=8)) == whole[5:]
    assert [batch[0][0] for batch in whole] == [0, 0, 0, 1, 1, 1, 2, 2]  # 3 full batches an epoch
    indices = [index for batch in whole[:3] for _, index in batch]
    assert len(set(indices)) == 12


def test_processes_share_a_batch_like_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    (total,) = data.Batches(4, settings(), start=0, stop=1)
    monkeypatch.setattr("pretrain.dist.world_size", lambda: 2)
    for rank in range(2):
        monkeypatch.setattr("pretrain.dist.rank", lambda rank=rank: rank)
        assert list(data.Batches(4, settings(), start=0, stop=1)) == [total[rank::2]]


def test_too_few_images_for_a_batch() -> None:
    with pytest.raises(UserError, match=r"SOLVER\.IMS_PER_BATCH 4 .* use SOLVER\.IMS_PER_BATCH 2"):
        data.iterations_per_epoch(3, settings())
    assert data.iterations_per_epoch(11, settings()) == 2


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_change_nothing(image_folder: Callable[..., Path], workers: int) -> None:
    files = find_images([str(image_folder(8))], key="DATA.TRAIN")
    plain = list(data.train_loader(files, settings(), start=0, stop=3, device=CPU))
    other = list(data.train_loader(files, settings(DATA__NUM_WORKERS=workers), start=0, stop=3, device=CPU))
    for batch, same in zip(plain, other, strict=True):
        assert batch.query.shape == (4, 16, 16, 3) and batch.query.dtype == torch.uint8
        assert batch.broken == [] and batch.choices.shape == (4, 2, 0)
        assert all(torch.equal(a, b) for a, b in zip(batch[:4], same[:4], strict=True))


def test_broken_images_are_replaced_and_counted(image_folder: Callable[..., Path]) -> None:
    folder = image_folder(8)
    (folder / "0003.jpg").write_bytes((folder / "0003.jpg").read_bytes()[:-200])  # truncated
    (folder / "0005.jpg").write_bytes(b"no image")
    files = find_images([str(folder)], key="DATA.TRAIN")
    pairs = data.ViewPairs(files, settings())
    assert pairs[0, 2].broken == [] and pairs[0, 3].broken == [3]
    assert pairs[0, 3].query.any()
    broken = data.Broken(files, 0.25)
    broken.add([3])
    broken.add([3, 5])
    assert [os.path.basename(line) for line in broken.report()[1:]] == ["0003.jpg", "0005.jpg"]
    with pytest.raises(UserError, match=r"DATA\.MAX_BROKEN 0\.25: 3 of 8"):
        broken.add([6])


def test_nothing_but_broken_images_stops_at_any_limit(tmp_path: Path) -> None:
    for n in range(4):
        (tmp_path / f"{n}.jpg").write_bytes(b"no image")
    files = find_images([str(tmp_path)], key="DATA.TRAIN")
    (batch,) = data.train_loader(files, settings(), start=0, stop=1, device=CPU)
    with pytest.raises(UserError, match="4 of 4"):
        data.Broken(files, 1.0).add(batch.broken)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1"])
def test_any_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("x.jpg" if mode == "CMYK" else "x.png")
    Image.new("RGB", (40, 30), (200, 30, 60)).convert(mode).save(path)
    assert centre_view(path.read_bytes(), 16).shape == (16, 16, 3)


@pytest.mark.parametrize("name", ["x.png", "x.tif"])
def test_sixteen_bits_are_scaled_not_clipped(tmp_path: Path, name: str) -> None:
    ramp = np.tile(np.linspace(0, 65535, 64).astype(np.uint16), (64, 1))
    Image.fromarray(ramp).save(tmp_path / name)
    view = centre_view((tmp_path / name).read_bytes(), 16)[8, :, 0].astype(int)
    assert (np.diff(view) > 0).all() and view[0] < 40 and view[-1] > 215
    Image.fromarray((ramp // 257).astype(np.uint16)).save(tmp_path / name)  # eight bits in a file of sixteen
    assert centre_view((tmp_path / name).read_bytes(), 16)[8, -1, 0] > 215
