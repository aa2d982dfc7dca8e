"""Turns a table into the jobs that compute its numbers."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode

from pretrain import config as pretrain_config
from pretrain.common.configs import find_config, get, merge, nearest
from pretrain.common.errors import UserError
from pretrain.common.files import file_digest
from transfer.config.load import load_config
from transfer.convert.program.networks import read_any, reading
from transfer.convert.vit.convert import FLAG as RESAMPLE
from transfer.convert.vit.recognise import VitSource
from transfer.data import catalog
from transfer.data.digests import data_digests, names_digest, recall, remember
from transfer.linear import config
from transfer.prepare.sets import open_nsfw
from transfer.reproduce.jobs.job import Job
from transfer.reproduce.plan.images import images
from transfer.reproduce.plan.overrides import (
    STAND_IN,
    STAND_IN_VIT,
    shorter,
    smoke_finetune,
    smoke_linear,
    smoke_pretrain,
)
from transfer.reproduce.plan.recipe_changes import changes, pretraining_changes
from transfer.reproduce.plan.tables import Column, Init, Released, Row, Table
from transfer.results import config_digest

# Settings that do not change what a pre-training run learns: where it reads its data, and how it logs and saves.
_IRRELEVANT = ("OUTPUT_DIR", "DATA.TRAIN", "DATA.NUM_WORKERS", "LOG", "KNN", "SOLVER.LOG_PERIOD",
               "SOLVER.CHECKPOINT_PERIOD", "SOLVER.KEEP_LAST", "SOLVER.SAVE_MINUTES", "SOLVER.SAVE_ERRORS")  # fmt: skip

# Younger keys: at their defaults they are left out of a job's settings, so that runs finished before them stay valid.
_YOUNGER = ("MODEL.HIDDEN", "MODEL.VIT", "SOLVER.OPTIMIZER", "SOLVER.WARMUP_EPOCHS", "SOLVER.CHUNK")

_HERE = ("OUTPUT_DIR", "{folder}")


@dataclass(frozen=True)
class Options:
    """The options of the command line.

    Attributes:
        inits: names of the rows to run; empty means all.
        extra: further rows: name -> a checkpoint in any format that the converter accepts.
        seeds: each row is run once with each seed.
        sweep: (key, values) that are tried for every init, in the columns of fine-tuning, or in those of the linear
            probe if a table has no others; None means the value of the recipe.
        schedule: fraction of all iterations and epochs.
        smoke: use painted pictures, tiny sizes and a few iterations.
        fetch: use released files, where they exist, instead of pre-training.
        launcher: what starts a tool: `python`, or torchrun for several GPUs or machines.
        processes: number of processes that the launcher starts, which share a batch; 1 if only the launcher knows.
        cpu: with `smoke`, run all processes on the CPU because there are too few GPUs.
        root: folder of the data sets.
        cache: file with the digests of large folders; None means that they are computed each time.
    """

    inits: tuple[str, ...] = ()
    extra: dict[str, Path] = field(default_factory=dict)
    seeds: tuple[int, ...] = (0,)
    sweep: tuple[str, tuple[str, ...]] | None = None
    schedule: float = 1.0
    smoke: bool = False
    fetch: bool = False
    launcher: tuple[str, ...] = ("python",)
    processes: int = 1
    cpu: bool = False
    root: Path = Path("datasets")
    cache: Path | None = None


@dataclass(frozen=True)
class Cell:
    """One row under one column.

    Attributes:
        runs: sweep value ("" without a sweep) -> one job per seed.
        why_not: the reason if nothing can be run.
    """

    row: Row
    column: Column
    runs: dict[str, tuple[Job, ...]]
    why_not: str = ""


def plan(table: Table, options: Options) -> list[Cell]:
    """Return the cells of a table, row by row. Raise `UserError` for unknown names and names already in use."""
    swept = _swept(table)
    return [
        _cell(row, column, options, sweep=options.sweep if column in swept else None)
        for row in chosen(table, options)
        for column in table.columns
    ]


def chosen(table: Table, options: Options) -> list[Row]:
    """Return the rows to run. Raise `UserError` for unknown names and names already in use."""
    if options.sweep and options.sweep[0] == "SEED":
        raise UserError("--sweep SEED: a seed is not a setting to tune; give --seeds 0,1,2 instead")
    rows = _rows(table, options)
    known = [row.init.name for row in rows]
    for name in options.inits:
        if name not in known:
            raise UserError(
                f"--inits {name}: {table.name} has no such row{nearest(name, known)}; "
                f"it has {', '.join(known)}"
            )
    return [row for row in rows if not options.inits or row.init.name in options.inits]


def _rows(table: Table, options: Options) -> list[Row]:
    """Return the table's rows, with --init files for unreleased weights, then the other rows of --init."""
    own = {name: Init(name, name, file=path) for name, path in options.extra.items()}
    for row in table.rows:
        if row.init.name in own and not row.init.needs:
            raise UserError(
                f"--init {row.init.name}=...: {table.name} already has a row of this name; "
                f"choose another name, such as my_{row.init.name}"
            )
    rows = [replace(row, init=own.pop(row.init.name)) if row.init.name in own else row for row in table.rows]
    return [*rows, *map(Row, own.values())]


