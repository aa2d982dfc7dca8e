"""The tables that can be reproduced, as `tables.yaml` describes them."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from pretrain.config import nearest
from pretrain.errors import UserError

FILE = Path(__file__).with_name("tables.yaml")


@dataclass(frozen=True)
class Released:
    """A file that others released.

    Attributes:
        digest: "md5 b251726a" or "sha256 ...": the first characters that its owners published; may be empty.
    """

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
    """

    init: Init
    paper: tuple[float | None, ...] = ()
    config: str = ""


@dataclass(frozen=True)
class Table:
    """A table of a paper, or one of our own.

    Attributes:
        trials: runs that the paper's numbers are means of; 1 where it does not say.
        std: published standard deviation of each metric over those trials; empty: not published.
    """

    name: str
    title: str
    source: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    trials: int = 1
    std: tuple[float | None, ...] = ()
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
    """

    tables: dict[str, Table]
    inits: dict[str, Init]
    released: dict[str, Released] = field(default_factory=dict)
    hours: dict[str, float | None] = field(default_factory=dict)

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
    released = {name: Released(**entry) for name, entry in tree["released"].items()}
    inits = {name: _init(name, entry, released) for name, entry in tree["inits"].items()}
    tables = {name: _table(name, entry, inits) for name, entry in tree["tables"].items()}
    return Book(tables, inits, released, tree["hours"])


def _init(name: str, entry: dict[str, Any], released: dict[str, Released]) -> Init:
    parts: dict[str, Any] = {key: released[entry[key]] for key in ("file", "released") if key in entry}
    return Init(name, **{**entry, **parts, "overrides": _texts(entry)})


def _table(name: str, entry: dict[str, Any], inits: dict[str, Init]) -> Table:
    columns = [_column(column) for column in entry["columns"]]
    rows = [
        Row(inits[row["init"]], tuple(row.get("paper", ())), row.get("config", "")) for row in entry["rows"]
    ]
    parts: dict[str, Any] = {
        "columns": tuple(columns),
        "rows": tuple(rows),
        "std": tuple(entry.get("std", ())),
    }
    return Table(name, **{**entry, **parts})


def _column(entry: dict[str, Any]) -> Column:
    parts: dict[str, Any] = {"metrics": tuple(entry["metrics"]), "overrides": _texts(entry)}
    return Column(**{**entry, **parts})


def _texts(entry: dict[str, Any]) -> tuple[str, ...]:
    return tuple(str(part) for part in entry.get("overrides", ()))
