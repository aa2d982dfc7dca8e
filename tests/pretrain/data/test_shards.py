"""Tar shards: written by the `webdataset` library and by tar itself; damage, order and exact resuming."""

import collections
import gzip
import io
import json
import os
import pickle
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset

from pretrain import config
from pretrain.common.errors import UserError
from pretrain.common.files import write_atomic
from pretrain.data import shards, sources, tar_index
from pretrain.data.loader import ViewPairs, make_train_loader
from pretrain.data.shards import BLOCK, BlockOrder
from pretrain.tensor_files import checkpoint
from pretrain.train.loop import train
from tests.support.fuzzing.fuzz_tar import entry, header, pax

MakeFolder = Callable[..., Path]
FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}


@pytest.fixture(autouse=True)
def no_cache_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def write_shards(folder: Path, images: Path, *, each: int) -> str:
    """Write shards with webdataset's own writer, with labels and texts next to the images. Returns their pattern."""
    folder.mkdir(exist_ok=True)
    with webdataset.ShardWriter(str(folder / "train-%06d.tar"), maxcount=each, verbose=0) as writer:
        for path in sorted(images.rglob("*.jpg")):
            writer.write(
                {"__key__": f"some/{path.stem}", "jpg": path.read_bytes(), "cls": 3, "json": {"x": [1]}}
            )
    return str(folder / "*.tar")


def write_tar(path: Path, members: dict[str, bytes], *, format: int = tarfile.USTAR_FORMAT) -> Path:
    with tarfile.open(path, "w", format=format) as archive:
        for name, contents in members.items():
            member = tarfile.TarInfo(name)
            member.size, member.mtime = len(contents), 1.5  # type: ignore[assignment]  # a pax header for each
            archive.addfile(member, io.BytesIO(contents))
    return path


def contents(source: str) -> list[bytes]:
    files = sources.find([source])
    return [files.read(index) for index in range(len(files))]


def test_what_webdataset_writes_and_reads(image_folder: MakeFolder, tmp_path: Path) -> None:
    pattern = write_shards(tmp_path / "shards", image_folder(23), each=5)
    paths = sorted(map(str, (tmp_path / "shards").glob("*.tar")))
    assert len(paths) == 5
    theirs = [sample["jpg"] for sample in webdataset.WebDataset(paths, shardshuffle=False)]
    assert contents(pattern) == theirs and len(theirs) == 23
    assert contents(str(tmp_path / "shards" / "train-{000000..000004}.tar")) == theirs
    assert contents(paths[1]) == theirs[5:10]
    files = sources.find([pattern])
    assert files[7] == f"{paths[1]}: some/0007.jpg"
    assert collections.Counter(files.read(int(i)) for i in files.order(0, 0)[:23]) == collections.Counter(
        theirs
    )


@pytest.mark.parametrize("kind", FORMATS)
def test_long_names_in_every_dialect(tmp_path: Path, kind: str) -> None:
    members = {
        f"{'deep/' * (40 if kind != 'ustar' else 20)}{i:03}ü.JPG": bytes([i]) * (i * 300) for i in range(9)
    }
    path = write_tar(
        tmp_path / "x.tar", {**members, "a.txt": b"text", "._0.jpg": b"resource fork"}, format=FORMATS[kind]
    )
    files = sources.find([str(path)])
    assert [files[i] for i in range(len(files))] == [f"{path}: {name}" for name in members]
    assert [files.read(i) for i in range(len(files))] == list(members.values())


def test_shards_by_tar_itself(image_folder: MakeFolder, tmp_path: Path) -> None:
    folder = image_folder(6, classes=("a", "b"))
    subprocess.run(["tar", "cf", tmp_path / "x.tar", "-C", folder, "."], check=True)
    assert sorted(contents(str(tmp_path / "x.tar"))) == sorted(
        path.read_bytes() for path in folder.rglob("*.jpg")
    )


