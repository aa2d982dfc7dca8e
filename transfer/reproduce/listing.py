"""What `tools/reproduce.py --list` prints. It imports neither PyTorch nor detectron2, so that it answers at once."""

import textwrap

from transfer.reproduce.plan import tables
from transfer.reproduce.plan.released import ALL

_WIDTH = 120
_NAMES = 20  # columns for the names of tables


def listing() -> list[str]:
    """Return the lines, of at most 120 columns.

    Each table has its name and title, then the rows that can run and what they cost.
    """
    book = tables.read()
    lines = [
        *_entry("--table", "what it shows (its source)"),
        *_entry(
            "",
            "how many of its rows can run; what one trial of them costs, in hours on 8 V100 and GB of disk, with their "
            "pre-training and with released weights instead (--fetch); ?: no hours are published for some rows",
        ),
        "",
    ]
    for table in book.tables.values():
        lines += _entry(table.name, f"{table.title} ({table.source})")
        if not any(column.config for column in table.columns):
            lines += _entry("", "cited only")
            continue
        able = [row for row in table.rows if not (row.init.needs or row.init.cited)]
        needed = ", ".join(row.init.name for row in table.rows if row.init.needs)
        quoted = sum(bool(row.init.cited) for row in table.rows)
        kinds = [f"--init for {needed}"] if needed else []
        kinds += [f"{quoted} cited only"] if quoted else []
        runnable = f"{len(able)} of {len(table.rows)}" + (f" ({'; '.join(kinds)})" if kinds else "")
        whole, fetched = (
            f"{_cost(table, book, fetch=fetch)} h, {book.gigabytes(table, fetch=fetch):.0f} GB"
            for fetch in (False, True)
        )
        cost = table.cost or (whole if fetched == whole else f"{whole}; with --fetch {fetched}")
        lines += _entry("", f"{runnable}; {cost}")
    known = {quote.config for network in book.released.networks.values() for quote in network.numbers}
    boards = [
        t.name for t in book.tables.values() if any(c.config in known and not c.overrides for c in t.columns)
    ]
    lines += [
        "",
        *textwrap.wrap(
            f"--inits {ALL}: one row for each released network of the same shape, with the published numbers, "
            f"in {', '.join(boards)}",
            _WIDTH,
        ),
        *textwrap.wrap(f"released networks: {', '.join(book.released.names)}", _WIDTH),
    ]
    return lines


def _entry(name: str, text: str) -> list[str]:
    """Return the lines of a text next to a name, or below the text of one."""
    lines = textwrap.wrap(text, _WIDTH - _NAMES, break_long_words=False, break_on_hyphens=False)
    return [f"{name if i == 0 else '':<{_NAMES}}{line}" for i, line in enumerate(lines)]


def _cost(table: tables.Table, book: tables.Book, *, fetch: bool) -> str:
    """Return the hours of all rows that can run, with a `?` if no hours are published for some of them."""
    total, unknown = 0.0, False
    for row in table.rows:
        init = row.init
        if init.needs or init.cited:
            continue
        configs = [row.config or column.config for column in table.columns]
        configs += [init.pretrain] if init.pretrain and not (fetch and init.released) else []
        hours = [book.hours.get(config) for config in configs]
        total += sum(hour or 0 for hour in hours)
        unknown = unknown or None in hours
    return " + ".join([f"{total:.0f}"] * bool(total or not unknown) + ["?"] * unknown)
