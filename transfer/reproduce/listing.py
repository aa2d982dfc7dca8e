"""What `tools/reproduce.py --list` prints. It imports neither PyTorch nor detectron2, so that it answers at once."""

from transfer.reproduce.plan import tables
from transfer.reproduce.plan.released import ALL


def listing() -> list[str]:
    """Return two lines for each table: its name and title, then the rows that can run and what they cost."""
    book = tables.read()
    lines = [
        "table: rows that can run; hours on 8 V100 and GB of disk for one trial without --fetch; with --fetch (of the "
        "demo's tables: in words)",
        "",
    ]
    for table in book.tables.values():
        able = [row for row in table.rows if not (row.init.needs or row.init.cited)]
        runnable = (
            f"{len(able)} of {len(table.rows)}" if any(c.config for c in table.columns) else "cited only"
        )
        needed = ", ".join(row.init.name for row in table.rows if row.init.needs)
        quoted = sum(bool(row.init.cited) for row in table.rows)
        kinds = [f"--init for {needed}"] if needed else []
        kinds += [f"{quoted} cited only"] if quoted else []
        runnable += f" ({'; '.join(kinds)})" if kinds else ""
        lines.append(f"{table.name:<20}{table.title} ({table.source})")
        costs = (
            [table.cost]
            if table.cost
            else [
                f"{_cost(table, book, fetch=fetch)} h {book.gigabytes(table, fetch=fetch):.0f} GB"
                for fetch in (False, True)
            ]
        )
        lines.append(f"{'':<20}{'; '.join([runnable, *costs])}")
    known = {quote.config for network in book.released.networks.values() for quote in network.numbers}
    boards = [
        t.name for t in book.tables.values() if any(c.config in known and not c.overrides for c in t.columns)
    ]
    lines += [
        "",
        f"--inits {ALL}: one row for each released network, with the numbers that their owners published, "
        f"in {', '.join(boards)}",
        f"released networks: {', '.join(book.released.names)}",
    ]
    return lines


def _cost(table: tables.Table, book: tables.Book, *, fetch: bool) -> str:
    """Return the hours of all rows that can run, with `+ ?` if no hours are published for some of them."""
    total, unknown = 0.0, False
    for row in table.rows:
        init = row.init
        if init.needs or init.cited or not any(column.config for column in table.columns):
            continue
        configs = [row.config or column.config for column in table.columns]
        configs += [init.pretrain] if init.pretrain and not (fetch and init.released) else []
        hours = [book.hours.get(config) for config in configs]
        total += sum(hour or 0 for hour in hours)
        unknown = unknown or None in hours
    return f"{total:.0f}{' + ?' if unknown else ''}"
