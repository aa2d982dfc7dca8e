"""What the tools print: any text on any terminal or pipe, and an error as one line."""

import io
import os
import sys
from collections.abc import Callable

import pytest

from pretrain.common.errors import UserError, run_tool
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


def test_every_tool_prints_so() -> None:
    for path in (ROOT / "tools").glob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert "run_tool(" in text or "reconfigure(errors=" in text, path


def test_a_tool_of_one_process_ends_before_it_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1"})
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with pytest.raises(SystemExit, match="2"):
        run_tool(lambda: pytest.fail("it has started"))
    assert "works in one process, and srun started 2" in sys.stderr.getvalue()  # type: ignore[attr-defined]
