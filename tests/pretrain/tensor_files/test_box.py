"""The box holds whatever runs in it, and what comes out of it is what torch reads."""

import json
import struct
import time
import zipfile
from pathlib import Path

import pytest
import torch

from pretrain.common.errors import UserError
from pretrain.tensor_files import box, checkpoint
from tests.support.fuzzing.hostile import bombs, call, name, text

BEGIN = (
    "import os, sys; sys.path.append(sys.argv.pop(1)); from pretrain.tensor_files import inside; "
    "inside.limit(*map(int, sys.argv[3:5])); "
)


def in_the_box(path: Path, monkeypatch: pytest.MonkeyPatch, program: str) -> str:
    """Run a program in place of the reader; return the refusal."""
    checkpoint.save(path, {"x": torch.ones(3)})
    monkeypatch.setattr(box, "_START", BEGIN + program)
    monkeypatch.setattr(box, "limits", lambda _: (100 << 20, 1, 20))
    began = time.monotonic()
    with pytest.raises(UserError) as error:
        checkpoint.load(path)
    assert time.monotonic() - began < 20
    message = str(error.value)
    assert (
        message.startswith(f"{path}: reading it ")
        and message.isprintable()
        and "nothing was written" in message
    )
    return message


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("exec('while True: pass')", "took more than 1 s"),
        ("inside.read = lambda *_: bytearray(200 << 20); inside.main()", "needed more than 0.1 GB of memory"),
        ("os.kill(os.getpid(), 11)", "crashed the reader"),
        ("os.kill(os.getpid(), 9)", "memory is full"),
        ("os._exit(0 if os.fork() == 0 else 7)", "crashed the reader (status 7)"),
    ],
)
def test_a_reader_that_hangs_swells_or_crashes_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str, words: str
) -> None:
    assert words in in_the_box(tmp_path / "a.pth", monkeypatch, program)


@pytest.mark.parametrize(
    "attempt",
    [
        "open('harmed', 'w')",
        "open('/proc/self/mem', 'rb')",
        "os.mkfifo('/dev/null/x')",
        "exec('import socket; socket.socket()')",
        'exec(\'import subprocess; subprocess.run(["touch", "harmed"])\')',
        "os.pipe()",
    ],
)
def test_nothing_can_be_opened_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, attempt: str) -> None:
    monkeypatch.chdir(tmp_path)
    in_the_box(tmp_path / "a.pth", monkeypatch, attempt)
    assert [path.name for path in tmp_path.iterdir()] == ["a.pth"]


def test_a_temporary_folder_without_room_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint.save(tmp_path / "a.pth", {"x": torch.ones(3)})
    monkeypatch.setattr(box, "_START", BEGIN + "os._exit(inside.DISK)")
    with pytest.raises(UserError, match="No space left on device; set TMPDIR"):
        checkpoint.load(tmp_path / "a.pth")
    monkeypatch.setattr(box.tempfile, "tempdir", str(tmp_path / "none"))
    with pytest.raises(UserError, match=r"temporary file in .*none: No such file or directory; set TMPDIR"):
        checkpoint.load(tmp_path / "a.pth")


def torch_file(path: Path, pickled: bytes, data: bytes = bytes(64)) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", b"\x80\x02" + pickled + b".")
        archive.writestr("a/data/0", data)
    return path


def megabyte_times(count: int, function: bytes) -> bytes:
    """A text of one megabyte as the argument of as many calls, all of whose results are kept."""
    keep = b"X" + struct.pack("<I", 1 << 20) + b"x" * (1 << 20) + b"q\x00"
    return b"(" + keep + b"0" + (function + b"h\x00" + text("latin1") + b"\x86R") * count + b"l"


def test_work_on_memoised_arguments_does_not_fill_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A megabyte of file makes two thousand of objects."""
    path = torch_file(tmp_path / "a.pth", megabyte_times(2000, name("_codecs", "encode")))
    with pytest.raises(UserError, match=r"needed more than 0\.5 GB of memory|too much in addition"):
        checkpoint.load(path)


@pytest.mark.parametrize("kind", ["quint8", "qint8", "qint32", "quint4x2", "bits8", "float8_e8m0fnu"])
def test_storages_of_kinds_without_numbers_are_stand_ins(tmp_path: Path, kind: str) -> None:
    storage = b"(" + text("storage") + name("torch", kind) + text("0") + text("cpu") + b"K\x10tQ"
    tensor = call(name("torch._utils", "_rebuild_tensor_v2"), storage, b"K\x00", b"K\x10\x85", b"K\x01\x85")
    contents = checkpoint.load(torch_file(tmp_path / "a.pth", b"}" + text("x") + tensor + b"s"))
    assert contents["x"] == {} and contents["x"].name == f"torch.{kind}"


@pytest.mark.parametrize("attack", ["nested key", "doubled key", "memo index", "huge bytes", "many objects"])
def test_bombs_end_in_one_line(tmp_path: Path, attack: str) -> None:
    path = torch_file(tmp_path / "a.pth", b"(" + bombs()[attack] + b"l")
    try:
        checkpoint.load(path)
    except UserError as error:
        assert str(error).startswith(f"{path}: ") and str(error).isprintable()
    else:
        assert attack in ("memo index", "many objects")


def test_shared_memory_and_strides_come_back_as_torch_reads_them(tmp_path: Path) -> None:
    whole = torch.arange(24.0)
    image = torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)
    contents = {
        "whole": whole,
        "part": whole[4:10].view(2, 3).T,
        "every other": whole[::2],
        "one": torch.ones(1).expand(3, 3),
        "image": image,
        "flat": image.permute(0, 2, 3, 1).reshape(-1),
        "complex": torch.tensor([1 + 2j, 3]),
        "empty": torch.zeros(3, 0, 2),
    }
    for old in (False, True):
        torch.save(contents, tmp_path / "a.pth", _use_new_zipfile_serialization=not old)
        ours = checkpoint.load(tmp_path / "a.pth")
        theirs = torch.load(tmp_path / "a.pth", weights_only=True)
        for key, expected in theirs.items():
            assert torch.equal(ours[key], expected) and ours[key].dtype == expected.dtype
            assert ours[key].stride() == expected.stride() or not expected.numel()
        ours["whole"].zero_()
        assert not ours["part"].any() and not ours["every other"].any()


def test_numbers_of_every_size_come_back(tmp_path: Path) -> None:
    contents = {
        "x": [2**600, -(2**600), 1e-310, float("inf"), True, None, b"\x00\xff", "\ud800", (), {}, [[]]],
        -3: {(1, "a"): 2},
    }
    torch.save(contents, tmp_path / "a.pth")
    assert checkpoint.load(tmp_path / "a.pth") == contents
    torch.save({"x": 1 << 5000}, tmp_path / "a.pth")
    with pytest.raises(UserError, match="an integer of 5001 bits"):
        checkpoint.load(tmp_path / "a.pth")


def test_two_keys_of_one_foreign_class_stay_two(tmp_path: Path) -> None:
    pickled = b"}(" + (call(name("a", "B")) + b"K\x01") * 2 + b"u"
    assert json.dumps(checkpoint.load(torch_file(tmp_path / "a.pth", pickled))) == '{"a.B#0": 1, "a.B#1": 1}'
