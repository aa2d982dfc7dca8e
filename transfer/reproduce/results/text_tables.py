"""Writes a collected table as Markdown, CSV, LaTeX and JSON, all with the same content."""

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pretrain.common.files import write_json, write_text
from transfer.reproduce.results.collect import NOT_COMPARABLE, finished

DIFFERENCES = "Differences are paired by seed: mean [95 % interval]."
OTHER_PROTOCOL = "Numbers with † are published numbers of another protocol; they cannot be compared."
_DAGGER = "$^\\dagger$"
_TEX = {
    **{letter: f"\\{letter}" for letter in "%&_#${}"},
    "\\": "\\textbackslash{}",
    "[": "{[}",  # at the start of a row LaTeX would read it as an option of the previous line
    "~": "\\textasciitilde{}",
    "^": "\\textasciicircum{}",
    "±": "$\\pm$",
    "τ": "$\\tau$",
    "†": "$^\\dagger$",
    "−": "$-$",
}


def write(folder: Path, table: dict[str, Any]) -> list[Path]:
    """Write `table.{json,md,csv,tex}` from the dict of `collect.collect`. Return their paths."""
    write_json(folder / "table.json", table)
    texts = {"table.md": markdown(table), "table.csv": as_csv(table), "table.tex": latex(table)}
    for name, text in texts.items():
        write_text(folder / name, text, errors="replace")  # a file name may not be valid text
    return [folder / name for name in ("table.json", *texts)]


def markdown(table: dict[str, Any]) -> str:
    """Return Markdown in the paper's layout: a line per init, our number and the paper's in each cell, then notes."""
    lines = [f"# {table['title']}", "", f"{table['source']}. {protocol(table)}", ""]
    lines += [f"- {sentence}" for sentence in table.get("answer", ())] + [""] * bool(table.get("answer"))
    lines += _pipes(["init", *heads(table)])
    lines += _pipes(["---"] * (1 + len(heads(table))))
    for row in rows(table):
        lines += _pipes([row["title"], *(_text(cell, number) for cell, number in numbers(row))])
    lines += [line for title, cells in differences(table) for line in _pipes([title, *cells])]
    each = "Each cell: ours, mean ± standard deviation over runs [95 % interval], n where runs are missing"
    each += "; the paper's number and the verdict." if published(table) else "."
    each += f" {OTHER_PROTOCOL}" if table.get("protocols") else ""
    lines += ["", f"{each} {DIFFERENCES}" if differences(table) else each]
    lines += ["", *(f"- {note}" for note in notes(table))]
    return "\n".join(lines).rstrip() + "\n"


def as_csv(table: dict[str, Any]) -> str:
    """Return CSV with one line for each number; `runs` are our results, `planned` how many there should be."""
    file = io.StringIO()
    fields = (
        "mean", "std", "low", "high", "paper", "difference", "p", "verdict", "runs", "why_not", "planned", "sweep",
        "changes", "other_protocols", "minus_baseline", "minus_baseline_low", "minus_baseline_high",
    )  # fmt: skip
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["init", "config", "metric", *fields])
    for row in rows(table):
        for cell, number in numbers(row):
            low, high = number.get("interval") or ("", "")
            whole = number["ours"] and not count(number)
            values = {
                **number,
                "low": low,
                "high": high,
                "runs": " ".join(map(str, number["ours"])),
                "why_not": "" if whole else cell["why_not"],
                "sweep": f"{table['sweep']}={cell['best']}" if cell["best"] else "",
                "changes": "; ".join(cell.get("changes", ())),
                **_subtracted(number),
                "other_protocols": " ".join(elsewhere(number)),
            }
            line = ["" if values.get(field) is None else values.get(field, "") for field in fields]
            writer.writerow([row["init"], cell["config"], number["metric"], *line])
    return file.getvalue()