def test_links_and_devices_are_never_followed(tmp_path: Path) -> None:
    secret = tmp_path / "secret.jpg"
    secret.write_bytes(b"secret")
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        for name, kind in [("soft.jpg", tarfile.SYMTYPE), ("hard.jpg", tarfile.LNKTYPE), ("pipe.jpg", tarfile.FIFOTYPE),
                           ("device.jpg", tarfile.CHRTYPE), ("folder.jpg", tarfile.DIRTYPE)]:  # fmt: skip
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, str(secret)
            archive.addfile(member)
        member = tarfile.TarInfo("../../real.jpg")
        member.size = 4
        archive.addfile(member, io.BytesIO(b"real"))
    assert contents(str(tmp_path / "x.tar")) == [b"real"]


def test_damaged_shards_are_named(tmp_path: Path) -> None:
    whole = write_tar(
        tmp_path / "whole.tar", {f"{i}.jpg": bytes([65 + i]) * 1000 for i in range(20)}
    ).read_bytes()
    header = 512 + 1024  # of the second member
    damages = {
        "inside a member": whole[:5000],
        "between two members": whole[: 3 * header],
        "inside a header": whole[: 3 * header + 100],
        "a changed header": whole[: header + 3] + b"!" + whole[header + 4 :],
        "a hole of zeros": whole[:header] + bytes(3 * header) + whole[4 * header :],
        "two archives in one": whole + whole,
        "a negative size": whole[: header + 124] + b"\xff" * 12 + whole[header + 136 :],
        "no archive": b"no archive" * 200,
        "nothing": b"",
    }
    for what, damaged in damages.items():
        path = tmp_path / "x.tar"
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"x\.tar: a truncated or damaged tar shard") as caught:
            print(what, len(sources.find([str(path)])))
        assert "\n" not in str(caught.value)
    (tmp_path / "x.tar").write_bytes(gzip.compress(whole))
    with pytest.raises(UserError, match=r"x\.tar: is compressed by gzip: unpack it"):
        sources.find([str(tmp_path / "x.tar")])


def test_shards_that_are_built_wrong_end_in_one_line(tmp_path: Path) -> None:
    """Each made tarfile itself fail with a traceback, never end, or need minutes and gigabytes."""
    long, image = entry(header(b"L", 9, b"././@LongLink"), b"other.jpg"), header(b"0", 0, b"a.jpg")
    sparse = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "a.jpg"}
    extended = (b"%011o\0" % 1 * 42 + b"\1").ljust(512, b"\1")
    for what, blocks in {
        "chained long names": long * 1000 + image,
        "chained pax headers": pax({"path": "b.jpg"}) * 1000 + image,
        "a zero byte in a name": pax({"path": "a\0b.jpg"}) + image,
        "a name of 5000 characters": pax({"path": "a" * 5000 + ".jpg"}) + image,
        "a size of 2^87": header(b"0", b"\x80" + (1 << 87).to_bytes(11, "big"), b"a.jpg"),
        "a long name of 2^87 bytes": header(b"L", b"\x80" + (1 << 87).to_bytes(11, "big"), b"a.jpg"),
        "a long name of 2^40 bytes": header(b"L", b"\x80" + (1 << 40).to_bytes(11, "big"), b"a.jpg"),
        "a long name of -512 bytes": header(b"L", b"\xff" * 10 + b"\xfe\0", b"a.jpg") + image,
        "a sparse map without an end": pax(sparse) + entry(header(b"0", 9, b"a.jpg"), b"99999999\n"),
        "sparse headers without an end": header(b"S", 0, b"a.jpg", tail=bytes(96) + b"\1") + extended * 5000,
        "sparse numbers": pax({"GNU.sparse.map": "x" * 9000}) + image,
        "digits": entry(header(b"x", 1 << 20, b"pax"), b"9" * (1 << 20)) + image,
        "digits in 60 KB": entry(header(b"x", 60_000, b"pax"), b"9" * 60_000) + image,
        "global headers": b"".join(
            pax({f"k{i}.{j}": "" for j in range(9)}, b"g") + image for i in range(200)
        ),
    }.items():
        path = tmp_path / "x.tar"
        path.write_bytes(blocks + bytes(1024))
        with pytest.raises(UserError, match=r"x\.tar: a truncated or damaged tar shard: ") as caught:
            print(what, len(sources.find([str(path)])))
        assert str(caught.value).isprintable() and len(str(caught.value)) < 400 + len(str(path)), what


