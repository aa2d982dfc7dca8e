"""A collected table as the page shows it: cells with verdicts, notes below each row, and what may be concluded."""

from typing import Any

from transfer.reproduce import outputs

# Verdict -> sign, and class of the page's style sheet: never told apart by colour alone.
SIGNS = {
    "above": ("▲", "above"),
    "below": ("▼", "below"),
    "within noise": ("≈", "noise"),
    "too few trials": ("?", "few"),
    "not comparable": ("⊘", "other"),
}


def whole(table: dict[str, Any]) -> bool:
    """Whether the runs have the paper's length: no number of a smoke run or a shortened one is comparable."""
    return not table["smoke"] and table["schedule"] == 1


def tests(table: dict[str, Any]) -> list[str]:
    """The tests that were made, in the order of the footnotes' numbers."""
    pairs = [(cell, number) for row in table["rows"] for cell, number in outputs.numbers(row)]
    made = [(_verdict(table, cell, number), number.get("test")) for cell, number in pairs]
    return list(dict.fromkeys(test for verdict, test in made if test and verdict != "not comparable"))


def rows(table: dict[str, Any]) -> list[dict[str, Any]]:
    """`title`, `cells` of every number, each with its column's `head`, `notes` of (kind, text) below them."""
    known, heads = tests(table), outputs.heads(table)
    return [
        {
            "title": row["title"],
            "cells": [
                {"head": head, **_cell(table, cell, number, known)}
                for head, (cell, number) in zip(heads, outputs.numbers(row), strict=True)
            ],
            "notes": _notes(table, row),
        }
        for row in table["rows"]
    ]


def _cell(
    table: dict[str, Any], cell: dict[str, Any], number: dict[str, Any], known: list[str]
) -> dict[str, Any]:
    """One number, ready to be printed."""
    verdict, test = _verdict(table, cell, number), number.get("test")
    sign, style = SIGNS.get(verdict, ("", ""))
    comparable = verdict and verdict != "not comparable"
    return {
        "mean": number.get("mean"),
        "std": number.get("std"),
        "interval": number.get("interval"),
        "runs": len(number["ours"]),
        "paper": number["paper"],
        "difference": number.get("difference") if comparable else None,
        "p": number.get("p") if comparable else None,
        "verdict": verdict, "sign": sign, "style": style,
        "footnote": known.index(test) + 1 if comparable and test else None,
    }  # fmt: skip


def _verdict(table: dict[str, Any], cell: dict[str, Any], number: dict[str, Any]) -> str:
    found = str(number.get("verdict") or "")
    return "not comparable" if found and (cell.get("changes") or not whole(table)) else found


def _notes(table: dict[str, Any], row: dict[str, Any]) -> list[dict[str, Any]]:
    """`kind`, `text` and a list of `settings`: why there is no number, settings other than the paper's, sweeps."""
    found: list[dict[str, Any]] = []
    same = len({cell["why_not"] for cell in row["cells"]}) == 1
    for column, cell in zip(table["columns"], row["cells"], strict=True):
        where = f"{column['title']}: " if len(table["columns"]) > 1 else ""
        if cell["why_not"]:
            found.append(
                {
                    "kind": "why",
                    "text": cell["why_not"] if same else f"{where}{cell['why_not']}",
                    "settings": [],
                }
            )
        if changes := cell.get("changes"):
            text = f"{where}not the paper’s recipe, so not comparable"
            found.append({"kind": "change", "text": text, "settings": changes})
        if cell["best"]:
            text = f"{where}tuned: {table['sweep']} {cell['best']}, the best of {len(cell['tried'])} values"
            found.append({"kind": "tuned", "text": text, "settings": []})
    return list({note["text"]: note for note in found}.values())


def signed(value: float) -> str:
    """`+0.4`, `−1.2`, and 0.0 without a sign."""
    text = f"{value:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text.replace("-", "−")


def conclusions(table: dict[str, Any]) -> list[str]:
    """What the verdicts say, and no more."""
    if table["smoke"]:
        return ["A smoke run shows that everything runs. It shows nothing about the methods."]
    if not whole(table):
        return [f"With {table['schedule']:g} of the schedule, nothing can be said about the paper’s numbers."]
    found: list[str] = []
    for row in table["rows"]:
        said: dict[str, list[str]] = {}
        for (cell, number), head in zip(outputs.numbers(row), outputs.heads(table), strict=True):
            verdict = _verdict(table, cell, number)
            if verdict in ("above", "below"):
                said.setdefault(verdict, []).append(f"{head} ({signed(number['difference'])})")
            elif verdict:
                said.setdefault(verdict, []).append(head)
        parts = [f"{_WORDS[verdict]} in {', '.join(heads)}" for verdict, heads in said.items()]
        found += [f"{row['title']}: {'; '.join(parts)}."] if parts else []
    return found or ["No number stands beside a published one yet, so nothing can be concluded."]


_WORDS = {
    "above": "above the paper",
    "below": "below the paper",
    "within noise": "not told apart from the paper",
    "too few trials": "too few trials to say anything",
    "not comparable": "not comparable with the paper",
}
