"""From a table to the jobs that fill it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transfer import d2_compat  # noqa: F401 (first)

# isort: split
from detectron2.config import CfgNode

from pretrain import config as pretrain_config
from pretrain.errors import UserError
from transfer import catalog, config, linear_config, present
from transfer.data_record import data_digests
from transfer.reproduce import smoke
from transfer.reproduce.jobs import Job
from transfer.reproduce.shorter import shorter
from transfer.recipes import RECIPES
from transfer.reproduce.tables import Column, Init, Released, Row, Table
from transfer.results import config_digest
from transfer.sources import file_digest

# Where a pre-training run reads and how it is watched does not change what it learns.
_IRRELEVANT = ("OUTPUT_DIR", "DATA.NUM_WORKERS", "LOG", "KNN", "SOLVER.LOG_PERIOD", "SOLVER.CHECKPOINT_PERIOD",
               "SOLVER.KEEP_LAST", "SOLVER.SAVE_MINUTES", "SOLVER.SAVE_ERRORS")  # fmt: skip

_HERE = ("OUTPUT_DIR", "{folder}")
_PROTOCOL = {  # of the linear probe: He et al. Sec. 4.1
    key: value
    for key, value in linear_config.flat(linear_config.defaults()).items()
    if key.startswith(("INPUT.", "SOLVER.")) or key == "CACHE"
}


@dataclass(frozen=True)
class Options:
    """What the command line says.

    Attributes:
        inits: names of the rows to run; empty: all.
        extra: further rows, name -> checkpoint of any kind that the converter takes.
        seeds: one run of each row for each.
        sweep: key -> values, tried for every init alike; empty: the recipe's.
        schedule: share of all iterations and epochs.
        smoke: the demo's pictures, tiny sizes and a few iterations.
        fetch: take released files instead of pre-training, where there are some.
        launcher: what starts a tool: `python`, or torchrun on several GPUs or machines.
        root: folder of the data sets.
    """

    inits: tuple[str, ...] = ()
    extra: dict[str, Path] = field(default_factory=dict)
    seeds: tuple[int, ...] = (0,)
    sweep: tuple[str, tuple[str, ...]] | None = None
    schedule: float = 1.0
    smoke: bool = False
    fetch: bool = False
    launcher: tuple[str, ...] = ("python",)
    root: Path = Path("datasets")


@dataclass(frozen=True)
class Cell:
    """One row under one column.

    Attributes:
        runs: sweep value ("" without a sweep) -> one job a seed.
        why_not: the reason where nothing can be run.
    """

    row: Row
    column: Column
    runs: dict[str, tuple[Job, ...]]
    why_not: str = ""


def plan(table: Table, options: Options) -> list[Cell]:
    """The cells of a table, row by row. Raises `UserError` for names that are not in it."""
    own = [Row(Init(name, name, file=path)) for name, path in options.extra.items()]
    replaced = {row.init.name: row for row in own}  # --init of a row that nobody released
    rows = [
        Row(replaced[row.init.name].init, row.paper, row.config) if row.init.name in replaced else row
        for row in table.rows
    ]
    rows += [row for row in own if row.init.name not in {r.init.name for r in table.rows}]
    known = [row.init.name for row in rows]
    for name in options.inits:
        if name not in known:
            raise UserError(
                f"--inits {name}: {table.name} has no such row{pretrain_config.nearest(name, known)}; "
                f"it has {', '.join(known)}"
            )
    chosen = [row for row in rows if not options.inits or row.init.name in options.inits]
    return [_cell(row, column, options) for row in chosen for column in table.columns]


def _cell(row: Row, column: Column, options: Options) -> Cell:
    why_not = column.cited or row.init.cited or _missing(row.init)
    if why_not:
        return Cell(row, column, {}, why_not=why_not)
    name = row.config or column.config
    make = _linear if name.startswith("linear/") else _finetune
    weights = _weights(row.init, options)
    values: Sequence[str] = ("",)
    key = ""
    if options.sweep:
        key, values = options.sweep
    runs = {}
    for value in values:
        overrides = (*column.overrides, *((key, value) if value else ()))
        runs[value] = tuple(make(name, row.init, weights, seed, overrides, options) for seed in options.seeds)
    return Cell(row, column, runs)


def _missing(init: Init) -> str:
    return f"needs --init {init.name}=FILE: {init.needs}" if init.needs else ""


def _weights(init: Init, options: Options) -> Job | None:
    """The job whose product a detector starts from; None for random weights."""
    if init.random:
        return None
    source: Job | Path
    if options.smoke and isinstance(init.file, Released):
        source = options.root / smoke.STAND_IN
    elif isinstance(init.file, Released):
        source = _fetch(init.name, init.file)
    elif init.file:
        source = init.file
    elif options.fetch and init.released:
        source = _fetch(init.name, init.released)
    else:
        source = _pretrain(init, options)
    if isinstance(source, Job):
        return _convert(init.name, "{0}", "", (source,))
    return _convert(init.name, str(source.resolve()), _file(source), ())


def _file(path: Path) -> str:
    if not path.is_file():
        raise UserError(f"{path}: no such checkpoint (--init NAME=FILE)")
    return str(file_digest(path))


def _convert(name: str, source: str, settings: str, needs: tuple[Job, ...]) -> Job:
    command = (
        "python",
        "tools/convert_to_d2.py",
        source,
        "{folder}/weights.pkl",
        "--record",
        "{folder}/record.json",
    )
    return Job(f"convert/{name}", command, settings, "weights.pkl", needs)


def _fetch(name: str, released: Released) -> Job:
    command = ("python", "-m", "transfer.reproduce.fetch", released.url, "{folder}/file", released.digest)
    return Job(f"fetch/{name}", command, f"{released.url} {released.digest}", "file")


def _pretrain(init: Init, options: Options) -> Job:
    overrides = [*init.overrides]
    data = str((options.root / "imagenet" / "train").resolve())
    cfg = pretrain_config.load(init.pretrain, overrides)
    overrides += smoke.pretrain(cfg) if options.smoke else shorter(cfg, options.schedule)
    overrides += ["DATA.TRAIN", data]
    cfg = pretrain_config.load(init.pretrain, overrides)
    settings = json.dumps([_relevant(cfg), data])
    command = (*options.launcher, "tools/pretrain.py", "--config", init.pretrain, *overrides, *_HERE)
    return Job(
        f"pretrain/{init.name}", command, settings, "checkpoint_last.pth.tar", resumable=True,
        missing=_no_folder(data, "imagenet"),
    )  # fmt: skip


def _relevant(cfg: CfgNode) -> dict[str, Any]:
    tree: dict[str, Any] = json.loads(json.dumps(cfg))
    for key in _IRRELEVANT:
        *parents, leaf = key.split(".")
        node = tree
        for parent in parents:
            node = node[parent]
        del node[leaf]
    return tree


def _finetune(
    name: str, init: Init, weights: Job | None, seed: int, overrides: tuple[str, ...], options: Options
) -> Job:
    start = ["MODEL.WEIGHTS", "{0}"] if weights else ["MODEL.INIT", "random"]
    overrides = (*overrides, "SEED", str(seed), "DATASETS.ROOT", str(options.root.resolve()))
    cfg = config.load(name, [*overrides, *start])
    overrides += (
        smoke.finetune(cfg, random=weights is None) if options.smoke else shorter(cfg, options.schedule)
    )
    cfg = config.load(name, [*overrides, *start])
    data, missing = _data(cfg)
    settings = json.dumps([config_digest(cfg), data])
    follow = ("--follow-weights",) if weights else ()
    return Job(
        f"finetune/{Path(name).stem}/{init.name}/seed{seed}",
        (*options.launcher, "tools/train_net.py", "--config", name, *follow, *overrides, *start, *_HERE),
        settings, "results.json", (weights,) if weights else (), resumable=True, missing=missing,
        changes=_changes(cfg, {key: value for key, (value, _) in RECIPES[Path(name).stem].facts.items()}),
    )  # fmt: skip


def _no_folder(folder: str, name: str) -> str:
    if Path(folder).is_dir():
        return ""
    return f"{folder}: no such folder; python tools/prepare_data.py {name} says how to get it"


def _data(cfg: CfgNode) -> tuple[dict[str, str | None], str]:
    """Digests of a config's data sets, and what is missing of them: then there are no digests."""
    catalog.register_builtin(Path(cfg.DATASETS.ROOT))
    try:
        for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
            present.check(name, Path(cfg.DATASETS.ROOT))
    except UserError as error:
        return {}, str(error)
    return data_digests(cfg), ""


