"""Errors for the user: one line that says what to fix, instead of a traceback."""

import io
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

from pretrain.common.signals import INTERRUPTED
from pretrain.installed import as_typed


class UserError(Exception):
    """An error that the user can fix. The message is one line: what is wrong, and how to fix it."""


def message(error: BaseException) -> str:
    """Return the message of a `UserError`, also if it was raised in a child process and includes its traceback."""
    return str(error).strip().rpartition(f"{UserError.__module__}.{UserError.__qualname__}: ")[2]


SHOWN = 200  # characters of an untrusted value in a message


def label(value: Any, limit: int = SHOWN) -> str:
    """Return a key or name from an untrusted file as one line of printable text of at most `limit` characters.

    Control characters and those that a terminal does not show are escaped. A container is shown by at most 8 of its
    scalars and never by its `repr`: a list that holds itself twice, nested a few dozen deep, would never end.
    """
    if isinstance(value, str | bytes | bytearray):
        text = value[:limit] if isinstance(value, str) else value[:limit].decode("latin1")
        text = text if text.isprintable() else text.encode("unicode_escape").decode("ascii")
        return text if len(text) <= limit and len(value) <= limit else f"{text[: limit - 3]}..."
    if type(value) is int and value.bit_length() > 256:  # Python refuses to print more than 4300 digits
        return f"an integer of {value.bit_length()} bits"
    if value is None or type(value) in (bool, int, float, complex):
        return str(value)
    if type(value) in (list, tuple):
        parts = [
            "..." if isinstance(part, list | tuple | dict) else brief(part, max(limit // 8 - 2, 3))
            for part in value[:8]
        ]
        return f"[{', '.join(parts)}{', ...' if len(value) > 8 else ''}]"[:limit]
    if isinstance(value, dict):
        return f"a dict of {len(value)} entries"
    return f"a {type(value).__name__}"[:limit]


# Tabs, line breaks and the undecodable bytes of a file name (U+DC80 to U+DCFF in Python) are not among them.
_CONTROL = re.compile(r"[\0-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udc7f\udd00-\udfff]")


def has_control(text: str) -> bool:
    """Return whether a text has characters that steer a terminal, or halves of a character, which no file can store."""
    return _CONTROL.search(text) is not None


def brief(value: Any, limit: int = SHOWN) -> str:
    """Return an untrusted value as `label` does, with quotes around a string, so that '3' differs from 3."""
    return f"'{label(value, limit - 2)}'" if isinstance(value, str | bytes) else label(value, limit)


def printable(text: str) -> str:
    """Return text as one printable line: line breaks, control characters and undecodable bytes become escapes."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def for_terminal(text: str) -> str:
    """Return text with everything that is not printable escaped, as in `printable`, except line breaks and tabs."""
    return text if text.isprintable() else "".join(c if c in "\n\t" else printable(c) for c in text)


@contextmanager
def compiler_in_one_line() -> Iterator[None]:
    """Turn errors of torch.compile, which usually come from this machine's compilers, into a `UserError`."""
    try:
        yield
    except RuntimeError as error:
        if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            raise
        reason = " ".join(str(error).split())[:160]
        raise UserError(
            f"MODEL.COMPILE True: torch.compile fails here ({reason}): set it to False"
        ) from error


def escape_what_cannot_be_printed() -> None:
    """Print characters that the terminal or pipe cannot show, such as those of a file name, as `\\u00e9`."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def run_tool(main: Callable[[], int | None], *, processes: bool = False) -> NoReturn:
    """Run a command-line program and exit with its status.

    A `UserError` becomes one line on standard error and exit status 2; Ctrl-C becomes one line and status 130, also
    where a library that is being imported turns it into an error of its own. Anything else is a bug in this project and
    keeps its traceback.

    Args:
        processes: the program can be started in several processes by torchrun or srun. Others refuse that.
    """
    escape_what_cannot_be_printed()
    interrupts = _noted_interrupts()
    try:
        if not processes:
            from pretrain.common import launcher  # which needs this module

            launcher.refuse_several()
        sys.exit(main() or 0)
    except UserError as error:
        print(f"error: {printable(as_typed(message(error)))}", file=sys.stderr)
        sys.exit(2)
    except ImportError as error:
        if interrupts:
            _say_interrupted()
        if (error.name or "").partition(".")[0] != "detectron2":
            raise
        absent = isinstance(error, ModuleNotFoundError)
        remedy = "detectron2 is not installed: run `python tools/install_detectron2.py`"
        print(f"error: {as_typed(remedy) if absent else error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        _say_interrupted()
    except BrokenPipeError:  # the reader of a pipe, such as `head`, has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or flushing at exit would fail
        sys.exit(1)
    except Exception:
        if interrupts:
            _say_interrupted()
        raise


def _noted_interrupts() -> list[int]:
    """Return a list that gets an entry for each Ctrl-C, which raises `KeyboardInterrupt` as usual."""
    noted: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        noted.append(number)
        signal.default_int_handler(number, frame)

    in_main = threading.current_thread() is threading.main_thread()
    if (
        in_main and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    ):  # a background job may ignore it
        signal.signal(signal.SIGINT, note)
    return noted


def _say_interrupted() -> NoReturn:
    print("interrupted", file=sys.stderr)
    sys.exit(INTERRUPTED)
