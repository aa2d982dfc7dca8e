"""A table as a picture: the first metric of each column, a dot for each row with the 95 % interval of its mean."""

from typing import Any

from transfer.report.charts import number, ticks
from transfer.report.html import render
from transfer.reproduce.results import text_tables

_AXIS, _RIGHT = 350, 60  # widths: of the axis, and for the numbers of the rows
_LETTER = 8.2  # pixels of an average letter of the names on the left
_ROW, _HEAD, _FOOT = 24, 40, 34  # heights


def draw(table: dict[str, Any]) -> str:
    """Return an SVG file of the dict of `collect.collect`. A column without a number yet is left out."""
    note = "" if table["schedule"] == 1 and not table["smoke"] else text_tables.protocol(table)
    left = round(30 + _LETTER * max((len(row["title"]) for row in table["rows"]), default=0))
    panels, top = [], 28 if note else 0
    for place, column in enumerate(table["columns"]):
        cells = [(row, row["cells"][place]["numbers"][0]) for row in table["rows"]]
        found = [(row, cell) for row, cell in cells if cell["ours"]]
        if found:
            title = f"{column['title']}: {column['metrics'][0]}"
            panels.append(_panel(title, found, table["baseline"], left, top))
            top += panels[-1]["height"]
    size = {"width": left + _AXIS + _RIGHT, "height": top + 8}
    return render("intervals.svg", {"title": table["title"], "note": note, "panels": panels, **size})


def _panel(
    title: str, found: list[tuple[dict[str, Any], dict[str, Any]]], baseline: str, left: int, top: int
) -> dict[str, Any]:
    ends = [end for _, cell in found for end in (cell["interval"] or [cell["mean"]])]
    marks = ticks(min(0.0, *ends), max(ends))
    low, high = marks[0], marks[-1]

    def across(value: float) -> float:
        return round(left + (value - low) / (high - low) * _AXIS, 1)

    rows = [
        {
            "name": row["title"],
            "y": _HEAD + _ROW * n,
            "x": across(cell["mean"]),
            "ends": [across(end) for end in cell["interval"]] if cell["interval"] else None,
            "value": f"{cell['mean']:.1f}",
            "style": 1 if row["title"] == baseline else 0,
        }
        for n, (row, cell) in enumerate(found)
    ]
    bottom = _HEAD + _ROW * len(rows) - 8
    grid = [(across(mark), number(mark)) for mark in marks]
    return {
        "title": title,
        "rows": rows,
        "ticks": grid,
        "top": top,
        "bottom": bottom,
        "height": bottom + _FOOT,
    }
