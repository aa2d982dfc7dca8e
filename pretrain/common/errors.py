"""Errors for the user: one line that says what to fix, instead of a traceback."""

import io
import numbers
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

LONGEST = 200  # characters of a stranger's value in a message
_DEPTH = 3  # of lists in lists that are shown


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


def brief(value: Any, limit: int = SHOWN) -> str:
    """Return an untrusted value as `label` does, with quotes around a string, so that '3' differs from 3."""
    return f"'{label(value, limit - 2)}'" if isinstance(value, str | bytes) else label(value, limit)


def shown(value: Any, *, quoted: bool = False, most: int = LONGEST) -> str:
    """Return a value from a file, a config or an archive as it may appear in a message: one short printable line.

    Control characters, terminal escapes and halves of characters are shown as escapes. Of lists and mappings only what
    fits is looked at, even if they hold themselves; of other objects only the type is named.

    Args:
        quoted: put strings between quotation marks, as `repr` does; within lists they always are.
        most: characters of the result; what is longer ends in dots.
    """
    text = _shown(value, quoted, most, _DEPTH)
    return text if len(text) <= most else f"{text[: most - 3]}..."


def _shown(value: Any, quoted: bool, room: int, depth: int) -> str:
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if isinstance(value, str):
        text = printable(value[: room + 1])
        return f"'{text}'" if quoted else text
    if isinstance(value, bytes | bytearray):
        return repr(bytes(value[: room + 1]))
    if value is None or isinstance(value, bool):
        return str(value)
    if isinstance(value, numbers.Integral):
        number = int(value)
        # Python refuses to print more than 4300 digits
        return str(number) if number.bit_length() < 4 * room else f"a number of {number.bit_length()} bits"
    if isinstance(value, float):
        return float.__repr__(value)
    if isinstance(value, dict):
        pairs = (f"{_part(k, room, depth)}: {_part(v, room, depth)}" for k, v in value.items())
        return "{" + _joined(pairs, room) + "}"
    if isinstance(value, list | tuple | set | frozenset):
        inner = _joined((_part(item, room, depth) for item in value), room)
        if isinstance(value, tuple):
            return f"({inner},)" if len(value) == 1 else f"({inner})"
        return f"[{inner}]" if isinstance(value, list) else f"{{{inner}}}"
    return f"a value of type {printable(type(value).__name__[:room])}"


def _part(value: Any, room: int, depth: int) -> str:
    if depth == 0 and isinstance(value, dict | list | tuple | set | frozenset):
        return "..."
    return _shown(value, True, room, depth - 1)


def _joined(parts: Iterator[str], room: int) -> str:
    taken: list[str] = []
    for part in parts:
        taken.append(part)
        room -= len(part) + 2
        if room < 0:  # what follows would be cut off
            break
    return ", ".join(taken)


def printable(text: str) -> str:
    """Return text as one printable line: line breaks, control characters and undecodable bytes become escapes."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


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

    A `UserError` becomes one line on standard error and exit status 2; Ctrl-C becomes status 130. Anything else is a
    bug in this project and keeps its traceback.

    Args:
        processes: the program can be started in several processes by torchrun or srun. Others refuse that.
    """
    escape_what_cannot_be_printed()
    try:
        if not processes:
            from pretrain.common import launcher  # which needs this module

            launcher.refuse_several()
        sys.exit(main() or 0)
    except UserError as error:
        print(f"error: {message(error)}", file=sys.stderr)
        sys.exit(2)
    except ImportError as error:
        if (error.name or "").partition(".")[0] != "detectron2":
            raise
        absent = isinstance(error, ModuleNotFoundError)
        remedy = "detectron2 is not installed: run `python tools/install_detectron2.py`"
        print(f"error: {remedy if absent else error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # the reader of a pipe, such as `head`, has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or flushing at exit would fail
        sys.exit(1)
