"""A collected table as Markdown, CSV, LaTeX and JSON; all say the same."""

import csv
import io
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import IO, Any

from pretrain.checkpoint import write_atomic
from transfer.results import write_json


def write(folder: Path, table: dict[str, Any]) -> list[Path]:
    """Write `table.{json,md,csv,tex}` of `collect.collect`; returns their paths."""
    write_json(folder / "table.json", table)
    texts = {"table.md": markdown(table), "table.csv": as_csv(table), "table.tex": latex(table)}
    for name, text in texts.items():
        write_atomic(folder / name, partial(_put, text))
    return [folder / name for name in ("table.json", *texts)]


def _put(text: str, file: IO[bytes]) -> None:
    file.write(text.encode())


def markdown(table: dict[str, Any]) -> str:
    """In the paper's layout: a line for each init, ours beside the paper's in each cell; notes below."""
    lines = [f"# {table['title']}", "", f"{table['source']}. {protocol(table)}", ""]
    lines += _pipes(["init", *heads(table)])
    lines += _pipes(["---"] * (1 + len(heads(table))))
    for row in table["rows"]:
        lines += _pipes(
            [
                row["title"],
                *(_text(n, cell, comparable=is_comparable(table, cell)) for cell, n in numbers(row)),
            ]
        )
    lines += [
        "",
        "Each cell: ours, mean ± standard deviation over runs [95 % interval]; the paper's number and the verdict.",
    ]
    lines += ["", *(f"- {note}" for note in notes(table))]
    return "\n".join(lines).rstrip() + "\n"


def as_csv(table: dict[str, Any]) -> str:
    """One line for each number."""
    file = io.StringIO()
    fields = ("mean", "std", "low", "high", "paper", "difference", "p", "verdict", "runs", "why_not")
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["init", "config", "metric", *fields])
    for row in table["rows"]:
        for cell, number in numbers(row):
            low, high = number.get("interval") or ("", "")
            values = {
                **number,
                "low": low,
                "high": high,
                "runs": " ".join(map(str, number["ours"])),
                **_reason(cell, number),
            }
            line = ["" if values.get(field) is None else values.get(field, "") for field in fields]
            writer.writerow([row["init"], cell["config"], number["metric"], *line])
    return file.getvalue()


def latex(table: dict[str, Any]) -> str:
    """A booktabs table: ours, with the paper's number in small print."""
    columns = heads(table)
    lines = [
        f"% {table['source']}. {protocol(table)}",
        f"\\begin{{tabular}}{{l{'c' * len(columns)}}}",
        "\\toprule",
    ]
    lines.append(" & ".join(["init", *map(_tex, columns)]) + " \\\\ \\midrule")
    for row in table["rows"]:
        cells = [_tex_cell(number) for _, number in numbers(row)]
        lines.append(" & ".join([_tex(row["title"]), *cells]) + " \\\\")
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}"]) + "\n"


def heads(table: dict[str, Any]) -> list[str]:
    """The metrics' names, with the column's title where there are several columns."""
    several = len(table["columns"]) > 1
    return [
        f"{column['title']} {metric}" if several else metric
        for column in table["columns"]
        for metric in column["metrics"]
    ]


def numbers(row: dict[str, Any]) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """(cell, number) of a row, in the order of `heads`."""
    for cell in row["cells"]:
        for number in cell["numbers"]:
            yield cell, number


def protocol(table: dict[str, Any]) -> str:
    """What keeps the numbers from being comparable with the paper's, first."""
    if table["smoke"]:
        return "SMOKE RUN: tiny pictures and a few iterations; no number here means anything."
    if table["schedule"] != 1:
        return f"NOT THE PAPER'S SCHEDULE: {table['schedule']:g} of all iterations and epochs."
    return "Full schedule."


def notes(table: dict[str, Any]) -> list[str]:
    """What a reader must know: the table's own note, tests, settings other than the paper's, gaps."""
    found = [table["note"]] if table["note"] else []
    for row in table["rows"]:
        for cell in row["cells"]:
            where = f"{row['title']}, {cell['config']}"
            if cell["why_not"]:
                found.append(f"{row['title']}: {cell['why_not']}")
            if cell["changes"] and not table["smoke"]:
                found.append(f"{where}: not the paper's recipe: {'; '.join(cell['changes'])}")
            if cell["best"]:
                found.append(
                    f"{where}: best of {len(cell['tried'])} values of {table['sweep']}: {cell['best']}"
                )
    tests = {n["test"] for row in table["rows"] for _, n in numbers(row) if n.get("test")}
    return list(dict.fromkeys([*found, *(f"test: {test}" for test in sorted(tests))]))


def ours(number: dict[str, Any]) -> str:
    """`55.9 ± 0.2 [55.7, 56.1]`, or nothing."""
    if not number["ours"]:
        return ""
    text = f"{number['mean']:.1f}"
    if number["std"] is not None:
        text += f" ± {number['std']:.1f} [{number['interval'][0]:.1f}, {number['interval'][1]:.1f}]"
    return text


def _text(number: dict[str, Any], cell: dict[str, Any], *, comparable: bool) -> str:
    own = ours(number) or "-"
    paper = (
        ""
        if number["paper"] is None
        else f" (paper {number['paper']}{_verdict(number, cell, comparable=comparable)})"
    )
    return own + paper


def is_comparable(table: dict[str, Any], cell: dict[str, Any]) -> bool:
    """Whether a cell was made under the paper's recipe, the whole of it."""
    return not (table["smoke"] or table["schedule"] != 1 or cell["changes"])


def _verdict(number: dict[str, Any], cell: dict[str, Any], *, comparable: bool) -> str:
    if not number.get("verdict"):
        return ""
    if not comparable:
        return ": not comparable"
    return f", {number['difference']:+.1f}: {number['verdict']}"


def _reason(cell: dict[str, Any], number: dict[str, Any]) -> dict[str, str]:
    return {"why_not": "" if number["ours"] else cell["why_not"]}


def _tex_cell(number: dict[str, Any]) -> str:
    own = f"{number['mean']:.1f}" if number["ours"] else "--"
    if number.get("std") is not None:
        own += f" $\\pm$ {number['std']:.1f}"
    return own + ("" if number["paper"] is None else f" {{\\scriptsize ({number['paper']})}}")


def _tex(text: str) -> str:
    escapes = {"%": "\\%", "&": "\\&", "_": "\\_", "#": "\\#"}
    return "".join(escapes.get(letter, letter) for letter in text)


def _pipes(cells: list[str]) -> list[str]:
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"]
