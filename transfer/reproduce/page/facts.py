"""What stands below a table: AP of each class, proofs of the conversion, digests, versions, hardware, cost."""

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pretrain.common.files import read_json
from transfer.reproduce.page.runs import Shown, below, is_number

BY_CLASS = ("AP-", "IoU-")  # metrics of one class in results.json
_PROCESSES = re.compile(r"--nproc[-_]per[-_]node[= ](\d+)")
_MACHINES = re.compile(r"--nnodes[= ](\d+)")


def classes(runs: Sequence[Shown]) -> list[dict[str, Any]]:
    """One table for each column and task: `title`, `inits`, `rows` of (class, mean over seeds or None for each)."""
    tables = []
    for column in dict.fromkeys(each.column for each in runs):
        group = [each for each in runs if each.column == column]
        found = [_by_class(each) for each in group]
        for task in dict.fromkeys(task for values in found for task, _ in values):
            kinds = sorted({kind for values in found for of, kind in values if of == task})
            rows = [(kind, [values.get((task, kind)) for values in found]) for kind in kinds]
            tables.append({"title": ", ".join(filter(None, (column, task))), "inits": group, "rows": rows})
    return tables


def _by_class(each: Shown) -> dict[tuple[str, str], float | None]:
    """(`bbox AP`, class) -> mean over seeds; None where a seed has none."""
    seeds = []
    for results in each.results:
        values = {}
        for tasks in below(results, "metrics").values():
            for task, measured in below({"tasks": tasks}, "tasks").items():
                for key, value in below({"measured": measured}, "measured").items():
                    if key.startswith(BY_CLASS):
                        metric, _, kind = key.partition("-")
                        values[f"{task} {metric}", kind] = value
        seeds.append(values)
    keys = dict.fromkeys(key for values in seeds for key in values)
    return {key: _mean([values.get(key) for values in seeds]) for key in keys}


def _mean(values: Sequence[Any]) -> float | None:
    return sum(values) / len(values) if values and all(map(is_number, values)) else None


def proofs(runs: Sequence[Shown]) -> list[dict[str, Any]]:
    """What each init's weights come from: `source`, `branch`, digests, `levels` of (map, difference), `worst`."""
    found: dict[str, dict[str, Any]] = {}
    for each in runs:
        weights, record = below(each.results[0], "weights"), _conversion(each)
        if each.init in found or not (weights or record):
            continue
        levels = [(level, value) for level, value in below(record, "proof").items() if is_number(value)]
        found[each.init] = {
            "shown": each,
            "source": record.get("source"),
            "branch": record.get("branch"),
            "source_sha256": record.get("source_sha256"),
            "sha256": weights.get("sha256"),
            "levels": levels,
            "worst": max((value for _, value in levels), default=None),
        }
    return list(found.values())


def _conversion(each: Shown) -> dict[str, Any]:
    """The converter's record: of results.json, or of the job that converted."""
    record = below(each.results[0], "weights", "record")
    for job in each.runs[0].get("needs", ()):
        if not record and job["name"].startswith("convert/"):
            record = below(read_json(Path(job["folder"]) / "record.json"), "record")
    return record


def digests(runs: Sequence[Shown]) -> list[tuple[str, str]]:
    """(what, SHA-256): each recipe's and each data set's, once."""
    found = {}
    for each in runs:
        for results in each.results:
            found[f"settings: {each.label}"] = results.get("config_sha256")
            data = below(results, "data")
            for name, part in {**below(data, "sets"), **data}.items():
                found[f"data: {name}"] = below({"part": part}, "part").get("sha256")
    return [(name, digest) for name, digest in found.items() if isinstance(digest, str)]


def environment(runs: Sequence[Shown], part: str) -> list[tuple[str, list[str]]]:
    """(name, values) of `versions` or `hardware`; of several values each with the number of runs that had it."""
    counts: dict[str, Counter[str]] = {}
    for results in (results for each in runs for results in each.results):
        for name, value in below(results, part).items():
            counts.setdefault(name, Counter())["none" if value is None else str(value)] += 1
    rows = []
    for name, found in counts.items():
        several = len(found) > 1
        rows.append(
            (name, [f"{value} ({count} runs)" if several else value for value, count in found.items()])
        )
    return rows


def cost(jobs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """`jobs`, each with `processes` and `gpu_hours`; the sums `seconds` and `gpu_hours`.

    GPU hours are processes times time. Jobs that record no hardware are taken to have run on GPUs if those that
    record it did; conversions and downloads use none. None where there was no GPU.
    """
    hardware = {
        job["folder"]: below(read_json(Path(job["folder"]) / "results.json"), "hardware") for job in jobs
    }
    gpus = any(found.get("gpu") for found in hardware.values())
    rows = []
    for job in jobs:
        own = hardware[job["folder"]]
        processes = own["processes"] if is_number(own.get("processes")) else _processes(job["command"])
        used = (
            bool(own["gpu"]) if "gpu" in own else gpus and not job["name"].startswith(("convert/", "fetch/"))
        )
        rows.append(
            {**job, "processes": processes, "gpu_hours": processes * job["seconds"] / 3600 if used else None}
        )
    hours = [row["gpu_hours"] for row in rows if row["gpu_hours"] is not None]
    return {
        "jobs": rows,
        "seconds": sum(job["seconds"] for job in jobs),
        "gpu_hours": sum(hours) if hours else None,
    }


def _processes(command: str) -> int:
    """As the launcher's options say."""
    counts = [
        int(found[1]) if (found := pattern.search(command)) else 1 for pattern in (_PROCESSES, _MACHINES)
    ]
    return counts[0] * counts[1]