def test_names_that_begin_like_a_compressed_file_or_are_not_text(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(
        b"".join(
            entry(header(b"0", 2, name), b"ab") for name in (b"BZ1.jpg", b"BZh.jpg", b"\xff\xed\xa0.jpg")
        )
        + bytes(1024)
    )
    assert contents(str(tmp_path / "x.tar")) == [b"ab"] * 3


def test_sources_that_cannot_be_used(tmp_path: Path) -> None:
    write_tar(tmp_path / "a-00.tar", {"1.jpg": b"x"})
    write_tar(tmp_path / "a-02.tar", {"1.jpg": b"x"})
    write_tar(tmp_path / "texts.tar", {"1.txt": b"x"})
    (tmp_path / "a.tar.gz").write_bytes(b"")
    for source, words in [
        ("a-{00..02}.tar", r"no such shard: .*a-01\.tar \(of .*a-\{00\.\.02\}\.tar\)"),
        ("a-{02..00}.tar", r"the range \{02\.\.00\} is empty; write \{00\.\.02\}"),
        ("b-*.tar", r"no shard matches .*b-\*\.tar"),
        ("b.tar", r"no such shard: .*b\.tar"),
        ("a.tar.gz", r"a\.tar\.gz is compressed: unpack it"),
        ("texts.tar", r"no image in .*texts\.tar"),
    ]:
        with pytest.raises(UserError, match=f"^DATA\\.TRAIN: .*{words}") as caught:
            sources.find([str(tmp_path / source)])
        assert "\n" not in str(caught.value)


def test_ranges() -> None:
    assert list(sources._expanded("a{8..11}-{00..01}.tar"))[:3] == ["a8-00.tar", "a8-01.tar", "a9-00.tar"]
    assert list(sources._expanded("a{098..101}.tar")) == ["a098.tar", "a099.tar", "a100.tar", "a101.tar"]
    for pattern in ("x-{000..012}.tar", "{1..3}/{7..12}.tar", "plain.tar"):
        assert list(sources._expanded(pattern)) == list(webdataset.shardlists.expand_urls(pattern))


def test_index_is_kept_and_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_tar(tmp_path / "x.tar", {"1.jpg": b"one", "2.jpg": b"two"})
    scans = []
    scan = tar_index._scan
    monkeypatch.setattr(tar_index, "_scan", lambda *given: scans.append(given) or scan(*given))
    assert contents(str(path)) == contents(str(path)) == [b"one", b"two"] and len(scans) == 1
    (kept,) = tmp_path.rglob("x.tar.index")
    kept.write_bytes(kept.read_bytes()[:-9])  # not completely written
    assert contents(str(path)) == [b"one", b"two"] and len(scans) == 2
    rows = np.fromfile(kept, np.int64)
    rows[5] = 1 << 40  # the first image's size, wrong or hostile
    rows.tofile(kept)
    assert contents(str(path)) == [b"one", b"two"] and len(scans) == 3
    kept.write_bytes(b"")
    assert contents(str(path)) == [b"one", b"two"] and len(scans) == 4
    write_tar(path, {"3.jpg": b"three"})
    os.utime(path, ns=(1, 1))
    assert contents(str(path)) == [b"three"] and len(scans) == 5


def test_index_goes_where_it_may_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_tar(tmp_path / "x.tar", {"1.jpg": b"one"})
    write = write_atomic

    def guarded(target: Path, how: Callable[..., object]) -> None:
        if target.parent.name == ".image_index" or not writable:
            raise UserError("no permission")
        write(target, how)

    monkeypatch.setattr(tar_index, "write_atomic", guarded)
    writable = False
    assert contents(str(path)) == [b"one"] and not list(tmp_path.rglob("*.index"))
    writable = True
    assert contents(str(path)) == [b"one"] and len(list((tmp_path / "cache").rglob("x.tar.index"))) == 1


def test_sizes_json_spares_the_headers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [
        write_tar(tmp_path / f"{i}.tar", {f"{j}.jpg": bytes([i, j]) for j in range(i + 1)}) for i in range(3)
    ]
    sizes = tmp_path / "sizes.json"
    sizes.write_text(json.dumps({f"{i}.tar": i + 1 for i in range(3)}))
    with monkeypatch.context() as patch:
        patch.setattr(tar_index, "stored", None)  # no shard is opened
        files = sources.find([str(tmp_path / "*.tar")])
        assert len(files) == 6
    assert [files.read(i) for i in range(6)] == [bytes([i, j]) for i in range(3) for j in range(i + 1)]
    sizes.write_text(json.dumps({"1.tar": 9}))  # wrong, and without the other shards
    files = sources.find([str(tmp_path / "*.tar")])
    assert len(files) == 1 + 9 + 3
    with pytest.raises(UserError, match=r"1\.tar: holds 2 images, and 9 are expected: sizes\.json"):
        ViewPairs(files, settings())[0, 5]
    for wrong in ("[1]", '{"0.tar": -1}', '{"0.tar": "1"}', "{", "[" * 100_000):
        sizes.write_text(wrong)
        with pytest.raises(UserError, match=r"sizes\.json: .*fix or remove it"):
            sources.find([str(paths[0])])


def settings(*overrides: object) -> config.CfgNode:
    cfg = config.defaults()
    cfg.merge_from_list(["INPUT.SIZE", 16, "SOLVER.IMS_PER_BATCH", 4, "DATA.NUM_WORKERS", 0, *overrides])
    return cfg


def test_a_shard_damaged_since_stops_the_run(image_folder: MakeFolder, tmp_path: Path) -> None:
    """The images are not replaced one after another, in worker processes either."""
    pattern = write_shards(tmp_path / "shards", image_folder(8), each=8)
    path = tmp_path / "shards" / "train-000000.tar"
    whole = path.read_bytes()
    for workers in (0, 1):
        files = sources.find([pattern])
        path.write_bytes(whole[:3000])
        cfg = settings("DATA.NUM_WORKERS", workers)
        batches = make_train_loader(files, cfg, start=0, stop=2, device=torch.device("cpu"))
        with pytest.raises(UserError, match=r"train-000000\.tar: a truncated or damaged"):
            next(batches)
        getattr(batches, "_shutdown_workers", lambda: None)()
        path.write_bytes(whole)


@pytest.mark.parametrize("number", [1, 5, BLOCK, BLOCK + 1, 5 * BLOCK, 5 * BLOCK - 3])
def test_block_order(number: int) -> None:
    counts = np.random.default_rng(number).integers(0, 9, number)
    counts[number // 2] = 7
    order, total = BlockOrder(counts, 3, 1), int(counts.sum())
    whole = order[:total]
    assert sorted(whole) == list(range(total))
    for start in range(0, total, 5):  # any part alone, from a new order
        assert np.array_equal(BlockOrder(counts, 3, 1)[start : start + 5], whole[start : start + 5])
    assert np.array_equal(order[0:total], whole) and len(order[total:]) == 0
    if total > 20:
        assert not np.array_equal(BlockOrder(counts, 3, 2)[:total], whole)
        assert not np.array_equal(BlockOrder(counts, 4, 1)[:total], whole)
    shard = np.repeat(np.arange(number), counts)[whole]
    firsts = [int(np.flatnonzero(shard == s)[0]) for s in np.unique(shard)]
    lasts = [int(np.flatnonzero(shard == s)[-1]) for s in np.unique(shard)]
    alive = [sum(f <= p <= e for f, e in zip(firsts, lasts, strict=True)) for p in range(total)]
    assert max(alive) <= BLOCK  # never more shards in use than one block has


def test_order_is_uniform_enough() -> None:
    """Over seeds, an image is equally likely in every place: the mean of 2000 uniform places has deviation 0.0065."""
    counts = np.array([4] * 40)
    places = np.zeros(160)
    for seed in range(2000):
        places[BlockOrder(counts, seed, 0)[:160]] += np.arange(160) / 159
    assert abs(places / 2000 - 0.5).max() < 5 * 0.0065


def test_files_and_shards_together(image_folder: MakeFolder, tmp_path: Path) -> None:
    folder = image_folder(7)
    pattern = write_shards(tmp_path / "shards", image_folder(20, seed=1), each=4)
    files = sources.find([pattern, str(folder)])
    assert len(files) == 27 and files[0] == str(folder / "0000.jpg") and files[26].endswith(": some/0019.jpg")
    everything = [files.read(i) for i in range(27)]
    assert sorted(everything) == sorted([*contents(str(folder)), *contents(pattern)])
    whole = files.order(0, 0)[:27]
    assert sorted(whole) == list(range(27))
    for start in range(27):
        assert np.array_equal(files.order(0, 0)[start : start + 4], whole[start : start + 4])
    share = np.cumsum(whole < 7) - np.arange(1, 28) * 7 / 27
    assert abs(share).max() <= 1  # each part of the epoch has its share of both


def test_sources_travel_to_spawned_workers(image_folder: MakeFolder, tmp_path: Path) -> None:
    files = sources.find([write_shards(tmp_path / "shards", image_folder(5), each=2), str(image_folder(1))])
    again = pickle.loads(pickle.dumps(files))
    assert [again.read(i) for i in range(6)] == [files.read(i) for i in range(6)]


def test_few_shards_are_open_and_little_is_kept(tmp_path: Path) -> None:
    """An order's memory does not grow with the number of images, nor open files with the number of shards."""
    counts = {}
    for size in (10, 100_000):
        shard = np.full(200, size)
        order = BlockOrder(shard, 0, 0)
        order[: size * 3]
        counts[size] = (
            sum(v.nbytes for v in vars(order).values() if isinstance(v, np.ndarray)) - order._images.nbytes
        )
        assert len(order._images) == BLOCK * size
    assert counts[10] == counts[100_000]
    for i in range(3 * BLOCK + 5):
        write_tar(tmp_path / f"{i:03}.tar", {"1.jpg": bytes([i])})
    before = len(os.listdir("/proc/self/fd"))
    assert contents(str(tmp_path / "*.tar")) == [bytes([i]) for i in range(3 * BLOCK + 5)]
    assert len(os.listdir("/proc/self/fd")) - before <= 4 * BLOCK + 1
    shards._opened.cache_clear()


SMALL = [
    "MODEL.ARCH", "resnet18", "MODEL.WIDTH", "0.125", "MODEL.DIM", "16", "MODEL.BN_GROUP_SIZE", "4", "MOCO.K", "100",
    "INPUT.SIZE", "32", "DATA.NUM_WORKERS", "1", "SOLVER.IMS_PER_BATCH", "8", "SOLVER.AMP", "off", "DEVICE", "cpu",
]  # fmt: skip


def test_resume_from_shards_is_bit_equal(image_folder: MakeFolder, tmp_path: Path) -> None:
    """The run is stopped inside the second epoch, with more shards than one block."""
    pattern = write_shards(tmp_path / "shards", image_folder(3 * BLOCK), each=2)
    assert len(list((tmp_path / "shards").glob("*.tar"))) > BLOCK

    def run(output: str, iterations: int, *, resume: bool = False) -> dict[str, torch.Tensor]:
        overrides = [
            *SMALL,
            "DATA.TRAIN",
            pattern,
            "OUTPUT_DIR",
            str(tmp_path / output),
            "SOLVER.MAX_ITER",
            str(iterations),
        ]
        train(config.load("pretrain/moco_v2_R50.yaml", overrides), resume=resume)
        return checkpoint.load(tmp_path / output / "checkpoint_last.pth.tar")["state_dict"]

    whole = run("whole", 11)
    run("parts", 8)
    parts = run("parts", 11, resume=True)
    assert whole.keys() == parts.keys() and all(
        torch.equal(value, parts[name]) for name, value in whole.items()
    )
