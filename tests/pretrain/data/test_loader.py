"""Folders and lists of images: which images are found, their order, and the handling of broken files."""

import errno
import functools
import itertools
import os
import random
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from fvcore.common.config import CfgNode
from PIL import Image

from pretrain import config
from pretrain.common import distributed
from pretrain.common.configs import set_key
from pretrain.common.errors import UserError, printable
from pretrain.data import loader as data_loader
from pretrain.data import sources
from pretrain.data.broken_images import FILE, Broken
from pretrain.data.decode import centre_view
from pretrain.data.folders import ImageFiles, class_folders, find_images, permutation
from pretrain.data.loader import Batches, ViewPairs, iterations_per_epoch, make_train_loader
from pretrain.train import knn_monitor

CPU = torch.device("cpu")


def settings(**values: object) -> CfgNode:
    cfg = config.defaults()
    cfg.merge_from_list(["INPUT.SIZE", 16, "SOLVER.IMS_PER_BATCH", 4, "DATA.NUM_WORKERS", 0])
    for key, value in values.items():
        set_key(cfg, key.replace("__", "."), value, origin="test")
    return cfg


def test_paths_survive_the_buffer() -> None:
    paths = ["a.jpg", "", "some/ünïcode 照片.jpg", "x" * 300]
    assert list(ImageFiles(paths)) == paths and list(ImageFiles(iter(paths))) == paths
    assert len(ImageFiles([])) == 0


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
    os.symlink(tmp_path, tmp_path / "b" / "loop")  # a link to a parent folder is ignored
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


def test_folders_are_listed_in_the_order_of_whole_paths(tmp_path: Path) -> None:
    """The order is that of sorting all paths at once: `a.jpg` before `a/` and after `a-b/`."""
    chance = random.Random(0)
    for _ in range(200):
        parts = [
            "".join(chance.choices("aB-._0", k=chance.randint(1, 3))) for _ in range(chance.randint(1, 3))
        ]
        path = tmp_path.joinpath(*parts[:-1]) / f"x{parts[-1]}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    visible = [
        p
        for p in tmp_path.rglob("*.jpg")
        if not any(q.startswith(".") for q in p.relative_to(tmp_path).parts)
    ]
    assert len(visible) > 100
    assert list(find_images([str(tmp_path)], key="DATA.TRAIN")) == sorted(map(str, visible))


def test_a_folder_that_nobody_may_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.jpg").write_bytes(b"")
    (tmp_path / "secret").mkdir()
    scandir = os.scandir

    def guarded(path: str) -> object:  # file modes do not test this, since root may read everything
        if os.path.basename(path) == "secret":
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)
    with pytest.raises(UserError, match=r"^DATA\.TRAIN: cannot read .*secret: Permission denied$"):
        sources.find([str(tmp_path)])


def test_a_list_of_paths(image_folder: Callable[..., Path], tmp_path: Path) -> None:
    folder = image_folder(3)
    listing = tmp_path / "lists" / "some.txt"
    listing.parent.mkdir()
    first = os.path.relpath(folder / "0002.jpg", listing.parent)
    listing.write_bytes(
        f"\ufeff{first}\r\n\n# a comment\n{folder / '0000.jpg'}\n  missing.jpg\n{first}".encode()
    )
    files = sources.find([str(listing)])
    names = [os.path.relpath(files[i], tmp_path) for i in range(len(files))]
    assert names == ["images0/0002.jpg", "images0/0000.jpg", "lists/missing.jpg", "images0/0002.jpg"]
    assert files.read(0) == files.read(3) == (folder / "0002.jpg").read_bytes()
    sample = ViewPairs(files, settings())[0, 2]
    assert sample.broken == [2] and sample.query.any()


def digest(*places: Path) -> str:
    return sources.find([str(place) for place in places]).digest


