"""The tables that can be reproduced, as `tables.yaml` describes them."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from pretrain.common.configs import nearest
from pretrain.common.errors import UserError

FILE = Path(__file__).with_name("tables.yaml")


@dataclass(frozen=True)
class Released:
    """A file that others released.

    Attributes:
        name: of the file among `released`.
        digest: "md5 b251726a" or "sha256 ...": the first characters that its owners published; may be empty.
    """

    name: str
    url: str
    digest: str
    licence: str
    note: str = ""


@dataclass(frozen=True)
class Init:
    """Where the weights of a row come from; one of `random`, `file`, `pretrain`, `needs` and `cited` is set.

    Attributes:
        pretrain: config of a recipe to be trained, with `overrides` (KEY, VALUE, ...).
        file: a released file that is converted, or the path of one's own (`--init NAME=FILE`).
        released: a released file that can stand in for the pre-training (`--fetch`).
        needs: why nobody has the weights; `--init NAME=FILE` gives them.
        cited: why the row is only quoted.
    """

    name: str
    title: str
    random: bool = False
    pretrain: str = ""
    overrides: tuple[str, ...] = ()
    file: Released | Path | None = None
    released: Released | None = None
    needs: str = ""
    cited: str = ""


@dataclass(frozen=True)
class Column:
    """One config, and what is read from its results.

    Attributes:
        config: of `tools/train_net.py` (transfer/...) or `tools/linear_eval.py` (linear/...).
        metrics: "bbox.AP50" is task and name in results.json; of the linear probe the name alone.
        cited: why nothing can be run for it.
    """

    metrics: tuple[str, ...]
    config: str = ""
    title: str = ""
    overrides: tuple[str, ...] = ()
    cited: str = ""


@dataclass(frozen=True)
class Row:
    """One init, and the published number of each metric of each column (empty: none is published).

    Attributes:
        config: in the place of every column's, where the paper used another for this row.
        std: published standard deviation of each metric over the table's trials; empty: not published.
        cited: config of a column -> why this row is only quoted there.
    """

    init: Init
    paper: tuple[float | None, ...] = ()
    config: str = ""
    std: tuple[float | None, ...] = ()
    cited: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Table:
    """A table of a paper, or one of our own.

    Attributes:
        trials: runs that the paper's numbers are means of; 1 where it does not say.
    """

    name: str
    title: str
    source: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    trials: int = 1
    note: str = ""

    @property
    def metrics(self) -> tuple[str, ...]:
        """Of all columns, in order: as many as `Row.paper` has numbers."""
        return tuple(metric for column in self.columns for metric in column.metrics)


@dataclass(frozen=True)
class Book:
    """Everything in `tables.yaml`.

    Attributes:
        hours: config -> hours on 8 V100 GPUs, None where nobody reports them.
        disk: data set, config of a recipe, or `run` (of fine-tuning) -> gigabytes.
    """

    tables: dict[str, Table]
    inits: dict[str, Init]
    released: dict[str, Released] = field(default_factory=dict)
    hours: dict[str, float | None] = field(default_factory=dict)
    disk: dict[str, float] = field(default_factory=dict)

    def gigabytes(self, table: Table, *, fetch: bool) -> float:
        """Disk for one trial of all rows that can run: data sets, checkpoints, results."""
        sets, recipes, runs = set(), set(), 0
        for row in table.rows:
            configs = [
                row.config or c.config for c in table.columns if c.config and c.config not in row.cited
            ]
            if row.init.needs or row.init.cited or not configs:
                continue
            runs += len(configs)
            sets |= {_data_set(config) for config in configs}
            if row.init.pretrain and not (fetch and row.init.released):
                recipes.add((row.init.pretrain, row.init.overrides))
        sets |= {"imagenet"} if recipes else set()
        made = sum(self.disk[recipe] for recipe, _ in recipes) + self.disk["run"] * runs
        return sum(self.disk[name] for name in sets) + made

    def table(self, name: str) -> Table:
        """Raises `UserError` that names the nearest table."""
        if name not in self.tables:
            raise UserError(
                f"--table {name}: unknown{nearest(name, list(self.tables))}; --list shows them all"
            )
        return self.tables[name]


def read() -> Book:
    """The tables that this project ships."""
    tree = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    released = {name: Released(name, **entry) for name, entry in tree["released"].items()}
    inits = {name: _init(name, entry, released) for name, entry in tree["inits"].items()}
    tables = {name: _table(name, entry, inits) for name, entry in tree["tables"].items()}
    return Book(tables, inits, released, tree["hours"], tree["disk"])


def _data_set(config: str) -> str:
    """Which images a config of fine-tuning or of the linear probe needs."""
    if config.startswith("linear/"):
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
