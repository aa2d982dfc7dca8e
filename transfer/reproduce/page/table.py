"""A collected table as the page shows it: cells with verdicts, notes below each row, and conclusions."""

import statistics
from collections.abc import Sequence
from typing import Any

from transfer.reproduce.plan.recipe_changes import is_recipes
from transfer.reproduce.results import text_tables
from transfer.reproduce.results.collect import NOT_COMPARABLE

# Verdict -> sign, and class of the page's style sheet: colour alone never distinguishes two verdicts.
SIGNS = {
    "above": ("▲", "above"),
    "below": ("▼", "below"),
    "within noise": ("≈", "noise"),
    "too few trials": ("?", "few"),
    "no spread between runs": ("?", "few"),
    NOT_COMPARABLE: ("⊘", "other"),
}


def whole(table: dict[str, Any]) -> bool:
    """Return whether the runs have the paper's schedule; smoke runs and shortened runs are never comparable."""
    return not table["smoke"] and table["schedule"] == 1


def tests(table: dict[str, Any]) -> list[str]:
    """Return the statistical tests that were used, in the order of their footnotes."""
    made = [number.get("test") for row in table["rows"] for _, number in text_tables.numbers(row)]
    return list(dict.fromkeys(test for test in made if test))


def trials(table: dict[str, Any]) -> str:
    """Return how many trials the paper's numbers are means of; it may say so for some columns only."""
    if not text_tables.published(table):
        return ""
    several = [column for column in table["columns"] if column.get("trials", table["trials"]) > 1]
    if not several:
        return "The paper does not say how many trials its numbers are means of."
    titles = ", ".join(column["title"] for column in several)
    of = f" under {titles}" if len(several) < len(table["columns"]) else ""
    return f"The paper’s numbers{of} are means of {table['trials']} trials."


def rows(table: dict[str, Any]) -> list[dict[str, Any]]:
    """Return for each row its `title`, its `cells` (one per number, with the column's `head`), and its `notes`."""
    known, heads = tests(table), text_tables.heads(table)
    return [
        {
            "title": row["title"],
            "cells": [
                {"head": head, **_cell(number, known)}
                for head, (_, number) in zip(heads, text_tables.numbers(row), strict=True)
            ],
            "notes": _notes(table, row),
        }
        for row in table["rows"]
    ]


def _cell(number: dict[str, Any], known: list[str]) -> dict[str, Any]:
    """Return one number, ready to be printed."""
    verdict, test = number.get("verdict") or "", number.get("test")
    sign, style = SIGNS.get(verdict, ("", ""))
    return {
        "mean": number.get("mean"),
        "std": number.get("std"),
        "interval": number.get("interval"),
        "count": text_tables.count(number),
        "paper": number["paper"],
        "elsewhere": number.get("elsewhere", []),
        "difference": number.get("difference"),
        "p": number.get("p"),
        "verdict": verdict, "sign": sign, "style": style,
        "footnote": known.index(test) + 1 if test else None,
    }  # fmt: skip


def _notes(table: dict[str, Any], row: dict[str, Any]) -> list[dict[str, Any]]:
    """Return notes with `kind`, `text` and `settings`: missing numbers, settings other than the paper's, sweeps."""
    found: list[dict[str, Any]] = []
    reasons = [_reason(cell) for cell in row["cells"]]
    for column, cell, why in zip(table["columns"], row["cells"], reasons, strict=True):
        where = f"{column['title']}: " if len(table["columns"]) > 1 else ""
        if why:
            text = why if len(set(reasons)) == 1 else f"{where}{why}"
            found.append({"kind": "why", "text": text, "settings": []})
        if changes := cell.get("changes"):
            text = (
                f"{where}not the paper’s recipe, so not comparable"
                if text_tables.published(table)
                else f"{where}settings other than the config’s"
            )
            found.append({"kind": "change", "text": text, "settings": changes})
        if cell["best"]:
            text = f"{where}tuned: {table['sweep']} {cell['best']}, the best of {text_tables.choice(cell)}"
            found.append({"kind": "tuned", "text": text, "settings": []})
    found += [{"kind": "quote", "text": quote, "settings": []} for quote in row.get("quotes", ())]
    return list({note["text"]: note for note in found}.values())


def _reason(cell: dict[str, Any]) -> str:
    return f"{text_tables.gap(cell) or 'No number: '}{cell['why_not']}" if cell["why_not"] else ""


