"""Copies of files that share nothing with their source."""

import os
from pathlib import Path

import pytest

from pretrain.common import files
from pretrain.common.errors import UserError

CONTENT = bytes(range(256)) * 5000


@pytest.mark.parametrize("kind", ["whole", "no such call", "ends early", "fails half-way"])
def test_a_copy_is_independent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """Also where the system cannot copy in the kernel, or only a part."""
    calls = []

    def limited(source: int, target: int, _: int) -> int:
        calls.append(1)
        if kind == "no such call" or (kind == "fails half-way" and len(calls) > 3):
            raise OSError(38, "Function not implemented")
        if kind == "ends early" and len(calls) > 3:
            return 0
        return os.write(target, os.read(source, 1000))

    if kind != "whole":
        monkeypatch.setattr(os, "copy_file_range", limited, raising=False)
    one, other = tmp_path / "one", tmp_path / "other"
    one.write_bytes(CONTENT)
    other.write_bytes(b"old")
    files.copy(one, other)
    assert other.read_bytes() == CONTENT and sorted(tmp_path.iterdir()) == [one, other]
    other.write_bytes(b"new")
    assert one.read_bytes() == CONTENT
    assert bool(calls) == (kind != "whole")


def test_a_copy_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "old").write_bytes(b"old")
    with pytest.raises(UserError, match="none: cannot be read: No such file"):
        files.copy(tmp_path / "none", tmp_path / "old")
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match="folder: cannot be written: Is a directory"):
        files.copy(tmp_path / "old", tmp_path / "folder")
    assert (tmp_path / "old").read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 2
