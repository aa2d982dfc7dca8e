"""The jobs that make a row's weights: fetching or pre-training, then conversion."""

import json
import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from fvcore.common.config import CfgNode

from pretrain import config as pretrain_config
from pretrain.common.configs import get
from pretrain.common.errors import UserError
from pretrain.common.files import file_digest
from transfer.convert.program.networks import read_any, reading
from transfer.convert.vit.convert import FLAG as RESAMPLE
from transfer.convert.vit.recognise import VitSource
from transfer.data.digests import names_digest
from transfer.prepare.sets import open_nsfw
from transfer.reproduce.jobs.job import Job
from transfer.reproduce.plan.images import images
from transfer.reproduce.plan.options import Options, check_share
from transfer.reproduce.plan.overrides import STAND_IN, STAND_IN_VIT, shorter, smoke_pretrain
from transfer.reproduce.plan.recipe_changes import pretraining_changes
from transfer.reproduce.plan.tables import Init, Released

# Settings that do not change what a pre-training run learns: where it reads its data, and how it logs and saves.
_IRRELEVANT = ("OUTPUT_DIR", "DATA.TRAIN", "DATA.NUM_WORKERS", "LOG", "KNN", "SOLVER.LOG_PERIOD",
               "SOLVER.CHECKPOINT_PERIOD", "SOLVER.KEEP_LAST", "SOLVER.SAVE_MINUTES", "SOLVER.SAVE_ERRORS")  # fmt: skip

# Younger keys: at their defaults they are left out of a job's settings, so that runs finished before them stay valid.
_YOUNGER = ("MODEL.HIDDEN", "MODEL.VIT", "SOLVER.OPTIMIZER", "SOLVER.WARMUP_EPOCHS", "SOLVER.CHUNK")

HERE = ("OUTPUT_DIR", "{folder}")  # the output of every job is in its own folder


def weights_job(init: Init, seed: int, options: Options) -> Job | None:
    """Return the job whose product a detector starts from; None for random weights.

    Args:
        seed: of the detector's run; weights have it too if they are pre-trained with each seed.
    """
    if init.random:
        return None
    if isinstance(init.file, Path):
        path = init.file.expanduser().resolve()
        return _convert(init.name, str(path), _own_file(init)[0], flags=_flags(init))
    released = _released(init, options)
    if released and options.smoke:
        path = (options.root / (STAND_IN_VIT if released.is_vit else STAND_IN)).resolve()
        return _convert(released.name, str(path), file_digest(path))
    if released:
        return _convert(released.name, "{0}", "", _fetch(released, options), flags=released.flags)
    made = _pretrain(init, seed if init.each_seed else None, options)
    return _convert(made.name.removeprefix("pretrain/"), "{0}", "", made)


def _released(init: Init, options: Options) -> Released | None:
    """Return the released network that is downloaded, if any."""
    return init.file if isinstance(init.file, Released) else init.released if options.fetch else None


def _flags(init: Init) -> tuple[str, ...]:
    """Return the flags of the converter for a user's own file, which are those of the released one."""
    return init.released.flags if init.released else ()


def is_vit(init: Init, options: Options) -> bool:
    """Return whether the weights are a ViT's. Raises `UserError` for a user's own file that cannot be read."""
    if isinstance(init.file, Path):
        return _own_file(init)[1]
    if released := _released(init, options):
        return released.is_vit
    return bool(init.pretrain) and pretrain_config.load(init.pretrain, init.overrides).MODEL.ARCH == "vit"


def _own_file(init: Init) -> tuple[str, bool]:
    """Return the digest of the user's own file, and whether it holds a ViT.

    Raises `UserError` unless the converter can read it.
    """
    assert isinstance(init.file, Path)
    path = init.file.expanduser().resolve()
    if not path.is_file():
        raise UserError(f"--init {init.name}: {path}: no such checkpoint")
    try:
        return _recognised(path, path.stat().st_mtime_ns, _flags(init))
    except UserError as error:
        raise UserError(f"--init {init.name}: {error}") from None


