"""Runs of a table as they lie in their folders, made by hand: for tests of what is made from them."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from transfer.reproduce.results.collect import without_verdict
from transfer.reproduce.results.verdict import compare
from transfer.visualize.drawing import COLUMN_GAP

METRICS = ["bbox.AP50", "bbox.AP", "bbox.AP75"]
TRUTH = (240, 240, 240)


def run(
    folder: Path,
    numbers: Sequence[float],
    *,
    seed: int = 0,
    colour: tuple[int, int, int] = (200, 40, 40),
    weights: dict[str, Any] | None = None,
    tested: bool = True,
    size: tuple[int, int] = (64, 48),
    **more: Any,
) -> dict[str, Any]:
    """A finished run in its folder; returns what `collect` says of it. `numbers` are AP50, AP and AP75."""
    (folder / "pictures").mkdir(parents=True)
    width, height = size
    for number in range(4):
        picture = np.full((height, 2 * width + COLUMN_GAP, 3), 255, np.uint8)
        picture[:, :width] = TRUTH
        picture[height // 4 : height // 2, width + COLUMN_GAP :] = colour
        Image.fromarray(picture).save(folder / f"pictures/{number:02}.jpg", quality=95)
    box = dict(zip(("AP50", "AP", "AP75"), numbers, strict=True))
    results = {
        "config_sha256": "c" * 64, "init": "weights" if weights else "random", "weights": weights, "seed": seed,
        "versions": {"torch": "2.6.0", "python": "3.11"}, "data": {"sets": {"voc_test": {"sha256": "d" * 64}}},
        "hardware": {"gpu": "H100", "processes": 8, "threads": 1},
        "metrics": {"voc_test": {"bbox": {**box, "AP-cat": numbers[1] + 5, "AP-dog": numbers[1] - 5}}},
        "pictures": [f"pictures/{number:02}.jpg" for number in range(4)], "iterations": 100, **more,
    }  # fmt: skip
    (folder / "results.json").write_text(json.dumps(results))
    lines: list[dict[str, Any]] = [
        {"iteration": i, "loss": 2.0 - i / 100 + seed / 10} for i in range(10, 110, 10)
    ]
    if tested:
        lines += [{"iteration": i, "bbox/AP50": numbers[0] * i / 100} for i in (50, 100)]
    (folder / "metrics.json").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "state.json").write_text(json.dumps({"state": "done", "seconds": 1800.0, "host": "node1"}))
    return {
        "name": f"finetune/voc/{folder.name}", "folder": str(folder),
        "command": f"python tools/train_net.py {folder.name}",
        "seconds": 1800.0, "needs": [], "numbers": [float(number) for number in numbers], "why_not": "",
    }  # fmt: skip


def cell(
    runs: Sequence[dict[str, Any]],
    paper: Sequence[float | None] = (None, None, None),
    *,
    std: Sequence[float | None] = (0.2, 0.2, 0.4),
    why_not: str = "",
    **more: Any,
) -> dict[str, Any]:
    """A cell as `collect` makes it, without a sweep."""
    numbers = []
    for place, metric in enumerate(METRICS):
        ours = [found["numbers"][place] for found in runs]
        entry: dict[str, Any] = {"metric": metric, "paper": paper[place], "ours": ours}
        numbers.append(
            entry | (asdict(compare(ours, paper[place], std=std[place], trials=5)) if ours else {})
        )
    return {
        "config": "transfer/voc_R50_C4_24k.yaml", "numbers": numbers, "tried": {"": list(runs)} if runs else {},
        "best": "", "why_not": why_not, "kind": "not run", **more,
    }  # fmt: skip


def table(rows: dict[str, dict[str, Any]], **more: Any) -> dict[str, Any]:
    """A table of one column: title of a row -> its cell."""
    found: dict[str, Any] = {
        "name": "voc_C4", "title": "Faster R-CNN R50-C4 on VOC, 24k", "source": "He et al. 2020, Table 2(b)",
        "note": "", "trials": 5,
        "columns": [{"title": "VOC", "config": "transfer/voc_R50_C4_24k.yaml", "metrics": METRICS}],
        "smoke": False, "schedule": 1.0, "sweep": None, "seeds": [0, 1, 2],
        "rows": [{"init": title.replace(" ", "_"), "title": title, "cells": [found]} for title, found in rows.items()],
        **more,
    }  # fmt: skip
    for cell in (cell for row in found["rows"] for cell in row["cells"]):
        if found["smoke"] or found["schedule"] != 1 or cell.get("changes"):
            cell["numbers"] = [without_verdict(number) for number in cell["numbers"]]
    return found
