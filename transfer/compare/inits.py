"""The initialisations of a comparison: the user's own checkpoints, random weights, and released networks by name."""

from collections.abc import Sequence
from pathlib import Path

from pretrain.common.configs import nearest
from pretrain.common.errors import UserError, label
from transfer.convert.architecture import described, recorded
from transfer.convert.convert import preprocessing
from transfer.convert.program.networks import read_any
from transfer.convert.vit.convert import FLAG as RESAMPLE
from transfer.convert.vit.convert import PATCH
from transfer.convert.vit.convert import settings as vit_settings
from transfer.convert.vit.kinds import FLAG as HEADS
from transfer.convert.vit.recognise import VitSource
from transfer.reproduce.plan.released import RESNET50, Registry, Released
from transfer.reproduce.plan.tables import Init

RANDOM = "random"
_CONVERT = ", a flag of tools/convert_to_d2.py: convert the file with it, and give the written one to --init"
_OF_VIT = ("MODEL.BACKBONE.", "MODEL.VIT.")  # what all ViTs of a comparison must have in common


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
        return Init(name, name, file=path)
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
    decides. Raises `UserError` for a file that holds neither a ResNet nor a ViT, and for networks of different shapes:
    their difference would not be one of the initialisation.
    """
    found: dict[str, str] = {}
    settings: dict[str, object] = {}
    for row in rows:
        if isinstance(row.file, Released):
            found[row.name] = row.file.shape
            settings = {f"MODEL.RESNETS.{key}": value for key, value in row.file.network.items()}
        if not isinstance(row.file, Path):
            continue
        try:
            source = read_any(row.file)
        except UserError as error:
            hint = _CONVERT if f"{HEADS} " in str(error) else ""
            raise UserError(f"--init {row.name}: {error}{hint}") from None
        if isinstance(source, VitSource):
            if source.shape.patch_size != PATCH:
                raise UserError(
                    f"--init {row.name}: {row.file}: its patches have {source.shape.patch_size} pixels, the detectors' "
                    f"{PATCH}: smaller ones can be resampled with {RESAMPLE} {PATCH}{_CONVERT}"
                )
            known = vit_settings(source)
            settings = {key: value for key, value in known.items() if key.startswith(_OF_VIT)}
            found[row.name] = f"ViT ({', '.join(f'{key} {value}' for key, value in settings.items())})"
            continue
        found[row.name] = described(recorded(source.architecture))
        known = preprocessing(source.architecture)
        settings = {f"MODEL.RESNETS.{key}": known[f"MODEL.RESNETS.{key}"] for key in RESNET50}
    if len(set(found.values())) > 1:
        shown = "; ".join(f"{name} is a {shape}" for name, shape in found.items())
        raise UserError(f"--init: the networks must have one shape to be compared: {shown}")
    return tuple(part for key, value in settings.items() for part in (key, str(value)))