def _linear(
    name: str, init: Init, weights: Job | None, seed: int, overrides: tuple[str, ...], options: Options
) -> Job:
    folders = {part: str((options.root / "imagenet" / part).resolve()) for part in ("train", "val")}
    overrides = (*overrides, "SEED", str(seed), "DATA.TRAIN", folders["train"], "DATA.VAL", folders["val"])
    cfg = _linear_config(name, overrides)
    overrides += smoke.linear(cfg) if options.smoke else shorter(cfg, options.schedule)
    cfg = _linear_config(name, overrides)
    settings = json.dumps(cfg)
    start = ("--weights", "{0}" if weights else "random")
    return Job(
        f"linear/{init.name}/seed{seed}",
        (*options.launcher, "tools/linear_eval.py", "--config", name, *start, *overrides, *_HERE),
        settings, "results.json", (weights,) if weights else (), resumable=True,
        missing=_no_folder(folders["val"], "imagenet"), changes=_changes(cfg, _PROTOCOL),
    )  # fmt: skip


def _changes(cfg: CfgNode, recipe: Mapping[str, Any]) -> tuple[str, ...]:
    """`KEY is A, in the recipe B` for every setting that differs; lists and tuples are alike."""
    found = linear_config.flat(cfg)
    same = {key: json.dumps(found[key]) == json.dumps(value) for key, value in recipe.items()}
    return tuple(f"{key} is {found[key]}, in the recipe {recipe[key]}" for key in recipe if not same[key])


def _linear_config(name: str, overrides: Sequence[str]) -> CfgNode:
    """Without the check of folders, which may not be there yet."""
    cfg = linear_config.defaults()
    pretrain_config.merge(cfg, pretrain_config.find_config(name), overrides)
    return cfg
