"""What the tools print: any text on any terminal or pipe, and an error as one line."""

import io
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest

from pretrain.common.console import say
from pretrain.common.errors import SHOWN, UserError, brief, label, run_tool
from tests.support.scripts import ROOT

NAME = "photo-é-日本-\udcff.jpg"  # as os.fsdecode gives a name that is not UTF-8


def printed(
    monkeypatch: pytest.MonkeyPatch, encoding: str, main: Callable[[], None]
) -> tuple[int | str | None, list[bytes]]:
    buffers = [io.BytesIO(), io.BytesIO()]
    for name, buffer in zip(("stdout", "stderr"), buffers, strict=True):
        monkeypatch.setattr(sys, name, io.TextIOWrapper(buffer, encoding=encoding))
    with pytest.raises(SystemExit) as ended:
        run_tool(main, processes=True)
    sys.stdout.flush()
    sys.stderr.flush()
    return ended.value.code, [buffer.getvalue() for buffer in buffers]


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [
        ("ascii", rb"photo-\xe9-\u65e5\u672c-\udcff.jpg"),
        ("latin-1", b"photo-\xe9-\\u65e5\\u672c-\\udcff.jpg"),
        ("cp1252", b"photo-\xe9-\\u65e5\\u672c-\\udcff.jpg"),
        ("utf-8", "photo-é-日本-".encode() + rb"\udcff.jpg"),
    ],
)
def test_names_are_printed_on_any_terminal(
    monkeypatch: pytest.MonkeyPatch, encoding: str, shown: bytes
) -> None:
    def main() -> None:
        print(NAME)
        raise UserError(f"{NAME}: damaged")

    assert printed(monkeypatch, encoding, main) == (2, [shown + b"\n", b"error: " + shown + b": damaged\n"])


def test_nothing_that_is_printed_steers_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    name = "cat\x1b[2J\u202e\r\n\té"
    say(f"a {name} is seen")
    assert capsys.readouterr().out == "a cat\\x1b[2J\\u202e\\r\n\té is seen\n"

    def main() -> None:
        raise UserError(f"{name}: no such file")

    with pytest.raises(SystemExit):
        run_tool(main)
    assert capsys.readouterr().err == "error: cat\\x1b[2J\\u202e\\r\\n\\té: no such file\n"


def test_every_tool_prints_so() -> None:
    programs = [path for path in (ROOT / "transfer" / "programs").glob("*.py") if path.name != "__init__.py"]
    assert {path.name for path in (ROOT / "tools").glob("*.py")} == {
        "install_detectron2.py", *(path.name for path in programs),
    }  # fmt: skip
    for path in (*programs, ROOT / "transfer" / "install_detectron2.py"):
        text = path.read_text(encoding="utf-8")
        assert "run_tool(" in text or "reconfigure(errors=" in text, path


def test_a_tool_of_one_process_ends_before_it_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1"})
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with pytest.raises(SystemExit, match="2"):
        run_tool(lambda: pytest.fail("it has started"))
    assert "works in one process, and srun started 2" in sys.stderr.getvalue()  # type: ignore[attr-defined]


def _doubled(depth: int) -> list[Any]:
    value: list[Any] = [1]
    value.append(value)
    for _ in range(depth):
        value = [value, value]
    return value


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("3", "'3'"),
        (3, "3"),
        ([10, 2.5, "x", None], "[10, 2.5, 'x', None]"),
        (_doubled(60), "[..., ...]"),
        ({"a": _doubled(60)}, "a dict of 1 entries"),
        ("\x1b[31mred\n", "'\\x1b[31mred\\n'"),
        ("\ud800\u202e", "'\\ud800\\u202e'"),
        (b"\0x", "'\\x00x'"),
        (1 << 20_000, "an integer of 20001 bits"),
        (object(), "a object"),
    ],
    ids=lambda value: type(value).__name__,  # pytest prints integers
)
def test_untrusted_values_are_short_printable_text(value: Any, text: str) -> None:
    assert brief(value) == text


@pytest.mark.parametrize(
    "value", ["x" * 10**6, "\n" * 150, list(range(10**6)), ["\n" * 99] * 9, b"\xff" * 1000]
)
def test_long_untrusted_values_are_cut(value: Any) -> None:
    for shown in (label(value), brief(value), label(value, 40)):
        assert shown.isprintable() and len(shown) <= SHOWN
    assert len(label(value, 40)) <= 40


@pytest.mark.parametrize("raised", [KeyboardInterrupt, ImportError("numpy failed"), SystemError("x")])
def test_ctrl_c_is_one_line_whatever_a_library_makes_of_it(
    raised: BaseException, capsys: pytest.CaptureFixture[str]
) -> None:
    """An extension module that is interrupted while it is imported raises an error of its own."""

    def main() -> None:
        try:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(10)
        except KeyboardInterrupt:
            raise raised from None

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(SystemExit) as end:
            run_tool(main)
    finally:
        signal.signal(signal.SIGINT, before)
    assert end.value.code == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_an_error_without_ctrl_c_keeps_its_traceback() -> None:
    before = signal.getsignal(signal.SIGINT)
    try:
        with pytest.raises(SystemError):
            run_tool(lambda: (_ for _ in ()).throw(SystemError("a bug")))
    finally:
        signal.signal(signal.SIGINT, before)
