"""Files that are not what their name says: pipes, devices, too much, too deep; and copies that share nothing."""

import json
import os
from pathlib import Path

import pytest

from pretrain.common import files
from pretrain.common.errors import UserError
from pretrain.common.files import load_json, parse_json, read_json, read_regular


def test_only_regular_files_are_read_and_only_so_much_of_them(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").write_bytes(b"abc")
    (tmp_path / "link").symlink_to("file")
    for path, words in (
        (Path("/dev/zero"), "is not a regular file"),
        (tmp_path / "pipe", "is not a regular file"),
        (tmp_path, "is not a regular file"),
        (tmp_path / "absent", "no such file"),
        (tmp_path / "zero\0byte", "cannot be read"),
    ):
        with pytest.raises(UserError, match=words):
            read_regular(path, most=3)
    assert read_regular(tmp_path / "link", most=3) == b"abc"
    with pytest.raises(UserError, match="has more than 2 bytes"):
        read_regular(tmp_path / "file", most=2)
    with open(tmp_path / "file", "wb") as file:
        file.truncate(1 << 40)  # without taking any space
    with pytest.raises(UserError, match="has more than 8589934592 bytes"):
        load_json(tmp_path / "file")


@pytest.mark.parametrize(
    "text",
    ["", "{", "[" * 65 + "]" * 65, '{"a": ' * 65 + "1" + "}" * 65, "[" * 100_000, "9" * 5000, "\xff\xfe"],
)
def test_json_that_is_not_read(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=r"a\.json: not a complete JSON file: ") as caught:
        load_json(tmp_path / "a.json")
    assert str(caught.value).isprintable() and len(str(caught.value)) < 300 + len(str(tmp_path))
    assert read_json(tmp_path / "a.json") == {}


def test_json_that_is_read(tmp_path: Path) -> None:
    deep: object = 1.5
    for level in range(64):
        deep = [deep, "x"] if level % 2 else {"a": deep, "b": 0}
    assert parse_json(json.dumps(deep)) == deep
    for text in ("3", '"a"', "null", "[[], {}]"):
        assert parse_json(text) == json.loads(text)


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