def _swept(table: Table) -> list[Column]:
    """Return the columns that --sweep applies to: a key means different things in fine-tuning and linear probes."""
    detection = [column for column in table.columns if column.config.startswith("transfer/")]
    return detection or [column for column in table.columns if column.config]


def _cell(row: Row, column: Column, options: Options, *, sweep: tuple[str, tuple[str, ...]] | None) -> Cell:
    why_not = column.cited or row.cited.get(column.config, "") or row.init.cited or _missing(row.init)
    if why_not:
        return Cell(row, column, {}, why_not=why_not)
    name = row.config or column.config
    make = _linear if name.startswith("linear/") else _finetune
    key, values = sweep or ("", ("",))
    runs = {}
    for value in values:
        swept = (key, value) if value else ()
        runs[value] = tuple(make(name, row.init, seed, column, swept, options) for seed in options.seeds)
    return Cell(row, column, runs)


def _missing(init: Init) -> str:
    return f"needs --init {init.name}=FILE: {init.needs}" if init.needs else ""


def _weights(init: Init, seed: int, options: Options) -> Job | None:
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


def _is_vit(init: Init, options: Options) -> bool:
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


def _read_by(conversion: Job) -> list[str]:
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
    _check_share(init.pretrain, cfg, options)
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
    settings = json.dumps([_without(cfg, (*_IRRELEVANT, *younger)), data])
    # --resume with another number of GPUs sees the same images; only the order of additions changes.
    tool = ("tools/pretrain.py", "--config", init.pretrain, "--other-processes")
    command = (*options.launcher, *tool, *overrides, *_HERE)
    name = _recipe_name(init) + ("" if seed is None else f"_seed{seed}")
    return Job(
        f"pretrain/{name}", command, settings, "checkpoint_last.pth.tar", resumable=True,
        missing=found.missing, changes=pretraining_changes(cfg, pretrain_config.load(init.pretrain)),
    )  # fmt: skip


def _check_share(name: str, cfg: CfgNode, options: Options) -> None:
    batch, processes = cfg.SOLVER.IMS_PER_BATCH, options.processes
    if batch % processes:
        fewer = next(n for n in range(processes, 0, -1) if batch % n == 0)
        raise UserError(
            f"--num-gpus {processes}: SOLVER.IMS_PER_BATCH {batch} of {name} (the total) cannot be divided among them: "
            f"use --num-gpus {fewer}"
        )


def _without(cfg: CfgNode, keys: Sequence[str]) -> dict[str, Any]:
    """Return the settings without `keys`, which cannot change a result."""
    tree: dict[str, Any] = json.loads(json.dumps(cfg))
    for key in keys:
        *parents, leaf = key.split(".")
        node = tree
        for parent in parents:
            node = node[parent]
        del node[leaf]
    return tree


def _label(weights: Job | None) -> str:
    return weights.name.removeprefix("convert/") if weights else "random"