@lru_cache
def _recognised(path: Path, _: int, flags: tuple[str, ...]) -> tuple[str, bool]:
    found = read_any(path, **reading(flags))
    return found.digest, isinstance(found, VitSource)


def _convert(name: str, source: str, settings: str, *needs: Job, flags: Sequence[str] = ()) -> Job:
    command = (
        "python",
        "tools/convert_to_d2.py",
        source,
        "{folder}/weights.pkl",
        "--record",
        "{folder}/record.json",
        *flags,
    )
    return Job(f"convert/{name}", command, " ".join([settings, *flags]), "weights.pkl", needs)


def read_by(conversion: Job) -> list[str]:
    """Return the file that a conversion reads, and those of its flags that say how to read it."""
    _, _, source, _, _, _, *flags = conversion.command
    pairs = zip(flags[::2], flags[1::2], strict=True)
    return [source, *(part for pair in pairs if pair[0] != RESAMPLE for part in pair)]


def _fetch(released: Released, options: Options) -> Job:
    name = open_nsfw.MODEL if released.url == open_nsfw.URL else "file"
    command = (
        "python",
        "-m",
        "transfer.reproduce.jobs.fetch",
        released.url,
        f"{{folder}}/{name}",
        released.digest,
        str((options.root / released.name).resolve()),
        released.name,
        *released.flags,
    )
    note = f"{released.name}: {released.url}, licence: {released.licence}"
    note += f"; {released.note}" if released.note else ""
    return Job(f"fetch/{released.name}", command, f"{released.url} {released.digest}", name, note=note)


def _recipe_name(init: Init) -> str:
    """Return a name made of the config and its overrides: rows with the same pre-training share it, and one run."""
    pairs = zip(init.overrides[::2], init.overrides[1::2], strict=True)
    changes = [f"{key.split('.')[-1]}{re.sub('[^A-Za-z0-9.]', '', value)}" for key, value in pairs]
    return "_".join([Path(init.pretrain).stem, *changes])


def _pretrain(init: Init, seed: int | None, options: Options) -> Job:
    """Return the job of a recipe with one seed, or with the recipe's own if `seed` is None."""
    overrides = [*init.overrides, *(() if seed is None else ("SEED", str(seed)))]
    cfg = pretrain_config.load(init.pretrain, overrides)
    check_share(init.pretrain, cfg, options)
    small = smoke_pretrain(cfg, processes=options.processes, cpu=options.cpu) if options.smoke else ()
    overrides += small or shorter(cfg, options.schedule)
    found = images(init.pretrain, options.root)
    places: tuple[str, ...] = ("DATA.TRAIN", str(found.unlabelled))
    if cfg.KNN.TRAIN:
        places += ("KNN.TRAIN", str(found.train), "KNN.VAL", str(found.val))
    overrides += places
    cfg = pretrain_config.load(init.pretrain, overrides)
    data = [names_digest(found.unlabelled, options.cache), *found.made_of]
    younger = [key for key in _YOUNGER if get(cfg, key) == get(pretrain_config.defaults(), key)]
    settings = json.dumps([without(cfg, (*_IRRELEVANT, *younger)), data])
    # --resume with another number of GPUs sees the same images; only the order of additions changes.
    tool = ("tools/pretrain.py", "--config", init.pretrain, "--other-processes")
    command = (*options.launcher, *tool, *overrides, *HERE)
    name = _recipe_name(init) + ("" if seed is None else f"_seed{seed}")
    return Job(
        f"pretrain/{name}", command, settings, "checkpoint_last.pth.tar", resumable=True,
        missing=found.missing, changes=pretraining_changes(cfg, pretrain_config.load(init.pretrain)),
    )  # fmt: skip


def without(cfg: CfgNode, keys: Sequence[str]) -> dict[str, Any]:
    """Return the settings without `keys`, which cannot change a result."""
    tree: dict[str, Any] = json.loads(json.dumps(cfg))
    for key in keys:
        *parents, leaf = key.split(".")
        node = tree
        for parent in parents:
            node = node[parent]
        del node[leaf]
    return tree