def test_images_are_known_again_in_another_place(image_folder: Callable[..., Path], tmp_path: Path) -> None:
    names = ["a/0.jpg", "a/1.jpg", "b/0.jpg"]
    places = [tmp_path / "here", tmp_path / "on" / "another" / "disk"]
    for place in places:
        for name in names:
            (place / "images" / name).parent.mkdir(parents=True, exist_ok=True)
            (place / "images" / name).touch()
        (place / "list.txt").write_text(f"images/a/1.jpg\n{place}/images/b/0.jpg\n/elsewhere{place}/0.jpg\n")
        with tarfile.open(place / "x.tar", "w") as archive:
            archive.add(image_folder(2, seed=len(place.parts)), "images")
    for kinds in (["images"], ["list.txt"], ["x.tar"], ["images", "x.tar", "list.txt"]):
        one, other = ([place / kind for kind in kinds] for place in places)
        assert digest(*one) == digest(*other)
    images = places[0] / "images"
    known = {
        digest(images),
        digest(images, images),
        digest(places[0] / "x.tar"),
        digest(places[0] / "list.txt"),
    }
    (images / "a" / "1.jpg").rename(images / "a" / "2.jpg")
    known.add(digest(images))
    (places[0] / "x.tar").rename(places[0] / "y.tar")
    known.add(digest(places[0] / "y.tar"))
    (places[0] / "list.txt").write_text("images/b/0.jpg\nimages/a/1.jpg\n")
    known.add(digest(places[0] / "list.txt"))
    assert len(known) == 7 and "" not in known


def test_several_sources_at_once(image_folder: Callable[..., Path], tmp_path: Path) -> None:
    one, two = image_folder(2), image_folder(3)
    listing = tmp_path / "list.txt"
    listing.write_text(f"{one / '0000.jpg'}\n")
    files = sources.find([str(two), str(listing), str(one)])
    names = [os.path.relpath(files[i], tmp_path) for i in range(len(files))]
    assert names == [
        *(f"images1/000{i}.jpg" for i in range(3)),
        "images0/0000.jpg",
        "images0/0000.jpg",
        "images0/0001.jpg",
    ]


def test_sources_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "nothing.txt").write_text("\n# nothing\n")
    (tmp_path / "x.csv").write_text("a,b")
    (tmp_path / "x.jpg").write_bytes(b"")
    for source, words in [
        ("nowhere", "no such folder: .*nowhere"),
        ("nowhere.txt", "no such list: .*nowhere.txt"),
        ("empty", "no image below .*empty"),
        ("nothing.txt", "no path in the list .*nothing.txt"),
        ("x.csv", ".*x.csv is neither a folder, a list"),
        ("x.jpg", ".*x.jpg is neither a folder, a list"),
    ]:
        with pytest.raises(UserError, match=f"^DATA\\.TRAIN: {words}") as caught:
            sources.find([str(tmp_path / source)])
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"DATA\.TRAIN: names no images"):
        sources.find([])


def test_lists_and_shards_have_no_knn_of_their_own(image_folder: Callable[..., Path], tmp_path: Path) -> None:
    folder = image_folder(2, classes=("a", "b"))
    (tmp_path / "list.txt").write_text(f"{folder / 'a' / '0000.jpg'}\n")
    assert knn_monitor.bank_folder(settings(DATA__TRAIN=[str(folder)])) == ("DATA.TRAIN", str(folder))
    for source in (tmp_path / "list.txt", tmp_path / "{0..3}.tar"):
        assert knn_monitor.bank_folder(settings(DATA__TRAIN=[str(source)])) == ("KNN.TRAIN", "")


def test_order_is_a_permutation_of_seed_and_epoch() -> None:
    first = permutation(50, 1, 0)
    assert sorted(first) == list(range(50))
    assert np.array_equal(first, ImageFiles(["x"] * 50).order(1, 0))
    assert not np.array_equal(first, permutation(50, 1, 1))
    assert not np.array_equal(first, permutation(50, 2, 0))


def test_batches_of_a_resumed_run_are_the_rest() -> None:
    whole = list(Batches(14, settings(), start=0, stop=8))
    assert list(Batches(14, settings(), start=5, stop=8)) == whole[5:]
    assert [batch[0][0] for batch in whole] == [0, 0, 0, 1, 1, 1, 2, 2]  # 3 full batches an epoch
    indices = [index for batch in whole[:3] for _, index in batch]
    assert len(set(indices)) == 12


def test_processes_share_a_batch_like_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    (total,) = Batches(4, settings(), start=0, stop=1)
    monkeypatch.setattr("pretrain.common.distributed.world_size", lambda: 2)
    for rank in range(2):
        monkeypatch.setattr("pretrain.common.distributed.rank", lambda rank=rank: rank)
        assert list(Batches(4, settings(), start=0, stop=1)) == [total[rank::2]]