def _finetune(
    name: str, init: Init, seed: int, column: Column, swept: tuple[str, ...], options: Options
) -> Job:
    weights = _weights(init, seed, options)
    start = ["MODEL.WEIGHTS", "{0}"] if weights else ["MODEL.INIT", "random"]
    overrides = (*column.overrides, "SEED", str(seed), "DATASETS.ROOT", str(options.root.resolve()))
    cfg = load_config(name, [*overrides, *swept, *start])
    _check_share(name, cfg, options)
    # Each seed trains on other images, so that the interval includes their choice.
    if cfg.DATASETS.FRACTION < 1 or cfg.DATASETS.SHOTS:
        overrides += ("DATASETS.SUBSET_SEED", str(seed))
    if options.smoke:
        small = smoke_finetune(cfg, random=weights is None, processes=options.processes, cpu=options.cpu)
        overrides += (*small, *_not_sized(swept, small))
    else:
        overrides += (*swept, *shorter(cfg, options.schedule))
    cfg = load_config(name, [*overrides, *start])
    data, missing = _data(cfg, options)
    settings = json.dumps([config_digest(cfg), data])
    follow = ("--follow-weights",) if weights else ()
    return Job(
        f"finetune/{Path(name).stem}/{_label(weights)}/seed{seed}",
        (*options.launcher, "tools/train_net.py", "--config", name, *follow, *overrides, *start, *_HERE),
        settings, "results.json", (weights,) if weights else (), resumable=True, missing=missing,
        changes=changes(name, cfg, column.overrides),
    )  # fmt: skip


def _not_sized(swept: tuple[str, ...], small: Sequence[str]) -> tuple[str, ...]:
    """Return the sweep's override unless it sets a length or size, which a smoke run sets itself."""
    return () if set(swept[:1]) & (set(small[::2]) - {"SOLVER.BASE_LR"}) else swept


def _data(cfg: CfgNode, options: Options) -> tuple[dict[str, str | None], str]:
    """Return the digests of a config's data sets, and what is missing; then the digests are the last known ones."""
    if cfg.DATASETS.TRAIN_JSON:  # the user's own data
        files = (cfg.DATASETS.TRAIN_JSON, cfg.DATASETS.TEST_JSON)
        return {name: file_digest(Path(file)) for name, file in zip(catalog.CUSTOM, files, strict=True)}, ""
    catalog.register_builtin(Path(cfg.DATASETS.ROOT))
    place = json.dumps([cfg.DATASETS.ROOT, cfg.DATASETS.TRAIN, cfg.DATASETS.TEST])
    try:
        for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
            catalog.check_files(name, Path(cfg.DATASETS.ROOT))
    except UserError as error:
        return recall(options.cache, place) or {}, str(error)
    digests = data_digests(cfg)
    remember(options.cache, place, digests)
    return digests, ""


def _linear(
    name: str, init: Init, seed: int, column: Column, swept: tuple[str, ...], options: Options
) -> Job:
    weights = _weights(init, seed, options)
    found = images(name, options.root)
    places = ("DATA.TRAIN", str(found.train), "DATA.VAL", str(found.val))
    overrides = (*column.overrides, "SEED", str(seed), *places)
    cfg = _linear_config(name, (*overrides, *swept))
    _check_share(name, cfg, options)
    if options.smoke:
        small = smoke_linear(processes=options.processes, cpu=options.cpu)
        overrides += (*small, *_not_sized(swept, small))
    else:
        overrides += (*swept, *shorter(cfg, options.schedule))
    cfg = _linear_config(name, overrides)
    data = [names_digest(folder, options.cache) for folder in (found.train, found.val)] + list(found.made_of)
    knn = column.metrics == ("knn",)
    ignored = [key for key in config.IRRELEVANT if not (knn and key.startswith("KNN"))]
    settings = json.dumps([_without(cfg, (*ignored, *config.unset(cfg))), data])
    source = "{0}" if weights else "random"
    needs: tuple[Job, ...] = (weights,) if weights else ()
    flags: list[str] = []
    if weights and _is_vit(init, options):
        # A converted ViT is without its class token, whose feature is probed.
        (source, *flags), needs = _read_by(weights), weights.needs
        settings += weights.settings
    start = ("--weights", source, *flags, *(("--knn",) if knn else ()))
    return Job(
        f"{'knn' if knn else 'linear'}/{_label(weights)}/seed{seed}",
        (*options.launcher, "tools/linear_eval.py", "--config", name, *start, *overrides, *_HERE),
        settings, "knn.json" if knn else "results.json", needs, resumable=not knn,
        missing=found.missing, changes=changes(name, cfg, column.overrides),
    )  # fmt: skip


def _linear_config(name: str, overrides: Sequence[str]) -> CfgNode:
    """Return the config without checking its folders, which may not exist yet."""
    cfg = config.defaults()
    merge(cfg, find_config(name), overrides)
    return cfg
