"""One way to tell a user what to mend: a one-line error instead of a traceback."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn


class UserError(Exception):
    """A mistake that the user can mend. The message is one line: what is wrong, and how to mend it."""


def message(error: BaseException) -> str:
    """The line of a `UserError`, also of one that a child process raised and that arrived with its traceback."""
    return str(error).strip().rpartition(f"{UserError.__module__}.{UserError.__qualname__}: ")[2]


@contextmanager
def compiler_in_one_line() -> Iterator[None]:
    """Turn what torch.compile raises, on this machine's compilers as a rule, into a `UserError`."""
    try:
        yield
    except RuntimeError as error:
        if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            raise
        reason = " ".join(str(error).split())[:160]
        raise UserError(f"MODEL.COMPILE True: torch.compile fails here ({reason}): leave it False") from error


def run_tool(main: Callable[[], int | None]) -> NoReturn:
    """Run a command-line program and exit with its status.

    `UserError` becomes one line on standard error and exit status 2; Ctrl-C becomes 130. Anything else is
    a defect of ours and keeps its traceback.
    """
    try:
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
    except BrokenPipeError:  # the reader of a pipe, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nothing is left to flush at exit
        sys.exit(1)