def latex(table: dict[str, Any]) -> str:
    """Return a booktabs table: our number, then the paper's, interval and verdict in small print; notes below."""
    columns = heads(table)
    # On one line: a line break would end the comment.
    head = " ".join(f"{table['source']}. {protocol(table)}".split())
    lines = [f"% {head}", f"\\begin{{tabular}}{{l{'c' * len(columns)}}}", "\\toprule"]
    lines.append(" & ".join(["init", *map(_tex, columns)]) + " \\\\ \\midrule")
    for row in rows(table):
        cells = [_tex_cell(cell, number) for cell, number in numbers(row)]
        lines.append(" & ".join([_tex(row["title"]), *cells]) + " \\\\")
    if below := differences(table):
        lines.append("\\midrule")
        lines += [" & ".join(map(_tex, [title, *cells])) + " \\\\" for title, cells in below]
    lines += ["\\bottomrule", "\\end{tabular}"]
    found = [_tex(note) for note in notes(table)]
    if any(number.get("verdict") == NOT_COMPARABLE for row in rows(table) for _, number in numbers(row)):
        found.insert(0, f"{_DAGGER} Not comparable with the paper. {_tex(protocol(table))}")
    lines += [f"\\par{{\\footnotesize {note}}}" for note in found]
    return "\n".join(lines) + "\n"