def conclusions(table: dict[str, Any]) -> list[str]:
    """Return sentences that say what the verdicts say, and nothing else."""
    if table["smoke"]:
        return ["A smoke run shows that everything runs. It says nothing about the methods."]
    if not text_tables.published(table):
        return _differences(table) or ["There is nothing to compare yet, so nothing can be concluded."]
    if not whole(table):
        return [f"With {table['schedule']:g} of the schedule, nothing can be said about the paper’s numbers."]
    found: list[str] = []
    for row in table["rows"]:
        said: dict[str, list[str]] = {}
        for (_, number), head in zip(text_tables.numbers(row), text_tables.heads(table), strict=True):
            verdict = number.get("verdict") or ""
            if verdict in ("above", "below"):
                said.setdefault(verdict, []).append(f"{head} ({text_tables.signed(number['difference'])})")
            elif verdict:
                said.setdefault(verdict, []).append(head)
        parts = [f"{_WORDS[verdict]} in {', '.join(heads)}" for verdict, heads in said.items()]
        found += [f"{row['title']}: {'; '.join(parts)}."] if parts else []
    return found or ["No number can be compared with a published one yet, so nothing can be concluded."]


def _differences(table: dict[str, Any]) -> list[str]:
    """Return a sentence for each row with differences to the baseline."""
    found, baseline = [], table["baseline"]
    for row in table["rows"]:
        said: dict[str, list[str]] = {}
        for (_, number), head in zip(text_tables.numbers(row), text_tables.heads(table), strict=True):
            if difference := number.get("minus_baseline"):
                mean, half = difference["mean"], difference["half"]
                if half is None:
                    word = "few"
                elif half == 0:
                    word = "equal"
                else:
                    word = "none" if abs(mean) <= half else "higher" if mean > 0 else "lower"
                said.setdefault(word, []).append(f"{head} ({text_tables.difference(difference)})")
        parts = [f"{_SAID[word].format(baseline)} in {', '.join(heads)}" for word, heads in said.items()]
        found += [f"{row['title']}: {'; '.join(parts)}."] if parts else []
    return found


_SAID = {
    "higher": "higher than {}",
    "lower": "lower than {}",
    "none": "no difference to {} was shown",
    "equal": "no verdict, since all seeds differ equally from {},",
    "few": "one seed is too few to tell it from {}",
}

_WORDS = {
    "above": "above the paper",
    "below": "below the paper",
    "within noise": "not distinguishable from the paper",
    "too few trials": "too few trials for a verdict",
    "no spread between runs": "no verdict, since the runs are equal and show no spread,",
    NOT_COMPARABLE: "not comparable with the paper",
}


def sweeps(table: dict[str, Any]) -> list[dict[str, Any]]:
    """Return one entry for each cell with several values: `title`, `column`, `metrics`, `rows` and `gain`.

    A row has `value`, `means`, `runs` and `marks` ("best", "recipe" or both). `gain` is the first metric of the best
    value minus that of the recipe's own value; None if the latter was not tried.
    """
    found = []
    for row in table["rows"]:
        for column, cell in zip(table["columns"], row["cells"], strict=True):
            if table["sweep"] and len(cell["tried"]) > 1:
                found.append(_entry(table["sweep"], row["title"], column, cell))
    return found


def _entry(key: str, title: str, column: dict[str, Any], cell: dict[str, Any]) -> dict[str, Any]:
    rows: list[dict[str, Any]] = []
    first: dict[str, float] = {}
    for value, runs in cell["tried"].items():
        numbers = [run["numbers"] for run in runs if run["numbers"]]
        means = [_mean(each) for each in zip(*numbers, strict=True)]
        is_own = is_recipes(cell["config"], key, value)
        marks = [
            word for word, holds in (("best", means and value == cell["best"]), ("recipe", is_own)) if holds
        ]
        if means and means[0] is not None:
            first |= dict.fromkeys(marks, means[0])
        rows.append({"value": value, "means": means, "runs": len(numbers), "marks": marks})
    gain = first["best"] - first["recipe"] if {"best", "recipe"} <= first.keys() else None
    return {
        "title": title,
        "column": column["title"],
        "metrics": column["metrics"],
        "rows": rows,
        "gain": gain,
    }


def _mean(values: Sequence[float | None]) -> float | None:
    found = [value for value in values if value is not None]
    return statistics.fmean(found) if found else None
