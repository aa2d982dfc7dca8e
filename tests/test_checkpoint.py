"""Checkpoint files: nothing in them is executed, nothing is half-written."""

import argparse
import contextlib
import os
import pickle
from collections import defaultdict
from pathlib import Path
from typing import IO

import pytest
import torch

from pretrain import checkpoint
from pretrain.errors import UserError


class Trap:
    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple:
        return os.system, (self.command,)


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
    assert isinstance(contents["args"], checkpoint.Opaque) and not hasattr(contents["args"], "lr")
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
        checkpoint.write_atomic(path, dies)
    assert checkpoint.load(path) == {"n": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["file.pth"]


def test_a_place_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    for path in (tmp_path / "file" / "x.pth", tmp_path):
        with pytest.raises(UserError, match="cannot be written"):
            checkpoint.save(path, {"a": 1})
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_objects_that_are_not_read_safely_do_not_bring_advice_to_run_them(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    torch.save({"x": defaultdict(list, a=[1])}, path)
    with pytest.raises(UserError, match="save the model's state_dict alone") as caught:
        checkpoint.load(path)
    assert "weights_only" not in str(caught.value)
