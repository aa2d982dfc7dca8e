"""The training log of a fine-tuning run: a line on the screen, the same values in `log.jsonl`."""

import json
import time
from pathlib import Path

import torch

from transfer import d2_compat  # noqa: F401 (first)

# isort: split
from detectron2.config import CfgNode

from pretrain import checkpoint, dist
from pretrain.console import duration, say


class Progress:
    """Prints a line every `SOLVER.LOG_PERIOD` iterations and appends the same values to `log.jsonl`."""

    def __init__(self, cfg: CfgNode, start: int) -> None:
        self.period, self.end, self.images = (
            cfg.SOLVER.LOG_PERIOD,
            cfg.SOLVER.MAX_ITER,
            cfg.SOLVER.IMS_PER_BATCH,
        )
        self.path = Path(cfg.OUTPUT_DIR) / "log.jsonl"
        self.sums: dict[str, torch.Tensor] = {}
        self.count, self.waited, self.since, self.start = 0, 0.0, time.perf_counter(), start
        self.began = self.since
        if dist.is_main():
            self._drop_lines_after(start)

    def waiting(self) -> "_Waiting":
        """Times a `with` block as waiting for data."""
        return _Waiting(self)

    def add(self, iteration: int, losses: dict[str, torch.Tensor], lr: float) -> None:
        """Count one iteration (from 0) with its losses; print and write when a period is full."""
        for name, value in losses.items():
            self.sums[name] = self.sums.get(name, 0) + value
        self.count += 1
        done = iteration + 1
        if (done % self.period == 0 or done == self.end) and dist.is_main():
            self._write(done, lr)

    def _write(self, done: int, lr: float) -> None:
        now = time.perf_counter()
        spent = now - self.since
        means = {name: round(float(value) / self.count, 4) for name, value in self.sums.items()}
        record = {
            "iteration": done,
            "loss": round(sum(means.values()), 4),
            **means,
            "lr": lr,
            "images_per_second": round(self.count * self.images / spent, 2),
            "data_wait": round(self.waited / spent, 3),
        }
        remaining = (self.end - done) * (now - self.began) / (done - self.start)
        parts = "  ".join(f"{name.removeprefix('loss_')} {value:.3f}" for name, value in means.items())
        say(
            f"iteration {done}/{self.end}  loss {record['loss']:.3f}  ({parts})  lr {lr:.2g}  "
            f"{record['images_per_second']:.1f} images/s  data {record['data_wait']:.0%}  ETA {duration(remaining)}"
        )
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        self.sums, self.count, self.waited, self.since = {}, 0, 0.0, now

    def _drop_lines_after(self, start: int) -> None:
        """A resumed run writes the lines after its checkpoint once more: keep only those before it."""
        lines = self.path.read_text().splitlines() if self.path.exists() and start else []
        kept = [line for line in lines if _iteration(line) <= start]
        text = "".join(line + "\n" for line in kept).encode()
        checkpoint.write_atomic(self.path, lambda file: file.write(text))


class _Waiting:
    """Adds the time spent inside a `with` block to the log's waiting time."""

    def __init__(self, log: Progress) -> None:
        self.log = log

    def __enter__(self) -> None:
        self.began = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.log.waited += time.perf_counter() - self.began


def _iteration(line: str) -> float:
    try:
        return int(json.loads(line)["iteration"])
    except (ValueError, KeyError):  # cut off by a full disk or a power failure
        return float("inf")
