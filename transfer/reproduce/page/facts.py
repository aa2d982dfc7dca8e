"""The facts below a table: checks of the conversion, digests, versions, hardware, cost."""

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pretrain.common.files import read_json
from transfer.prepare.demo.build import FALLBACK
from transfer.prepare.demo.demo_set import HONEST
from transfer.prepare.demo.fallback import SHAPES
from transfer.reproduce.page.runs import Shown, below, is_number

_PROCESSES = re.compile(r"--nproc[-_]per[-_]node[= ](\d+)")
_MACHINES = re.compile(r"--nnodes[= ](\d+)")


def proofs(runs: Sequence[Shown]) -> list[dict[str, Any]]:
    """Return the origin of each init's weights: `source`, `branch`, digests, `levels` of (map, difference), `worst`."""
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
    """Return the converter's record from results.json, or else from the job that converted the weights."""
    record = below(each.results[0], "weights", "record")
    for job in each.runs[0].get("needs", ()):
        if not record and job["name"].startswith("convert/"):
            record = below(read_json(Path(job["folder"]) / "record.json"), "record")
    return record


def digests(runs: Sequence[Shown]) -> list[tuple[str, str]]:
    """Return (name, SHA-256) of each recipe and each data set, once."""
    found = {}
    for each in runs:
        for results in each.results:
            found[f"settings: {each.label}"] = results.get("config_sha256")
            data = below(results, "data")
            for name, part in {**below(data, "sets"), **data}.items():
                found[f"data: {name}"] = below({"part": part}, "part").get("sha256")
    return [(name, digest) for name, digest in found.items() if isinstance(digest, str)]


def painted(runs: Sequence[Shown]) -> str:
    """Return what the demo's test images are if they were composed without photographed objects; else empty.

    Such a set has other classes, and so another number for each of them in results.json.
    """
    for results in (results for each in runs for results in each.results):
        for name in below(results, "metrics"):
            if name.startswith("demo_") and f"AP-{SHAPES[0]}" in below(results, "metrics", name, "bbox"):
                return HONEST[FALLBACK]
    return ""


def environment(runs: Sequence[Shown], part: str) -> list[tuple[str, list[str]]]:
    """Return (name, values) of `versions` or `hardware`; several values each come with their number of runs."""
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
    """Return `jobs`, each with `processes` and `gpu_hours` added, and the sums `seconds` and `gpu_hours`.

    GPU hours are processes times time, or None without a GPU. Jobs that record no hardware are assumed to have run on
    GPUs if the other jobs did; conversions and downloads use none.
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
    """Return the number of processes according to the launcher's options."""
    counts = [
        int(found[1]) if (found := pattern.search(command)) else 1 for pattern in (_PROCESSES, _MACHINES)
    ]
    return counts[0] * counts[1]
