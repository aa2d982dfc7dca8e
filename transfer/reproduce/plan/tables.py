"""The tables that can be reproduced, read from `tables.yaml`."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from pretrain.common.configs import nearest
from pretrain.common.errors import UserError
from transfer.reproduce.plan import released as registry
from transfer.reproduce.plan.released import Quote, Registry, Released

FILE = Path(__file__).with_name("tables.yaml")


@dataclass(frozen=True)
class Init:
    """Where the weights of a row come from; exactly one of `random`, `file`, `pretrain`, `needs` and `cited` is set.

    Attributes:
        pretrain: config of a pre-training recipe, which is run with `overrides` (KEY, VALUE, ...).
        each_seed: whether pre-training too is run once with each seed, instead of once for all of them.
        file: a released file that is converted, or the path of the user's own file (`--init NAME=FILE`).
        released: the released network that the row is about: it can replace the pre-training (`--fetch`), and its flags
            are those that a user's file of it is converted with.
        needs: why the weights are not available; the user can provide them with `--init NAME=FILE`.
        cited: why the row is only quoted.
    """

    name: str
    title: str
    random: bool = False
    pretrain: str = ""
    overrides: tuple[str, ...] = ()
    each_seed: bool = False
    file: Released | Path | None = None
    released: Released | None = None
    needs: str = ""
    cited: str = ""


@dataclass(frozen=True)
class Column:
    """One config, and the metrics that are read from its results.

    Attributes:
        config: config of `tools/train_net.py` (transfer/...) or `tools/linear_eval.py` (linear/...).
        metrics: task and name in results.json, such as "bbox.AP50"; for the linear probe just the name. The metric
            `knn` replaces the probe's classifier by nearest neighbours.
        cited: why nothing can be run for this column.
    """

    metrics: tuple[str, ...]
    config: str = ""
    title: str = ""
    overrides: tuple[str, ...] = ()
    cited: str = ""


@dataclass(frozen=True)
class Row:
    """One init, and the published number of each metric of each column.

    Attributes:
        paper: the published numbers; empty if there are none.
        config: replaces the config of every column if the paper used another one for this row.
        std: published standard deviation of each metric over the table's trials; empty if not published.
        cited: config of a column -> why this row is only quoted in that column.
        trials: config of a column -> number of runs that `paper` is the mean of, where it is not the table's.
        quotes: results that others published of these weights; those of other protocols are not in `paper`.
    """

    init: Init
    paper: tuple[float | None, ...] = ()
    config: str = ""
    std: tuple[float | None, ...] = ()
    cited: dict[str, str] = field(default_factory=dict)
    trials: dict[str, int] = field(default_factory=dict)
    quotes: tuple[Quote, ...] = ()


@dataclass(frozen=True)
class Table:
    """A table of a paper, or one of this project.

    Attributes:
        trials: number of runs that the paper's numbers are means of; 1 if it does not say.
        cost: what all rows cost once, in words, where hours on GPUs would say nothing; else empty.
        protocols: letters of other protocols that rows have `quotes` of -> what they are.
        baseline: the row whose results are subtracted from those of the others, seed by seed; empty for none.
    """

    name: str
    title: str
    source: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    trials: int = 1
    cost: str = ""
    baseline: str = ""
    note: str = ""
    protocols: dict[str, str] = field(default_factory=dict)

    @property
    def metrics(self) -> tuple[str, ...]:
        """The metrics of all columns, in the order of the numbers in `Row.paper`."""
        return tuple(metric for column in self.columns for metric in column.metrics)


@dataclass(frozen=True)
class Book:
    """Everything in `tables.yaml`, and the networks of `released.yaml`.

    Attributes:
        hours: config -> hours on 8 V100 GPUs; None if no hours are published.
        disk: data set, config of a recipe, or `run` (a fine-tuning run) -> gigabytes.
    """

    tables: dict[str, Table]
    inits: dict[str, Init]
    released: Registry = field(default_factory=Registry)
    hours: dict[str, float | None] = field(default_factory=dict)
    disk: dict[str, float] = field(default_factory=dict)

    def gigabytes(self, table: Table, *, fetch: bool) -> float:
        """Return the disk space for one trial of all rows that can run: data sets, checkpoints, results."""
        sets, recipes, runs = set(), set(), 0
        for row in table.rows:
            configs = [
                row.config or c.config for c in table.columns if c.config and c.config not in row.cited
            ]
            if row.init.needs or row.init.cited or not configs:
                continue
            runs += len(configs)
            sets |= {data_set(config) for config in configs}
            if row.init.pretrain and not (fetch and row.init.released):
                recipes.add((row.init.pretrain, row.init.overrides))
        sets |= {data_set(config) for config, _ in recipes}
        made = sum(self.disk[recipe] for recipe, _ in recipes) + self.disk["run"] * runs
        return sum(self.disk[name] for name in sets) + made

    def table(self, name: str) -> Table:
        """Return a table by name. Raise `UserError` with the most similar name if there is none."""
        if name not in self.tables:
            raise UserError(
                f"--table {name}: unknown{nearest(name, list(self.tables))}; --list shows them all"
            )
        return self.tables[name]


def read() -> Book:
    """Read the tables that come with this project."""
    tree = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    released = registry.read()
    inits = {name: _init(name, entry, released.networks) for name, entry in tree["inits"].items()}
    tables = {name: _table(name, entry, inits) for name, entry in tree["tables"].items()}
    return Book(tables, inits, released, tree["hours"], tree["disk"])


def data_set(config: str) -> str:
    """Return which images a config needs: demo, imagenet, voc, cityscapes or coco."""
    if "demo" in config:
        return "demo"
    if config.startswith(("pretrain/", "linear/")):
        return "imagenet"
    return next((name for name in ("voc", "cityscapes") if name in config), "coco")


def _init(name: str, entry: dict[str, Any], released: dict[str, Released]) -> Init:
    parts: dict[str, Any] = {key: released[entry[key]] for key in ("file", "released") if key in entry}
    return Init(name, **{**entry, **parts, "overrides": _texts(entry)})


def _table(name: str, entry: dict[str, Any], inits: dict[str, Init]) -> Table:
    columns = tuple(_column(column) for column in entry["columns"])
    rows = tuple(_row(row, inits) for row in entry["rows"])
    return Table(name, **{**entry, "columns": columns, "rows": rows})


def _row(entry: dict[str, Any], inits: dict[str, Init]) -> Row:
    parts = {key: tuple(entry.get(key, ())) for key in ("paper", "std")}
    return Row(**{**entry, **parts, "init": inits[entry["init"]]})


def _column(entry: dict[str, Any]) -> Column:
    parts: dict[str, Any] = {"metrics": tuple(entry["metrics"]), "overrides": _texts(entry)}
    return Column(**{**entry, **parts})


def _texts(entry: dict[str, Any]) -> tuple[str, ...]:
    return tuple(str(part) for part in entry.get("overrides", ()))