def rows(table: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the rows; after a swept row also the same row with the recipe's own value, if that was tried."""
    for row in table["rows"]:
        yield row
        if any(cell.get("untuned") for cell in row["cells"]):
            cells = [_untuned(cell) for cell in row["cells"]]
            yield {**row, "title": f"{row['title']}, untuned", "cells": cells}


def _untuned(cell: dict[str, Any]) -> dict[str, Any]:
    found = cell.get("untuned")
    if not any(cell["tried"]):  # not swept: the sweep is for another column, or the row is only quoted
        return cell
    if found is None:
        numbers = [{"metric": n["metric"], "paper": n["paper"], "ours": []} for n in cell["numbers"]]
        return {
            **cell,
            "numbers": numbers,
            "changes": [],
            "best": "",
            "why_not": "the recipe's value was not tried",
        }
    return {**cell, "numbers": found["numbers"], "changes": found["changes"], "best": found["value"]}


def heads(table: dict[str, Any]) -> list[str]:
    """Return the names of the metrics, prefixed with the column's title if there are several columns."""
    several = len(table["columns"]) > 1
    return [
        f"{column['title']} {metric}" if several else metric
        for column in table["columns"]
        for metric in column["metrics"]
    ]


def numbers(row: dict[str, Any]) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Yield (cell, number) for each number of a row, in the order of `heads`."""
    for cell in row["cells"]:
        for number in cell["numbers"]:
            yield cell, number


def differences(table: dict[str, Any]) -> list[tuple[str, list[str]]]:
    """Return a row of text for each row with differences to the baseline: `+1.8 [+0.9, +2.7]`."""
    found = []
    for row in table["rows"]:
        cells = [difference(number.get("minus_baseline")) for _, number in numbers(row)]
        if any(cells):
            found.append((f"{row['title']} − {table['baseline']}", cells))
    return found


def difference(found: dict[str, Any] | None) -> str:
    """Return `+1.8 [+0.9, +2.7]`: a difference to the baseline, and its interval with several seeds."""
    if not found:
        return ""
    mean, half = found["mean"], found["half"]
    text = signed(mean)
    return text if half is None else f"{text} [{signed(mean - half)}, {signed(mean + half)}]"


def signed(value: float) -> str:
    """Return `+0.4` or `−1.2`, and 0.0 without a sign."""
    text = f"{value:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text.replace("-", "−")


def elsewhere(number: dict[str, Any]) -> list[str]:
    """Return `39.8†H` for each published number of another protocol."""
    return [f"{each['value']}†{each['protocol']}" for each in number.get("elsewhere", ())]


def _subtracted(number: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of the CSV file for the difference to the baseline."""
    found = number.get("minus_baseline")
    if not found:
        return {}
    mean, half = found["mean"], found["half"]
    names = ("minus_baseline", "minus_baseline_low", "minus_baseline_high")
    ends = ("", "") if half is None else (mean - half, mean + half)
    return dict(zip(names, (mean, *ends), strict=True))


def published(table: dict[str, Any]) -> bool:
    """Return whether a paper has numbers for this table."""
    return any(number["paper"] is not None for row in table["rows"] for _, number in numbers(row))


def protocol(table: dict[str, Any]) -> str:
    """Return a sentence on the schedule: above all, whether it makes the numbers incomparable with the paper's."""
    if table["smoke"]:
        return "SMOKE RUN: tiny pictures and a few iterations; no number here means anything."
    if table["schedule"] != 1:
        whose = "PAPER'S" if published(table) else "FULL"
        return f"NOT THE {whose} SCHEDULE: {table['schedule']:g} of all iterations and epochs."
    return "Full schedule."


def notes(table: dict[str, Any]) -> list[str]:
    """Return notes for the reader: the table's own note, gaps, settings other than the paper's, and tests."""
    found = [table["note"]] if table["note"] else []
    found += [f"†{letter}: not our protocol: {text}" for letter, text in table.get("protocols", {}).items()]
    for row in table["rows"]:
        found += [f"{row['title']}: {quote}" for quote in row.get("quotes", ())]
        for cell in row["cells"]:
            where = f"{row['title']}, {cell['config']}"
            if cell["why_not"]:
                found.append(f"{row['title']}: {gap(cell)}{cell['why_not']}")
            if cell["changes"] and not table["smoke"]:
                what = "not the paper's recipe" if published(table) else "settings other than the config's"
                found.append(f"{where}: {what}: {'; '.join(cell['changes'])}")
            if cell["best"]:
                found.append(f"{where}: best of {choice(cell)} of {table['sweep']}: {cell['best']}")
    tests = {n["test"] for row in rows(table) for _, n in numbers(row) if n.get("test")}
    return list(dict.fromkeys([*found, *(f"test: {test}" for test in sorted(tests))]))


def gap(cell: dict[str, Any]) -> str:
    """Return the prefix of a cell's `why_not`: how many runs are missing, if it has some; else an empty string."""
    if not any(number["ours"] for number in cell["numbers"]):
        return ""
    missing = sum(not run["numbers"] for runs in cell["tried"].values() for run in runs)
    if missing == 1:
        return "One run is missing: "
    return f"{missing} runs are missing: " if missing else "Incomplete: "


def choice(cell: dict[str, Any]) -> str:
    """Return how many values of a sweep the best was chosen from: `3 values`, or `2 finished, of 3 values`."""
    done = sum(map(finished, cell["tried"].values()))
    several = f"{len(cell['tried'])} values"
    return several if done == len(cell["tried"]) else f"{done} finished, of {several}"


def ours(number: dict[str, Any]) -> str:
    """Return `55.9 ± 0.2 [55.7, 56.1]`, with `n = 2 of 3` if runs are missing; empty if there are none."""
    if not number["ours"]:
        return ""
    text = f"{number['mean']:.1f}"
    if number["std"] is not None:
        text += f" ± {number['std']:.1f} [{number['interval'][0]:.1f}, {number['interval'][1]:.1f}]"
    return ", ".join(filter(None, (text, count(number))))


def count(number: dict[str, Any]) -> str:
    """Return `n = 2 of 3` if runs are missing, else an empty string."""
    have, planned = len(number["ours"]), number.get("planned", len(number["ours"]))
    return f"n = {have} of {planned}" if have < planned else ""


def _text(cell: dict[str, Any], number: dict[str, Any]) -> str:
    own = ours(number) or cell["kind"]
    own += "" if number["paper"] is None else f" (paper {number['paper']}{_verdict(number)})"
    return " ".join([own, *(f"({text})" for text in elsewhere(number))])


def _verdict(number: dict[str, Any]) -> str:
    if not number.get("verdict"):
        return ""
    if number["difference"] is None:
        return f": {number['verdict']}"
    return f", {number['difference']:+.1f}: {number['verdict']}"


def _tex_cell(cell: dict[str, Any], number: dict[str, Any]) -> str:
    own = f"{number['mean']:.1f}" if number["ours"] else f"{{\\scriptsize {_tex(cell['kind'])}}}"
    verdict = number.get("verdict") or ""
    if number.get("std") is not None:
        own += f" $\\pm$ {number['std']:.1f}"
    if verdict == NOT_COMPARABLE:
        own += _DAGGER
    if number["paper"] is not None:
        own += f" {{\\scriptsize ({number['paper']})}}"
    for text in elsewhere(number):
        own += f" {{\\scriptsize ({_tex(text)})}}"
    interval = "[{:.1f}, {:.1f}]".format(*number["interval"]) if number.get("interval") else ""
    small = ", ".join(filter(None, (interval, count(number), "" if verdict == NOT_COMPARABLE else verdict)))
    return own + (f" {{\\scriptsize {small}}}" if small else "")


def _tex(text: str) -> str:
    return "".join(_TEX.get(letter, letter) for letter in text)


def _pipes(cells: list[str]) -> list[str]:
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"]
