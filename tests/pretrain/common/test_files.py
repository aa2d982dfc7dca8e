"""Reading files that are not what their name says: pipes, devices, too much, too deep."""

import json
import os
from pathlib import Path

import pytest

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
