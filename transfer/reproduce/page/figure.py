"""A table as a picture: the first metric of each column, a dot for each row with the 95 % interval of its mean."""

from typing import Any

from transfer.report.charts import number, ticks
from transfer.report.html import render

WIDTH = 640
_LEFT, _RIGHT = 230, 60  # for the names of the rows and for their numbers
_ROW, _HEAD, _AXIS = 24, 40, 34  # heights


def draw(table: dict[str, Any]) -> str:
    """Return an SVG file of the dict of `collect.collect`; empty if there is no number yet."""
    panels, top = [], 0
    for place, column in enumerate(table["columns"]):
        cells = [(row, row["cells"][place]["numbers"][0]) for row in table["rows"]]
        found = [(row, cell) for row, cell in cells if cell["ours"]]
        if found:
            panels.append(_panel(f"{column['title']}: {column['metrics'][0]}", found, table["baseline"], top))
            top += panels[-1]["height"]
    if not panels:
        return ""
    return render(
        "intervals.svg", {"title": table["title"], "panels": panels, "width": WIDTH, "height": top + 8}
    )


def _panel(
    title: str, found: list[tuple[dict[str, Any], dict[str, Any]]], baseline: str, top: int
) -> dict[str, Any]:
    ends = [end for _, cell in found for end in (cell["interval"] or [cell["mean"]])]
    marks = ticks(min(0.0, *ends), max(ends))
    low, high = marks[0], marks[-1]

    def across(value: float) -> float:
        return round(_LEFT + (value - low) / (high - low) * (WIDTH - _LEFT - _RIGHT), 1)

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
        "height": bottom + _AXIS,
    }
