"""Collects the content of the demo page from the files that the stages wrote."""

import re
from pathlib import Path
from typing import Any

from transfer.convert.verify import TOLERANCE
from transfer.demo import comparison
from transfer.prepare.demo.build import FALLBACK
from transfer.prepare.demo.demo_set import HONEST
from transfer.report.charts import Chart, Line, chart, points
from transfer.report.run_files import (
    credits_of,
    halves,
    jpeg_uri,
    open_picture,
    photographs,
    read_config,
    read_json,
    read_log,
)

PICTURES = 8  # test images shown
PHOTOGRAPHS = 6  # of each split
MOCO, RANDOM = 0, 1  # line styles


def context(folder: Path) -> dict[str, Any]:
    """Return all variables of `templates/report.html` except the stages. Raises `UserError` if a file is missing."""
    demo = read_json(folder / "demo.json")
    data = Path(demo["data"])
    runs = demo["seeds"]
    moco, random = (
        [folder / "finetune" / f"{init}-seed{seed}" for seed in runs] for init in ("moco", "random")
    )
    moco_results, random_results = (
        [read_json(run / "results.json") for run in each] for each in (moco, random)
    )
    state = read_json(data / "demo.json")
    return {
        "size": demo["size"],
        "count": len(runs),
        "overall": comparison.overall(moco_results, random_results),
        "classes": comparison.classes(moco_results, random_results),
        "seeds": comparison.seeds(moco_results, random_results),
        "verdict": comparison.verdict(moco_results, random_results),
        "iterations": random_results[0]["iterations"],
        "pictures": _pictures(moco[0], random[0], random_results[0]["pictures"]),
        "detector": read_config(random[0] / "config.yaml"),
        "pretrain": _pretraining(folder / "pretrain"),
        "finetune": _finetuning(moco, random),
        "conversion": _conversion(folder / "convert.json"),
        "versions": random_results[0]["versions"],
        "hardware": random_results[0]["hardware"],
        "digests": _digests(moco_results, random_results, state),
        "data": _data(data, state),
    }


def _pictures(moco: Path, random: Path, names: list[str]) -> list[dict[str, str]]:
    """Return ground truth and both predictions of each test image. All runs draw the same images, by number."""
    rows = []
    for name in names[:PICTURES]:
        (truth, found), (_, found_random) = halves(moco / name), halves(random / name)
        rows.append({"truth": jpeg_uri(truth), "moco": jpeg_uri(found), "random": jpeg_uri(found_random)})
    return rows


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
        "views": jpeg_uri(open_picture(views, width=2200)) if views.exists() else None,
        "has_knn": any("knn" in line for line in log),
        "epochs": steps[-1]["epoch"] + 1 if steps else 0,
        "cfg": cfg,
    }


def _finetuning(moco: list[Path], random: list[Path]) -> list[Chart]:
    logs = [(name, style, read_log(run / "metrics.json")) for name, style, runs in (
        ("random init", RANDOM, random), ("MoCo", MOCO, moco)) for run in runs]  # fmt: skip
    keys = {"loss": "Total loss", "loss_cls": "Classification loss", "loss_mask": "Mask loss"}
    charts = [
        chart(title, [Line(name, points(log, key), style) for name, style, log in logs], from_zero=True)
        for key, title in keys.items()
    ]
    return [drawn for drawn in charts if drawn]


def _conversion(path: Path) -> dict[str, Any]:
    written = read_json(path)
    record = written["record"]
    proof = record.get("proof") or {}
    return {
        "record": record,
        "levels": [(level, _power(f"{value:.1e}")) for level, value in proof.items()],
        "limit": _power(f"{TOLERANCE:.0e}"),
        "settings": written["preprocessing"],
    }


def _power(text: str) -> str:
    """Turn `1e-04` into `1e−4`."""
    return re.sub(r"e-0*", "e−", text)


def _digests(
    moco: comparison.Results, random: comparison.Results, state: dict[str, Any]
) -> list[tuple[str, str]]:
    weights = moco[0]["weights"] or {}
    rows = [
        ("pre-training checkpoint", (weights.get("record") or {}).get("source_sha256")),
        ("converted weights", weights.get("sha256")),
        ("config, MoCo", moco[0]["config_sha256"]),
        ("config, random init", random[0]["config_sha256"]),
        *state.get("digests", {}).items(),
    ]
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
