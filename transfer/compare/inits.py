"""The initialisations of a comparison: the user's own checkpoints, random weights, and released networks by name."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pretrain.common.configs import nearest
from pretrain.common.errors import UserError, label
from transfer.convert.architecture import described, recorded
from transfer.convert.convert import preprocessing
from transfer.convert.recognise import read_source
from transfer.reproduce.plan.tables import Init, Released

RANDOM = "random"
_SHAPE = tuple(
    f"MODEL.RESNETS.{key}"
    for key in ("DEPTH", "NUM_GROUPS", "WIDTH_PER_GROUP", "STEM_OUT_CHANNELS", "RES2_OUT_CHANNELS")
)


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


def network(rows: Sequence[Init]) -> tuple[str, ...]:
    """Return KEY, VALUE, ...: the network of the user's checkpoints, which random weights then have, too.

    Empty if there is no checkpoint; the config then decides. Raises `UserError` for a file that is not a ResNet's, and
    for networks of different shapes: their difference would not be one of the initialisation.
    """
    found: dict[str, str] = {}
    settings: dict[str, Any] = {}
    for row in rows:
        if not isinstance(row.file, Path):
            continue
        try:
            shape = read_source(row.file).architecture
        except UserError as error:
            raise UserError(f"--init {row.name}: {error}") from None
        found[row.name] = described(recorded(shape))
        settings = {key: value for key, value in preprocessing(shape).items() if key in _SHAPE}
    if len(set(found.values())) > 1:
        shown = "; ".join(f"{name} is a {shape}" for name, shape in found.items())
        raise UserError(f"--init: the networks must have one shape to be compared: {shown}")
    return tuple(part for key, value in settings.items() for part in (key, str(value)))
