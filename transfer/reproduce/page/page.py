"""Writes `report.html`: a collected table and everything its runs produced, in one self-contained file."""

import json
from pathlib import Path
from typing import Any

from pretrain.common.files import write_text
from transfer.report.html import render
from transfer.reproduce.page import classes, curves, facts, figure, pictures
from transfer.reproduce.page.runs import STYLES, jobs, shown
from transfer.reproduce.page.table import conclusions, rows, sweeps, tests, trials, whole
from transfer.reproduce.results import text_tables


def write(path: Path, table: dict[str, Any]) -> None:
    """Write the page for the dict of `collect.collect`. The folders of the runs that it names may be missing."""
    context = _context(table)
    content = render("reproduce.html", context, signed=text_tables.signed, minus=text_tables.difference)
    write_text(path, content, errors="replace")  # a file name may not be valid text


def _context(table: dict[str, Any]) -> dict[str, Any]:
    table = json.loads(json.dumps(table))  # as read from table.json, which a page can be made from, too
    runs = shown(table)
    return {
        "table": table,
        "answer": table.get("answer", ()),
        "other_protocol": text_tables.OTHER_PROTOCOL,
        "whole": whole(table),
        "protocol": text_tables.protocol(table),
        "panels": figure.panels(table) if table.get("baseline") else [],
        "rows": rows(table),
        "published": text_tables.published(table),
        "differences": text_tables.differences(table),
        "tests": tests(table),
        "trials": trials(table),
        "conclusions": conclusions(table),
        "sweeps": sweeps(table),
        "charts": curves.charts(runs),
        "classes": classes.classes(runs, table.get("baseline")),
        "sizes": classes.sizes(runs, table.get("baseline")),
        "pictures": pictures.pictures(runs),
        "proofs": facts.proofs(runs),
        "digests": facts.digests(runs),
        "painted": facts.painted(runs),
        "environment": {part: facts.environment(runs, part) for part in ("versions", "hardware")},
        "cost": facts.cost(jobs(table)),
        "styles": {row["init"]: number % STYLES for number, row in enumerate(table["rows"])},
    }
