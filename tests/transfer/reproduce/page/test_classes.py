"""AP of classes and sizes on the page of a table, against differences computed by hand."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from tests.support import reproduce_runs
from transfer.reproduce.page import classes, figure, page
from transfer.reproduce.page.runs import shown

BOX = {"AP50": 50.0, "AP": 30.0, "AP75": 20.0}


def table(folder: Path, values: dict[str, list[dict[str, float] | None]], **more: Any) -> dict[str, Any]:
    """A table with one seed for each dict of metrics; None: a run that has not finished."""
    rows = {}
    for title, seeds in values.items():
        runs = []
        for seed, extra in enumerate(seeds):
            run = reproduce_runs.run(folder / f"{title}{seed}", (50.0, 30.0, 20.0), seed=seed)
            (folder / f"{title}{seed}/results.json").write_text(
                json.dumps({"metrics": {"val": {"bbox": BOX | (extra or {})}}})
            )
            runs.append(run if extra is not None else run | {"numbers": None})
        rows[title] = reproduce_runs.cell([run for run in runs if run["numbers"]]) | {"tried": {"": runs}}
    return reproduce_runs.table(rows, **{"baseline": "mine", **more})


def of_class(cat: float | None, dog: float | None) -> dict[str, Any]:
    return {"AP-cat": cat, "AP-dog": dog, "APs": 1.0, "APm": cat}


def test_differences_are_paired_by_seed_and_the_largest_comes_first(tmp_path: Path) -> None:
    seeds = {
        "mine": [of_class(10, 30), of_class(20, 40), of_class(30, 50)],
        "other": [of_class(11, 25), None, of_class(33, 41)],
    }
    (found,) = classes.classes(shown(table(tmp_path, seeds)), "mine")
    assert [row["name"] for row in found["rows"]] == ["dog", "cat"]
    dog, cat = found["rows"]
    # Seeds 0 and 2: cat +1 and +3, dog −5 and −9. With n = 2 the interval is mean ± t(0.975, 1) |a − b| / 2.
    t = math.tan(0.475 * math.pi)  # Student's t with one degree of freedom is Cauchy's distribution
    assert cat["differences"] == [{"mean": 2.0, "half": pytest.approx(t * 1)}]
    assert dog["differences"] == [{"mean": -7.0, "half": pytest.approx(t * 2)}]
    assert cat["means"] == [20.0, 22.0] and dog["means"] == [40.0, 33.0]
    (by_size,) = classes.sizes(shown(table(tmp_path / "again", seeds)), "mine")
    assert [(row["name"], row["means"][0]) for row in by_size["rows"]] == [("small", 1.0), ("medium", 20.0)]
    assert by_size["rows"][0]["differences"] == [{"mean": 0.0, "half": 0.0}]


def test_without_a_baseline_or_with_one_seed(tmp_path: Path) -> None:
    seeds = {"mine": [of_class(10, None)], "other": [of_class(11, 25)]}
    (found,) = classes.classes(shown(table(tmp_path, seeds)), "mine")
    assert [(row["name"], row["differences"]) for row in found["rows"]] == [
        ("cat", [{"mean": 1.0, "half": None}]),
        ("dog", [None]),
    ]
    (plain,) = classes.classes(shown(table(tmp_path / "plain", seeds)), None)
    assert plain["compared"] == [] and [row["differences"] for row in plain["rows"]] == [[], []]


def test_an_answer_comes_first_then_its_picture_then_the_conclusions(tmp_path: Path) -> None:
    seeds = {"mine": [of_class(10, 30), of_class(20, 40)], "other": [of_class(11, 25), of_class(33, 41)]}
    page.write(tmp_path / "report.html", table(tmp_path, seeds, answer=["mine is the answer."]))
    text = (tmp_path / "report.html").read_text()
    marks = (
        "<h1>",
        "mine is the answer.",
        "</nav>",
        "<h2>What follows</h2>",
        "<h2>The table</h2>",
        "other − mine</th>",
    )
    places = [text.index(mark) for mark in marks]
    assert places == sorted(places)
    assert places[1] < text.index('role="img" aria-label="VOC: bbox.AP50. mine: 50.0 ± 0.0') < places[2]
    assert "<style>" not in text.partition("<body>")[2]


def test_the_inline_picture_is_as_wide_as_a_phone(tmp_path: Path) -> None:
    seeds = {"mine": [of_class(10, 30)], "a long name " * 5: [of_class(10, 30)]}
    ((title, svg),) = figure.panels(table(tmp_path, seeds))
    assert title == "VOC: bbox.AP50" and 'viewBox="0 0 424 ' in svg