def test_too_few_images_for_a_batch() -> None:
    with pytest.raises(UserError, match=r"SOLVER\.IMS_PER_BATCH 4 .* use SOLVER\.IMS_PER_BATCH 2"):
        iterations_per_epoch(3, settings())
    assert iterations_per_epoch(11, settings()) == 2


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_change_nothing(image_folder: Callable[..., Path], workers: int) -> None:
    files = find_images([str(image_folder(8))], key="DATA.TRAIN")
    plain = list(make_train_loader(files, settings(), start=0, stop=3, device=CPU))
    other = list(make_train_loader(files, settings(DATA__NUM_WORKERS=workers), start=0, stop=3, device=CPU))
    for batch, same in zip(plain, other, strict=True):
        assert batch.query.shape == (4, 16, 16, 3) and batch.query.dtype == torch.uint8
        assert batch.broken == [] and batch.choices.shape == (4, 2, 0)
        assert all(torch.equal(a, b) for a, b in zip(batch[:4], same[:4], strict=True))


def test_broken_images_are_replaced_and_counted(image_folder: Callable[..., Path]) -> None:
    folder = image_folder(8)
    (folder / "0003.jpg").write_bytes((folder / "0003.jpg").read_bytes()[:-200])  # truncated
    (folder / "0005.jpg").write_bytes(b"no image")
    files = find_images([str(folder)], key="DATA.TRAIN")
    pairs = ViewPairs(files, settings())
    assert pairs[0, 2].broken == [] and pairs[0, 3].broken == [3]
    assert pairs[0, 3].query.any()
    broken = Broken(files, 0.25, folder=folder / "out", resumed=False)
    for indices in ([3], [], [3, 5]):
        broken.add(indices)
        broken.share()
    broken.write()
    names = [str(folder / name) for name in ("0003.jpg", "0005.jpg")]
    assert (folder / "out" / FILE).read_text().splitlines() == names == broken.report()[1:]
    assert broken.report()[0].startswith("2 unreadable image(s) were replaced")
    broken.add([6])
    broken.share()
    assert broken.too_many
    with pytest.raises(
        UserError, match=rf"DATA\.MAX_BROKEN 0\.25: 3 of 8.*0003\.jpg among.*{FILE} lists them"
    ):
        broken.check()
    assert len((folder / "out" / FILE).read_text().splitlines()) == 3


def test_names_of_a_stopped_run_stay_listed(tmp_path: Path) -> None:
    files = ImageFiles([f"{i}.jpg" for i in range(100)])
    for resumed, index in ((False, 1), (True, 40), (False, 7)):
        broken = Broken(files, 0.5, folder=tmp_path, resumed=resumed)
        broken.add([index])
        broken.share()
        broken.write()
        listed = (tmp_path / FILE).read_text().split()
        assert listed == (["1.jpg", "40.jpg"] if resumed else [f"{index}.jpg"])
    Broken(files, 0.5, folder=tmp_path, resumed=False).write()
    assert not (tmp_path / FILE).exists()


def test_ten_names_at_the_end_and_names_that_are_no_text(tmp_path: Path) -> None:
    files = ImageFiles([os.fsdecode(b"%02d \xff\n\x1b[2J.jpg" % i) for i in range(30)])
    broken = Broken(files, 0.5, folder=tmp_path, resumed=False)
    broken.add(list(range(12)))
    broken.share()
    broken.write()
    report = broken.report()
    assert report[1] == r"00 \udcff\n\x1b[2J.jpg" and len(report) == 12 and report[-1] == "and 2 more"
    assert len((tmp_path / FILE).read_text().splitlines()) == 12
    assert printable("a ünïcode 照片.jpg") == "a ünïcode 照片.jpg"


def broken_worker(folder: str) -> None:
    distributed.init_from_env(CPU)
    broken = Broken(ImageFiles(["x"] * 20), 0.15, folder=Path(folder), resumed=False)
    for mine in [([1], [1, 2]), ([], [2]), ([7], [])]:  # for two processes, in three steps
        broken.add(mine[distributed.rank()])
        if any(distributed.any_process(bool(broken.new))):
            broken.share()
    assert broken.indices == {1, 2, 7}  # 3 of 20 are still allowed
    broken.check()
    broken.add([[], [9, 10]][distributed.rank()])
    broken.share()
    broken.check()


def test_two_processes_count_each_image_once(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"DATA\.MAX_BROKEN 0\.15: 5 of 20"):
        distributed.spawn(broken_worker, 2, (str(tmp_path),))


class _Unreadable(ImageFiles):
    """Files none of which can be read."""

    def read(self, index: int) -> bytes:
        raise OSError


@pytest.mark.parametrize("count", [1, 5, 16, 2 * 7919, 9000])
def test_replacements_are_all_different(count: int) -> None:
    sample = ViewPairs(_Unreadable(["x"] * count), settings())[0, count - 1]
    assert sample.broken[0] == count - 1 and not sample.query.any()
    assert len(sample.broken) == len(set(sample.broken)) == min(count, 16)


