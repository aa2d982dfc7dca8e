"""What is written: the machine and the settings that all figures depend on, and the tables."""

import datetime
import importlib.metadata
import subprocess
from typing import Any

import torch

from transfer import results

_SOURCES = {
    "resident": "from tensors",
    "jpeg_cpu": "from JPEG, CPU views",
    "jpeg_gpu": "from JPEG, GPU views",
    "published": "plain script, from JPEG",
}
_TINY = "**Tried on the CPU with tiny networks: these figures say nothing about anything.**"


def head(device: torch.device, *, images: str, minutes: float, rounds: int, tiny: bool) -> dict[str, Any]:
    """Return everything but the rows: date (UTC), machine, versions and the arguments."""
    environment = results.environment(device.type)
    versions = {
        **environment["versions"],
        "pycocotools": _version("pycocotools"),
        "faster-coco-eval": _version("faster-coco-eval"),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if device.type == "cuda" else None,
    }
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "tiny": tiny,
        "gpu": _gpu(device),
        "hardware": environment["hardware"],
        "versions": versions,
        "images": images or "synthetic pictures of 500 x 375 pixels",
        "minutes": minutes,
        "rounds": rounds,
    }


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _gpu(device: torch.device) -> dict[str, Any] | None:
    """Return what identifies the card, with the driver's version and the other settings that its speed depends on."""
    if device.type != "cuda":
        return None
    card = torch.cuda.get_device_properties(device)
    return {
        "name": card.name,
        "memory_gb": card.total_memory / 1e9,
        "capability": f"{card.major}.{card.minor}",
        "multiprocessors": card.multi_processor_count,
        **_nvidia_smi(device),
    }


def _nvidia_smi(device: torch.device) -> dict[str, str]:
    """Return the driver's version, limits and clocks as `nvidia-smi` prints them; empty if it is not there."""
    fields = ("driver_version", "power.limit", "clocks.max.sm", "clocks.max.memory", "mig.mode.current")
    try:
        done = subprocess.run(
            ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader"],
            capture_output=True, text=True, timeout=60, check=True,
        )  # fmt: skip
        # CUDA_VISIBLE_DEVICES may renumber the cards; those of one machine are alike in nearly all cases
        lines = done.stdout.splitlines()
        values = lines[min(device.index or 0, len(lines) - 1)].split(", ")
    except (OSError, subprocess.SubprocessError, IndexError):
        return {}
    return dict(zip(fields, values, strict=False))


def markdown(content: dict[str, Any]) -> str:
    """Return the tables of `head` and its rows. Figures are medians, with the smallest and the largest in brackets."""
    rows = content["rows"]
    lines = ["# Speed on one GPU", "", *([_TINY, ""] if content["tiny"] else []), *_machine(content), ""]
    for table, columns in _TABLES.items():
        lines += [f"## {table[0].upper()}{table[1:]}", "", _NOTES[table], ""]
        lines += [f"| {' | '.join(['', *columns])} |", f"|{'---|' * (len(columns) + 1)}"]
        for row in (row for row in rows if row["table"] == table):
            cells = _CELLS[table](row["result"]) if row["status"] == "measured" else [row["status"]]
            cells += ["–"] * (len(columns) - len(cells))
            lines.append(f"| {row['cell']} | {' | '.join(cells)} |")
        lines.append("")
    lines += [f"{row['cell']} failed: {row['error']}" for row in rows if row["status"] == "failed"]
    missing = [(row["cell"], row.get("result", {}).get("published_failed")) for row in rows]
    lines += [f"{cell}, plain script: {reason}" for cell, reason in missing if reason]
    return "\n".join(lines).rstrip() + "\n"


def _machine(content: dict[str, Any]) -> list[str]:
    gpu, versions, hardware = content["gpu"] or {}, content["versions"], content["hardware"]
    card = (
        f"{gpu['name']}, driver {gpu.get('driver_version', 'unknown')}, CUDA {versions['cuda']}"
        if gpu
        else "no GPU"
    )
    names = ("torch", "torchvision", "detectron2", "pycocotools", "faster-coco-eval")
    return [
        f"- {content['date']}; {card}, cuDNN {versions['cudnn']}",
        f"- {hardware['cpu']}, {hardware['threads']} thread(s) in the main process; Python {versions['python']}",
        f"- {', '.join(f'{name} {versions[name]}' for name in names)}",
        f"- images: {content['images']}; {content['rounds']} rounds, {content['minutes']:g} minutes",
    ]


def _pretraining(result: dict[str, Any]) -> list[str]:
    speeds = result["pairs_per_second"]
    peaks = result["peak_gb"]
    return [
        *(_spread(speeds.get(name), ".0f") for name in _SOURCES),
        _spread(result["ratio"], ".2f"),
        f"{result['share_outside_encoders']:.1%}",
        " / ".join("–" if peaks[name] is None else f"{peaks[name]:.1f}" for name in ("ours", "published")),
    ]


def _finetuning(result: dict[str, Any]) -> list[str]:
    peak = "–" if result["peak_gb"] is None else f"{result['peak_gb']:.1f}"
    return [*(_spread(result[name], ".2f") for name in ("ours", "plain", "ratio")), peak]


def _evaluation(result: dict[str, Any]) -> list[str]:
    cells = []
    for task in ("bbox", "segm"):
        found = result[task]
        cells += [_spread(found.get(name), ".2f") for name in ("pycocotools", "faster-coco-eval")]
        cells.append(_spread(found["ratio"], ".1f"))
    return cells


def _spread(figure: dict[str, Any] | None, form: str) -> str:
    if figure is None:
        return "–"
    return f"{figure['median']:{form}} ({figure['low']:{form}} to {figure['high']:{form}})"


_TABLES = {
    "pre-training": [
        *_SOURCES.values(), "ratio of CPU views to it", "outside the encoders", "peak memory, ours / plain, GB",
    ],
    "fine-tuning": ["ours", "plain detectron2", "ratio", "peak memory of both, GB"],
    "evaluation": [
        f"{task}, {name}" for task in ("boxes", "masks") for name in ("pycocotools", "faster-coco-eval", "ratio")
    ],
}  # fmt: skip
_NOTES = {
    "pre-training": (
        "`pretrain/moco_v2_R50.yaml`, pairs of views per second. The plain script has the same network and precision, "
        "with batch norm over the whole batch instead of groups of 32. fp32 is without TF32."
    ),
    "fine-tuning": "Iterations per second on made images, random init; detectron2's loop has the same model and data.",
    "evaluation": "Seconds for 1,000 made images with 7 objects and 100 detections each.",
}
_CELLS = {"pre-training": _pretraining, "fine-tuning": _finetuning, "evaluation": _evaluation}
