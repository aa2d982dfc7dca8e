"""A table as a picture: the first metric of each column, a dot for each row with the 95 % interval of its mean."""

from typing import Any

from markupsafe import Markup

from transfer.report.charts import number, ticks
from transfer.report.html import render
from transfer.reproduce.page.runs import STYLES
from transfer.reproduce.results import text_tables

_AXIS, _RIGHT = 350, 60  # widths: of the axis, and for the numbers of the rows
_LETTER = 8.2  # pixels of an average letter of the names on the left
_ROW, _HEAD, _FOOT = 24, 40, 34  # heights
_TALL = 46  # height of a row with its name above it, for the width of a phone


def draw(table: dict[str, Any]) -> str:
    """Return an SVG file of the dict of `collect.collect`. A column without a number yet is left out."""
    note = "" if table["schedule"] == 1 and not table["smoke"] else text_tables.protocol(table)
    left = round(30 + _LETTER * max((len(row["title"]) for row in table["rows"]), default=0))
    panels, top = [], 28 if note else 0
    for place, column in enumerate(table["columns"]):
        if found := _numbers(table, place):
            title = f"{column['title']}: {column['metrics'][0]}"
            panels.append(_panel(title, found, table["baseline"], _marks(table, place), left, top))
            top += panels[-1]["height"]
    size = {"width": left + _AXIS + _RIGHT, "height": top + 8}
    return render(
        "intervals.svg", {"title": table["title"], "note": note, "panels": panels, "alone": True, **size}
    )


def panels(table: dict[str, Any]) -> list[tuple[str, Markup]]:
    """Return (title, inline SVG) of each column with numbers, narrow enough for the width of a phone."""
    found = []
    for place, column in enumerate(table["columns"]):
        if numbers := _numbers(table, place):
            title = f"{column['title']}: {column['metrics'][0]}"
            panel = _panel("", numbers, table["baseline"], _marks(table, place), 14, -14, tall=True)
            for drawn, (row, _) in zip(panel["rows"], numbers, strict=True):
                # The colour of the row in the page's other charts.
                drawn["style"] = table["rows"].index(row) % STYLES
            values = "; ".join(f"{row['title']}: {text_tables.ours(number)}" for row, number in numbers)
            size = {"width": 14 + _AXIS + _RIGHT, "height": panel["height"] - 14}
            context = {"title": f"{title}. {values}", "note": "", "panels": [panel], "alone": False, **size}
            found.append((title, Markup(render("intervals.svg", context))))
    return found


def _numbers(table: dict[str, Any], place: int) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Return (row, first number) of the rows that have one under a column."""
    cells = [(row, row["cells"][place]["numbers"][0]) for row in table["rows"]]
    return [(row, cell) for row, cell in cells if cell["ours"]]


def _marks(table: dict[str, Any], place: int) -> list[float]:
    """Return the marks of a column's axis, which all columns of the same metric share."""
    metric = table["columns"][place]["metrics"][0]
    alike = [n for n, column in enumerate(table["columns"]) if column["metrics"][0] == metric]
    cells = [cell for n in alike for _, cell in _numbers(table, n)]
    ends = [end for cell in cells for end in (cell["interval"] or [cell["mean"]])]
    return ticks(min(0.0, *ends), max(ends))


def _panel(
    title: str,
    found: list[tuple[dict[str, Any], dict[str, Any]]],
    baseline: str,
    marks: list[float],
    left: int,
    top: int,
    *,
    tall: bool = False,
) -> dict[str, Any]:
    """Return what the template draws for a column. `tall` puts the names of the rows above their lines."""
    pitch, first = (_TALL, _HEAD + _ROW) if tall else (_ROW, _HEAD)
    low, high = marks[0], marks[-1]

    def across(value: float) -> float:
        return round(left + (value - low) / (high - low) * _AXIS, 1)

    rows = [
        {
            "name": row["title"],
            "y": first + pitch * n,
            "name_y": first + pitch * n - (15 if tall else -5),
            "x": across(cell["mean"]),
            "ends": [across(end) for end in cell["interval"]] if cell["interval"] else None,
            "value": f"{cell['mean']:.1f}",
            "style": 1 if row["title"] == baseline else 0,
        }
        for n, (row, cell) in enumerate(found)
    ]
    bottom = first + pitch * (len(rows) - 1) + 16
    grid = [(across(mark), number(mark)) for mark in marks]
    return {
        "title": title,
        "rows": rows,
        "ticks": grid,
        "top": top,
        "bottom": bottom,
        "height": bottom + _FOOT,
    }
