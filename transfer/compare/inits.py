"""The initialisations of a comparison: the user's own checkpoints, random weights, and released networks by name."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from pretrain.common.configs import nearest
from pretrain.common.errors import UserError, label
from transfer.reproduce.plan.tables import Init, Released

RANDOM = "random"


def inits(texts: Sequence[str], released: Mapping[str, Released]) -> list[Init]:
    """Return an init for each `NAME=FILE` or `NAME`, in order.

    Raises `UserError` for a name that is unknown or given twice, and for a file that does not exist.
    """
    found: dict[str, Init] = {}
    for text in texts:
        name, _, file = text.partition("=")
        if not name or ("=" in text and not file):
            raise UserError(
                f"--init {label(text)}: write NAME=FILE, {RANDOM}, or the name of a released network"
            )
        if name in found:
            raise UserError(f"--init {label(name)}: this name is given twice; choose another one")
        found[name] = _init(name, file, released)
    return list(found.values())


def _init(name: str, file: str, released: Mapping[str, Released]) -> Init:
    if file:
        path = Path(file).expanduser()
        if not path.is_file():
            raise UserError(f"--init {label(name)}: {label(file)}: no such checkpoint")
        return Init(name, name, file=path)
    if name == RANDOM:
        return Init(name, "random init", random=True)
    if name not in released:
        known = [RANDOM, *released]
        raise UserError(
            f"--init {label(name)}: not a released network{nearest(name, known)}; it can be {', '.join(known)}, or "
            "NAME=FILE for your own checkpoint"
        )
    return Init(name, name, file=released[name])
