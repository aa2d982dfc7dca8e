"""Turns a table into the jobs that compute its numbers."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from detectron2.config import CfgNode

from pretrain.common.configs import find_config, merge, nearest
from pretrain.common.errors import UserError
from pretrain.common.files import file_digest
from transfer.config.load import load_config
from transfer.data import catalog
from transfer.data.digests import data_digests, names_digest, recall, remember
from transfer.linear import config
from transfer.reproduce.jobs.job import Job
from transfer.reproduce.plan.images import images
from transfer.reproduce.plan.options import Options, check_share
from transfer.reproduce.plan.overrides import shorter, smoke_finetune, smoke_linear
from transfer.reproduce.plan.recipe_changes import changes
from transfer.reproduce.plan.tables import Column, Init, Row, Table
from transfer.reproduce.plan.weights import HERE, is_vit, read_by, weights_job, without
from transfer.results import config_digest


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


def _label(weights: Job | None) -> str:
    return weights.name.removeprefix("convert/") if weights else "random"


def _finetune(
    name: str, init: Init, seed: int, column: Column, swept: tuple[str, ...], options: Options
) -> Job:
    weights = weights_job(init, seed, options)
    start = ["MODEL.WEIGHTS", "{0}"] if weights else ["MODEL.INIT", "random"]
    overrides = (*column.overrides, "SEED", str(seed), "DATASETS.ROOT", str(options.root.resolve()))
    cfg = load_config(name, [*overrides, *swept, *start])
    check_share(name, cfg, options)
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
        (*options.launcher, "tools/train_net.py", "--config", name, *follow, *overrides, *start, *HERE),
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
    weights = weights_job(init, seed, options)
    found = images(name, options.root)
    places = ("DATA.TRAIN", str(found.train), "DATA.VAL", str(found.val))
    overrides = (*column.overrides, "SEED", str(seed), *places)
    cfg = _linear_config(name, (*overrides, *swept))
    check_share(name, cfg, options)
    if options.smoke:
        small = smoke_linear(processes=options.processes, cpu=options.cpu)
        overrides += (*small, *_not_sized(swept, small))
    else:
        overrides += (*swept, *shorter(cfg, options.schedule))
    cfg = _linear_config(name, overrides)
    data = [names_digest(folder, options.cache) for folder in (found.train, found.val)] + list(found.made_of)
    knn = column.metrics == ("knn",)
    ignored = [key for key in config.IRRELEVANT if not (knn and key.startswith("KNN"))]
    settings = json.dumps([without(cfg, (*ignored, *config.unset(cfg))), data])
    source = "{0}" if weights else "random"
    needs: tuple[Job, ...] = (weights,) if weights else ()
    flags: list[str] = []
    if weights and is_vit(init, options):
        # A converted ViT is without its class token, whose feature is probed.
        (source, *flags), needs = read_by(weights), weights.needs
        settings += weights.settings
    start = ("--weights", source, *flags, *(("--knn",) if knn else ()))
    return Job(
        f"{'knn' if knn else 'linear'}/{_label(weights)}/seed{seed}",
        (*options.launcher, "tools/linear_eval.py", "--config", name, *start, *overrides, *HERE),
        settings, "knn.json" if knn else "results.json", needs, resumable=not knn,
        missing=found.missing, changes=changes(name, cfg, column.overrides),
    )  # fmt: skip


def _linear_config(name: str, overrides: Sequence[str]) -> CfgNode:
    """Return the config without checking its folders, which may not exist yet."""
    cfg = config.defaults()
    merge(cfg, find_config(name), overrides)
    return cfg
