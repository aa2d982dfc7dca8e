"""The initialisations of a comparison: the user's own checkpoints, random weights, and released networks by name."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from pretrain.common.configs import nearest
from pretrain.common.console import say
from pretrain.common.errors import UserError, label
from transfer.convert.architecture import described, recorded
from transfer.convert.convert import preprocessing
from transfer.convert.program.networks import read_any, reading
from transfer.convert.vit.convert import BACKBONE, PATCH
from transfer.convert.vit.convert import FLAG as RESAMPLE
from transfer.convert.vit.convert import settings as vit_settings
from transfer.convert.vit.kinds import FLAG as HEADS
from transfer.convert.vit.recognise import VitSource
from transfer.reproduce.plan.released import RESNET50, VIT_B, Registry, Released, vit_shape
from transfer.reproduce.plan.tables import Init

RANDOM = "random"
# ViTs may differ in the size of the table of positions, which a detector interpolates, and in the epsilon of norms.
_OF_WEIGHTS = ("MODEL.VIT.NORM_EPS", "MODEL.VIT.PRETRAIN_SIZE", "MODEL.VIT.CLASS_POSITION")


def inits(texts: Sequence[str], released: Registry) -> list[Init]:
    """Return an init for each `NAME=FILE` or `NAME`, in order.

    Raises `UserError` for a name that is unknown, given twice or of a network without an address, and for a file that
    does not exist or is not the released one of this name.
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


def _init(name: str, file: str, released: Registry) -> Init:
    if file:
        path = Path(file).expanduser()
        if not path.is_file():
            raise UserError(f"--init {label(name)}: {label(file)}: no such checkpoint")
        if name in released.networks:
            released.networks[name].refuse_other(path)
        return Init(name, name, file=path, released=released.networks.get(name))
    if name == RANDOM:
        return Init(name, "random init", random=True)
    network = released.get(name)
    if network is None:
        raise UserError(
            f"--init {label(name)}: not a released network{nearest(name, [RANDOM, *released.names])}; docs/released.md "
            f"lists them; it can also be {RANDOM}, or NAME=FILE for your own checkpoint"
        )
    if why_not := network.without_address(f"--init {name}"):
        raise UserError(why_not)
    return Init(name, name, file=network)


def network(rows: Sequence[Init]) -> tuple[str, ...]:
    """Return KEY, VALUE, ...: the network of the checkpoints, which random weights then have, too.

    That of a released network is known before it is downloaded. Empty if there is no checkpoint; the config then
    decides. Keys in which ViTs may differ are among them only if they do not; otherwise each run follows its weights.
    Raises `UserError` for a file that holds neither a ResNet nor a ViT, or that needs a flag of the converter, and for
    networks of different shapes: their difference would not be one of the initialisation.
    """
    found: dict[str, str] = {}
    settings: dict[str, object] = {}
    of_weights: list[dict[str, object]] = []
    for row in rows:
        if isinstance(row.file, Released):
            found[row.name] = row.file.shape
            section = "VIT" if row.file.is_vit else "RESNETS"
            settings = {f"MODEL.{section}.{key}": value for key, value in row.file.network.items()}
            of_weights.append({})  # not known before the download
        elif isinstance(row.file, Path):
            found[row.name], settings, others = _read(row, row.file)
            of_weights.append(others)
    if len(set(found.values())) > 1:
        shown = "; ".join(f"{name} is a {shape}" for name, shape in found.items())
        raise UserError(f"--init: the networks must have one shape to be compared: {shown}")
    if "MODEL.VIT.WIDTH" in settings:
        settings = {"MODEL.BACKBONE.NAME": BACKBONE} | settings
        for key, value in of_weights[0].items():
            if all(others.get(key) == value for others in of_weights):
                settings[key] = value
    return tuple(part for key, value in settings.items() for part in (key, str(value)))


def _read(row: Init, file: Path) -> tuple[str, dict[str, object], dict[str, object]]:
    """Return the shape of a file's network, in words and in settings, and the settings in which ViTs may differ."""
    flags = row.released.flags if row.released else ()
    try:
        source = read_any(file, **reading(flags))
    except UserError as error:
        hint = f"; {_convert_first(row, file, f'{HEADS} N')}" if f"{HEADS} " in str(error) else ""
        raise UserError(f"--init {row.name}: {error}{hint}") from None
    if not isinstance(source, VitSource):
        known = preprocessing(source.architecture)
        keys = [f"MODEL.RESNETS.{key}" for key in RESNET50]
        return described(recorded(source.architecture)), {key: known[key] for key in keys}, {}
    _check_vit(row, file, source, flags)
    known = vit_settings(source)
    shape = {key: known[f"MODEL.VIT.{key}"] for key in VIT_B}
    return (
        vit_shape(shape),
        {f"MODEL.VIT.{key}": value for key, value in shape.items()},
        {key: known[key] for key in _OF_WEIGHTS},
    )


def _check_vit(row: Init, file: Path, source: VitSource, flags: Sequence[str]) -> None:
    """Raise `UserError` for patches that only a flag of the converter resamples, and say what else is assumed."""
    size, heads = source.shape.patch_size, source.shape.heads
    if size != PATCH and RESAMPLE not in flags:
        resampled = f"smaller ones can be resampled; {_convert_first(row, file, f'{RESAMPLE} {PATCH}')}"
        raise UserError(
            f"--init {row.name}: {file}: its patches have {size} pixels, the detectors' {PATCH}: "
            f"{resampled if size < PATCH else 'use another ViT'}"
        )
    if source.heads_origin.startswith("assumed") and not row.released:
        say(
            f"note: {row.name}: {heads} heads are assumed, since no tensor shows them; if it has another number N, "
            f"{_convert_first(row, file, f'{HEADS} N')}"
        )


def _convert_first(row: Init, file: Path, flag: str) -> str:
    """Return what to type for a file that the converter needs a flag for."""
    made = f"{file.name.split('.')[0]}_d2.pkl"
    words = shlex.join(["python", "tools/convert_to_d2.py", str(file), made])
    return f"convert it first: {words} {flag}, and give --init {shlex.quote(f'{row.name}={made}')}"
