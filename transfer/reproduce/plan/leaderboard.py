"""Adds released networks to a table as rows, so that all of them are compared by one protocol."""

from collections.abc import Container, Sequence
from dataclasses import replace
from pathlib import Path

from pretrain.common.configs import nearest
from pretrain.common.errors import UserError
from transfer.config.load import read_config
from transfer.convert.vit.convert import BACKBONE
from transfer.reproduce.plan.options import Options
from transfer.reproduce.plan.released import ALL, COMPARABLE, RESNET50, VIT_B, Quote, Registry, Released
from transfer.reproduce.plan.tables import Column, Init, Row, Table


def joined(
    table: Table, options: Options, registry: Registry, *, named: Sequence[str] = ()
) -> tuple[Table, Options]:
    """Return the table with a row for each released network that is asked for, and the options with its row's name.

    They are asked for by `--init NAME` (`named`), by `--inits NAME`, by `--init NAME=FILE` with a released network's
    name, and all at once by `--inits all-released`, which runs random weights and the user's own checkpoints, too. A
    row of the table with the same weights is that row: it then starts from the released file instead of being
    pre-trained.

    Raises:
        UserError: a name is unknown, a network has another shape than the table's detector or no address, or the user's
            file is not the released one.
    """
    rows = {row.init.name: row for row in table.rows}
    asked = _asked(table, options, registry, named, rows)
    run, extra = list(options.inits), dict(options.extra)
    if ALL in run:
        everything = fitting(table, registry)
        if not everything:
            raise UserError(
                f"--inits {ALL}: {table.name} has no detector that a released network fits; coco_FPN_1x has one"
            )
        run = [name for name in ("random", *run) if name != ALL and (name != "random" or name in rows)]
    else:
        everything = {}
    shown: dict[str, str] = {}  # a network -> the row that it became
    for name, network in ({each: registry.networks[each] for each in asked} | everything).items():
        row = _row(table, network, extra.pop(name, None))
        rows[row.init.name], shown[name] = row, row.init.name
    run = [shown.get(registry.aliases.get(name, name), name) if name not in rows else name for name in run]
    run += [*shown.values(), *extra] if everything else []
    if not shown:
        return table, options
    used = {quote.protocol for row in rows.values() for quote in row.quotes} - {COMPARABLE}
    return (
        replace(
            table,
            rows=tuple(rows.values()),
            source=f"{table.source}; released networks: the sources given below their rows",
            protocols={letter: text for letter, text in registry.protocols.items() if letter in used},
        ),
        replace(options, inits=tuple(dict.fromkeys(run)), extra=extra),
    )


def fitting(table: Table, registry: Registry) -> dict[str, Released]:
    """Return the networks that have the shape of all the table's detectors; none for a table without detectors."""
    shapes = _shapes(table)
    return {name: network for name, network in registry.networks.items() if shapes and _fits(network, shapes)}


def _asked(
    table: Table, options: Options, registry: Registry, named: Sequence[str], rows: dict[str, Row]
) -> list[str]:
    """Return the networks that are asked for by name, checked."""
    found: dict[str, str] = {}
    for name in named:
        if registry.get(name) is None:
            raise UserError(
                f"--init {name}: write NAME=FILE for a checkpoint of your own, or the name of a released network"
                f"{nearest(name, registry.names)}"
            )
        found[registry.aliases.get(name, name)] = f"--init {name}"
    for name in (name for name in options.inits if name not in rows and name != ALL):
        if registry.get(name):
            found.setdefault(registry.aliases.get(name, name), f"--inits {name}")
        elif not nearest(name, [*rows, *options.extra]) and (hint := nearest(name, [ALL, *registry.names])):
            raise UserError(f"--inits {name}: neither a row of {table.name} nor a released network{hint}")
    shapes = _shapes(table)
    for name in options.extra:
        if name in registry.networks and name not in rows and _fits(registry.networks[name], shapes):
            found[name] = f"--init {name}"
    for name, words in found.items():
        network = registry.networks[name]
        if not _fits(network, shapes):
            raise UserError(
                f"{words}: this is a {network.shape}, but {table.name} has a detector of another shape"
            )
        if name not in options.extra and (why_not := network.without_address(words)):
            raise UserError(why_not)
    return list(found)


def _shapes(table: Table) -> list[dict[str, float]]:
    """Return the shapes of the table's detectors. A linear probe takes any network."""
    configs = {column.config for column in table.columns if column.config.startswith("transfer/")}
    found = []
    for model in (read_config(config, ()).MODEL for config in sorted(configs)):
        keys, values = (VIT_B, model.VIT) if model.BACKBONE.NAME == BACKBONE else (RESNET50, model.RESNETS)
        found.append({key: values[key] for key in keys})
    return found


def _fits(network: Released, shapes: Sequence[dict[str, float]]) -> bool:
    return all(shape == network.network for shape in shapes)


def _row(table: Table, network: Released, file: Path | None) -> Row:
    """Return the network's row: the table's own if it has these weights, or else a new one."""
    if file and file.is_file():  # a missing file is refused with the other mistakes of --init
        network.refuse_other(file)
    for row in table.rows:
        if network in (row.init.file, row.init.released):
            init = Init(row.init.name, row.init.title, file=file or network, released=network)
            return replace(row, init=init, quotes=_quotes(table, network, without=COMPARABLE))
    needs = "" if file or network.url else f"{network.missing}; download it by hand"
    init = Init(
        network.name, network.title, needs=needs, file=file or (None if needs else network), released=network
    )
    quotes = _quotes(table, network)
    comparable = {quote.config: quote for quote in quotes if quote.protocol == COMPARABLE}
    paper = tuple(
        comparable[column.config].of.get(metric) if _is_quoted(column, comparable) else None
        for column in table.columns
        for metric in column.metrics
    )
    trials = {config: quote.trials for config, quote in comparable.items()}
    return Row(init, paper if any(paper) else (), trials=trials, quotes=quotes)


def _is_quoted(column: Column, configs: Container[str]) -> bool:
    """Return whether published numbers of a config are those of a column: it may train on a part of the labels."""
    return column.config in configs and not column.overrides


def _quotes(table: Table, network: Released, *, without: str = "") -> tuple[Quote, ...]:
    return tuple(
        quote
        for quote in network.numbers
        if quote.protocol != without and any(_is_quoted(column, [quote.config]) for column in table.columns)
    )
