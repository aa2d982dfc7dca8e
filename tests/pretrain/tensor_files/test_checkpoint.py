"""Checkpoint files: no code in them is executed, and no file is incomplete."""

import argparse
import contextlib
import pickle
from collections import defaultdict
from pathlib import Path
from typing import IO, Any

import pytest
import torch

from pretrain.common.errors import UserError
from pretrain.common.files import write_atomic
from pretrain.tensor_files import checkpoint
from pretrain.tensor_files.box import Opaque
from tests.support.fuzzing.hostile import Trap


@pytest.mark.parametrize("legacy", [False, True])
def test_code_in_a_file_is_not_run(tmp_path: Path, legacy: bool) -> None:
    path, ran = tmp_path / "trap.pth", tmp_path / "ran"
    torch.save({"state_dict": {}, "x": Trap(f"touch {ran}")}, path, _use_new_zipfile_serialization=not legacy)
    with contextlib.suppress(UserError):
        checkpoint.load(path)
    assert not ran.exists()


def test_a_bare_pickle_is_not_run(tmp_path: Path) -> None:
    path, ran = tmp_path / "trap.pkl", tmp_path / "ran"
    path.write_bytes(pickle.dumps(Trap(f"touch {ran}")))
    with pytest.raises(UserError, match=r"trap\.pkl"):
        checkpoint.load(path)
    assert not ran.exists()


def test_foreign_objects_become_inert(tmp_path: Path) -> None:
    path = tmp_path / "foreign.pth"
    torch.save({"args": argparse.Namespace(lr=1, name="x"), "state_dict": {"w": torch.ones(2)}}, path)
    replaced: list[str] = []
    contents = checkpoint.load(path, opaque=replaced)
    assert isinstance(contents["args"], Opaque) and not hasattr(contents["args"], "lr")
    assert replaced == ["argparse.Namespace"]
    assert torch.equal(contents["state_dict"]["w"], torch.ones(2))


def test_round_trip(tmp_path: Path) -> None:
    contents = {"a": torch.arange(5), "b": {"c": [1, 2.5, "x", (3, None)]}, "flag": True}
    checkpoint.save(tmp_path / "new" / "file.pth", contents)
    loaded = checkpoint.load(tmp_path / "new" / "file.pth")
    assert torch.equal(loaded.pop("a"), contents.pop("a")) and loaded == contents


def test_damaged_and_missing_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "last.pth"
    with pytest.raises(UserError, match="no such"):
        checkpoint.load(path)
    checkpoint.save(path, {"w": torch.randn(1000)})
    whole = path.read_bytes()
    for length in (0, 1, 100, len(whole) // 2, len(whole) - 10):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match=r"last\.pth") as error:
            checkpoint.load(path)
        assert "\n" not in str(error.value)


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file.pth"
    checkpoint.save(path, {"n": 1})

    def dies(file: IO[bytes]) -> None:
        file.write(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomic(path, dies)
    assert checkpoint.load(path) == {"n": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["file.pth"]


def test_a_place_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    for path in (tmp_path / "file" / "x.pth", tmp_path):
        with pytest.raises(UserError, match="cannot be written"):
            checkpoint.save(path, {"a": 1})
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_dicts_of_other_classes_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    torch.save({"x": defaultdict(list, a=[1])}, path)
    assert checkpoint.load(path) == {"x": {"a": [1]}}


def test_it_reads_what_torch_reads(tmp_path: Path) -> None:
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4)).to(torch.float64)
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.1)
    net(torch.rand(2, 3, 8, 8, dtype=torch.float64)).sum().backward()
    optimizer.step()
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    scaler.scale(torch.ones(()))
    contents = {
        "model": net.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scaler": scaler.state_dict(),
        "odd": [
            torch.arange(6).view(2, 3).T,
            torch.zeros(0),
            torch.tensor(True),
            torch.ones(2, dtype=torch.bfloat16),
        ],
        3: (None, True, -1.5, 10**20, b"x", "ü"),
    }
    checkpoint.save(tmp_path / "a.pth", contents)
    ours, theirs = checkpoint.load(tmp_path / "a.pth"), torch.load(tmp_path / "a.pth", weights_only=True)
    same(ours, theirs)
    same(ours, contents)


def same(a: Any, b: Any) -> None:
    """Assert equal values, element types and container types."""
    if isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype and torch.equal(a, b) and a.stride() == b.stride()
    elif isinstance(a, dict):
        assert list(a) == list(b)
        for key in a:
            same(a[key], b[key])
    elif isinstance(a, list | tuple):
        assert type(a) is type(b) and len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            same(x, y)
    else:
        assert type(a) is type(b) and a == b
