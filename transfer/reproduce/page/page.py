"""`report.html`: a collected table with all that its runs left, in one file that needs nothing else."""

import json
from functools import partial
from pathlib import Path
from typing import IO, Any

from pretrain.common.files import write_atomic
from transfer.report.html import render
from transfer.reproduce.page import curves, facts, pictures
from transfer.reproduce.page import runs as page_runs
from transfer.reproduce.page import table as page_table
from transfer.reproduce.results import text_tables


def write(path: Path, table: dict[str, Any]) -> None:
    """Write the page of `collect.collect`'s dict; what it names of the runs' folders may be missing."""
    content = render("reproduce.html", _context(table), signed=page_table.signed)
    write_atomic(path, partial(_put, content))


def _put(text: str, file: IO[bytes]) -> None:
    file.write(text.encode("utf-8", errors="replace"))  # a name of a foreign file may be no text


def _context(table: dict[str, Any]) -> dict[str, Any]:
    table = json.loads(json.dumps(table))  # as in table.json: a page can be made from that, too
    runs = page_runs.shown(table)
    return {
        "table": table,
        "whole": page_table.whole(table),
        "protocol": text_tables.protocol(table),
        "rows": page_table.rows(table),
        "tests": page_table.tests(table),
        "trials": page_table.trials(table),
        "conclusions": page_table.conclusions(table),
        "sweeps": page_table.sweeps(table),
        "charts": curves.charts(runs),
        "classes": facts.classes(runs),
        "pictures": pictures.pictures(runs),
        "proofs": facts.proofs(runs),
        "digests": facts.digests(runs),
        "environment": {part: facts.environment(runs, part) for part in ("versions", "hardware")},
        "cost": facts.cost(page_runs.jobs(table)),
        "styles": {row["init"]: number % page_runs.STYLES for number, row in enumerate(table["rows"])},
    }
