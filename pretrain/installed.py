"""Where this project's files are, in a checkout or in an installed package, and how its programs are started.

Messages and help texts name programs as the README does: `python tools/train_net.py`. Where pip installed the packages
there is no `tools/`, so the same programs are modules of `transfer.programs`, and `as_typed` writes their commands.
"""

import os
import re
import sys
from collections.abc import Sequence
from functools import cache
from importlib import metadata
from pathlib import Path

# Of the checkout, or the folder into which pip installed the packages
ROOT = Path(__file__).resolve().parents[1]
_CONFIGS = ROOT / "pretrain" / "configs"  # setup.py puts configs/ here; a checkout has no such folder
IS_CHECKOUT = not _CONFIGS.is_dir()
CONFIG_ROOT = ROOT / "configs" if IS_CHECKOUT else _CONFIGS
# The folder in which programs start others: None is the current one.
START_FOLDER = ROOT if IS_CHECKOUT else None
_DISTRIBUTION = "moco-detection-transfer"
_PROGRAMS = "transfer.programs"
_SCRIPT = re.compile(r"tools/(\w+)\.py")
_TYPED = re.compile(
    r"(?P<torchrun>--nproc-per-node \S+ )?(?:\bpython )?(?<![\w./-])tools/(?P<name>\w+)\.py\b"
)


def runnable(command: Sequence[str]) -> list[str]:
    """Return a command such as `python tools/train_net.py ...` or `srun torchrun tools/train_net.py ...` as it can run.

    A `python` at its start becomes this interpreter. In an installed package, `tools/X.py` becomes the options
    `-m transfer.programs.X`, which torchrun takes too.
    """
    parts = [sys.executable if command[0] == "python" else command[0], *command[1:]]
    place = next((n for n, part in enumerate(parts) if _SCRIPT.fullmatch(part)), None)
    if IS_CHECKOUT or place is None:
        return parts
    module = _SCRIPT.sub(rf"{_PROGRAMS}.\1", parts[place])
    return [*parts[:place], "-m", module, *parts[place + 1 :]]


def environment() -> dict[str, str]:
    """Return the environment for a process of this project.

    `python -m` would search the current folder first. A checkout is started in its root and needs that; for an
    installed package it could be any folder, whose files must not be imported (Python 3.11 and newer can avoid it).
    """
    return {**os.environ, **({} if IS_CHECKOUT else {"PYTHONSAFEPATH": "1"})}


def as_typed(text: str) -> str:
    """Return a text with each `python tools/X.py` as the user can type it; in a checkout, the text itself."""
    return text if IS_CHECKOUT or "tools/" not in text else _TYPED.sub(_command, text)


def _command(match: re.Match[str]) -> str:
    command = _commands().get(match["name"])
    if command is None:
        return match[0]
    return f"{match['torchrun']}--no-python {command}" if match["torchrun"] else command


@cache
def _commands() -> dict[str, str]:
    """Return the console command of each program by the name of its script, as setup.py lists them."""
    try:
        points = metadata.distribution(_DISTRIBUTION).entry_points
    except metadata.PackageNotFoundError:
        return {}
    return {point.module.rpartition(".")[2]: point.name for point in points}
