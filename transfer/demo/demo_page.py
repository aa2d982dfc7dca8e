"""Collects the content of the demo page from the files that the stages wrote."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tabulate import tabulate

from pretrain.data.views_sheet import columns
from transfer.convert.verify import TOLERANCE
from transfer.demo import comparison, savings
from transfer.demo.comparison import BASELINE, ROWS
from transfer.demo.noise import MEASURED, Noise
from transfer.prepare.demo.build import FALLBACK
from transfer.prepare.demo.demo_set import HONEST
from transfer.prepare.sets.open_nsfw import PROVENANCE
from transfer.report.charts import Chart, Line, chart, points
from transfer.report.run_files import (
    credits_of,
    jpeg_uri,
    open_picture,
    photographs,
    read_config,
    read_json,
    read_log,
)

PHOTOGRAPHS = 6  # of each split
VIEWS = 4  # training images shown with their views


def context(folder: Path) -> dict[str, Any]:
    """Return all variables of `templates/report.html` except the stages. Raises `UserError` if a file is missing."""
    demo = read_json(folder / "demo.json")
    data = Path(demo["data"])
    runs, results, logs = _read(folder, demo)
    random = results[BASELINE]
    state = read_json(data / "demo.json")
    noise = _noise(demo)
    return {
        "size": demo["size"],
        "backbone": demo["backbone"],
        "count": len(random),
        "rows": {key: ROWS[key] for key in results},
        "left_out": {ROWS[key].name: reason for key, reason in demo["left_out"].items()},
        "provenance": PROVENANCE,
        "curves": savings.charts(logs),
        "savings": savings.sentence(logs),
        "overall": comparison.overall(results, noise),
        "differences": comparison.differences(results, noise),
        "classes": comparison.classes(results),
        "seeds": comparison.seeds(results),
        "verdict": comparison.verdict(results, noise),
        "iterations": random[0]["iterations"],
        "pictures": _pictures(folder / "pictures", list(results)),
        "detector": read_config(runs[BASELINE][0] / "config.yaml"),
        "pretrain": _pretraining(folder / "pretrain"),
        "finetune": _finetuning(logs),
        "conversions": {
            ROWS[key].name: _conversion(folder / f"{key}.json") for key in results if key != BASELINE
        },
        "limit": _power(f"{TOLERANCE:.0e}"),
        "versions": random[0]["versions"],
        "hardware": random[0]["hardware"],
        "digests": _digests(results, state),
        "data": _data(data, state),
    }


def summary(folder: Path) -> list[str]:
    """Return what the demo prints at its end: the table, the sentences and what was left out."""
    demo = read_json(folder / "demo.json")
    _, results, logs = _read(folder, demo)
    noise = _noise(demo)
    found = (*comparison.overall(results, noise), *comparison.differences(results, noise))
    table = [(name, *cells) for name, cells in found]
    header = ("", *(f"{word} {name}" for word in comparison.TASKS.values() for name in comparison.METRICS))
    lines = tabulate(table, header, tablefmt="plain", disable_numparse=True).splitlines()
    if "supervised" in results:
        lines.append(f"The supervised network is {PROVENANCE}.")
    lines += [f"left out: {ROWS[key].name}: {reason}" for key, reason in demo["left_out"].items()]
    return [*lines, savings.sentence(logs), comparison.verdict(results, noise)]


def _noise(demo: dict[str, Any]) -> Noise | None:
    """Return the noise of a demo of one seed, if it was measured for its network, size and photographs."""
    state = read_json(Path(demo["data"]) / "demo.json")
    if len(demo["seeds"]) > 1 or state.get("source") == FALLBACK:
        return None
    return MEASURED.get((demo["backbone"], demo["size"]))


def _read(
    folder: Path, demo: dict[str, Any]
) -> tuple[dict[str, list[Path]], dict[str, list[dict[str, Any]]], dict[str, list[list[dict[str, Any]]]]]:
    """Return folders, results and logs of the runs of each row."""
    runs = {
        key: [folder / "finetune" / f"{key}-seed{seed}" for seed in demo["seeds"]] for key in demo["rows"]
    }
    results = {key: [read_json(run / "results.json") for run in each] for key, each in runs.items()}
    logs = {key: [read_log(run / "metrics.json") for run in each] for key, each in runs.items()}
    return runs, results, logs


def _pictures(folder: Path, rows: Sequence[str]) -> dict[str, Any]:
    """Return the content of `pictures.json`; in `shown`, for each test image its F1 and the pictures of all rows."""
    state = read_json(folder / "pictures.json")
    shown = [
        {
            "f1": each["f1"],
            "uris": {
                key: jpeg_uri(open_picture(folder / f"{number:02}-{key}.jpg")) for key in ("truth", *rows)
            },
        }
        for number, each in enumerate(state["shown"])
    ]
    return state | {"shown": shown}


def _pretraining(folder: Path) -> dict[str, Any]:
    log, cfg = read_log(folder / "metrics.json"), read_config(folder / "config.yaml")
    steps = [line for line in log if "loss" in line]
    views = folder / "views.jpg"
    charts = [
        chart("Loss", [Line("InfoNCE", points(log, "loss"))]),
        chart(
            "Contrastive accuracy",
            [
                Line("among the queue", points(log, "accuracy", scale=100), 0),
                Line("among the batch", points(log, "in_batch_accuracy", scale=100), 1),
            ],
            unit="%",
            from_zero=True,
        ),
        chart(
            "Cosine with the query",
            [
                Line("positive", points(log, "positive_cosine"), 0),
                Line("negatives, mean", points(log, "negative_cosine"), 1),
            ],
            from_zero=True,
        ),
        chart("kNN accuracy", [Line("kNN", points(log, "knn"))], unit="%", from_zero=True),
    ]
    return {
        "charts": [drawn for drawn in charts if drawn],
        "views": [jpeg_uri(each) for each in columns(open_picture(views))[:VIEWS]] if views.exists() else [],
        "has_knn": any("knn" in line for line in log),
        "epochs": steps[-1]["epoch"] + 1 if steps else 0,
        "cfg": cfg,
    }


def _finetuning(logs: savings.Logs) -> list[Chart]:
    keys = {"loss": "Total loss", "loss_cls": "Classification loss", "loss_mask": "Mask loss"}
    charts = [
        chart(
            title,
            [
                Line(ROWS[row].name, points(log, key), ROWS[row].style)
                for row, each in logs.items()
                for log in each
            ],
            from_zero=True,
        )
        for key, title in keys.items()
    ]
    return [drawn for drawn in charts if drawn]


def _conversion(path: Path) -> dict[str, Any]:
    written = read_json(path)
    record = written["record"]
    proof = record.get("proof") or {}
    return {
        "record": record,
        "levels": {level: _power(f"{value:.1e}") for level, value in proof.items()},
        "pooling": record.get("pooling"),
        "settings": written["preprocessing"],
    }


def _power(text: str) -> str:
    """Turn `1e-04` into `1e−4`."""
    return re.sub(r"e-0*", "e−", text)


def _digests(results: comparison.Rows, state: dict[str, Any]) -> list[tuple[str, str]]:
    rows = []
    for key, each in results.items():
        weights = each[0]["weights"] or {}
        name = ROWS[key].short
        rows += [
            (f"{name}: source of the weights", (weights.get("record") or {}).get("source_sha256")),
            (f"{name}: converted weights", weights.get("sha256")),
            (f"{name}: config", each[0]["config_sha256"]),
        ]
    rows += state.get("digests", {}).items()
    return [(name, digest) for name, digest in rows if digest]


def _data(folder: Path, state: dict[str, Any]) -> dict[str, Any]:
    counts = state["counts"]
    return {
        "source": state["source"],
        "fallback": state["source"] == FALLBACK,
        "honest": HONEST.get(state["source"], state["source"]),
        "missing": state.get("missing", []),
        "counts": counts,
        "unlabelled": sum(count for stream, count in counts.items() if stream.startswith("pretrain/")),
        "classes": state["classes"],
        "photographs": {split: photographs(folder / split, PHOTOGRAPHS) for split in ("train", "val")},
        "credits": credits_of(folder / "CREDITS.txt"),
    }