def test_too_few_file_handles_are_not_taken_for_broken_images(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(files: ImageFiles, index: int) -> bytes:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(_Unreadable, "read", refuse)
    with pytest.raises(OSError, match="Too many open files"):
        ViewPairs(_Unreadable(["x"] * 3), settings())[0, 1]


def test_sessions_of_a_run_share_a_limit(tmp_path: Path) -> None:
    """5 of 100 may be broken. An image that is found in both sessions counts once."""
    files = ImageFiles([f"{i}.jpg" for i in range(100)])

    def session(indices: list[int], *, resumed: bool = True) -> None:
        broken = Broken(files, 0.05, folder=tmp_path, resumed=resumed)
        broken.add(indices)
        broken.share()
        broken.check()
        broken.write()

    session([1, 2, 3], resumed=False)
    session([3, 4, 5])
    with pytest.raises(UserError, match=r"DATA\.MAX_BROKEN 0\.05: 6 of 100"):
        session([6])
    session([7])  # as if the others had been repaired
    assert (tmp_path / FILE).read_text() == "7.jpg\n"


def test_nothing_but_broken_images_stops_at_any_limit(tmp_path: Path) -> None:
    for n in range(4):
        (tmp_path / f"{n}.jpg").write_bytes(b"no image")
    files = find_images([str(tmp_path)], key="DATA.TRAIN")
    (batch,) = make_train_loader(files, settings(), start=0, stop=1, device=CPU)
    broken = Broken(files, 1.0, folder=tmp_path, resumed=False)
    broken.add(batch.broken)
    broken.share()
    with pytest.raises(UserError, match="4 of 4"):
        broken.check()


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


class _Names(ImageFiles):
    """Reads nothing from the disk, but looks up each name."""

    def read(self, index: int) -> bytes:
        return self[index].encode()


def private_megabytes(pid: int) -> float:
    """Return the memory of a process that it shares with no other."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) / 1024


@pytest.mark.parametrize("method", ["fork", "forkserver"])  # the latter is Python 3.14's
def test_workers_outlive_a_scheduler_and_end_with_their_process(
    image_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    loader = functools.partial(torch.utils.data.DataLoader, multiprocessing_context=method)
    monkeypatch.setattr(data_loader, "DataLoader", loader)
    files = find_images([str(image_folder(64))], key="DATA.TRAIN")
    cfg = settings(DATA__NUM_WORKERS=1, SOLVER__IMS_PER_BATCH=2)
    batches = make_train_loader(files, cfg, start=0, stop=30, device=CPU)
    next(batches)
    (worker,) = batches._workers  # type: ignore[attr-defined]
    try:
        for number in ("TERM", "USR1", "TERM"):
            subprocess.run(["/bin/sh", "-c", f"kill -{number} {worker.pid}"], check=True)
        assert len(list(itertools.islice(batches, 12))) == 12  # more than are prefetched
        worker.terminate()  # as an interpreter does when it exits
        worker.join(timeout=20)
        assert worker.exitcode == 0
    finally:
        worker.kill()


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="only Linux reports private memory")
def test_workers_do_not_grow_over_an_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    """400,000 names: as Python strings, some 40 MB, their reference counts would copy them all into each worker."""
    view, nothing = np.zeros((1, 1, 3), np.uint8), np.zeros((2, 0), np.float32)
    monkeypatch.setattr("pretrain.data.views.two_views", lambda *_, **__: (view, view, nothing))
    count, batch = 400_000, 1000
    files = _Names(f"datasets/imagenet/train/n{i % 1000:08}/n{i % 1000:08}_{i}.JPEG" for i in range(count))
    cfg = settings(DATA__NUM_WORKERS=2, SOLVER__IMS_PER_BATCH=batch, INPUT__SIZE=1)
    batches = make_train_loader(files, cfg, start=0, stop=count // batch, device=CPU)
    growth = {}
    try:
        for number in range(count // batch):
            next(batches)
            if number in (20, count // batch - 3):
                growth[number] = [private_megabytes(worker.pid) for worker in batches._workers]  # type: ignore[attr-defined]
    finally:
        batches._shutdown_workers()  # type: ignore[attr-defined]
    first, last = growth.values()
    print(f"private MB of the workers, early and at the end of the epoch: {first}, {last}")
    assert len(first) == 2 and max(b - a for a, b in zip(first, last, strict=True)) < 10
