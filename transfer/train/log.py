"""The training log of a fine-tuning run: a printed line per period, with the same values in `metrics.json`."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from detectron2.config import CfgNode

from pretrain.common import distributed, loggers
from pretrain.common.console import duration, say
from pretrain.common.files import write_atomic
from transfer.train.evaluation import Metrics

METRICS = "metrics.json"  # detectron2's name; one JSON object per line


class Progress:
    """Prints a line every `SOLVER.LOG_PERIOD` iterations and writes its values to `metrics.json` and loggers.

    `start` iterations are already done; lines about later ones are removed from the files.
    """

    def __init__(self, cfg: CfgNode, start: int) -> None:
        self.period, self.end, self.images = (
            cfg.SOLVER.LOG_PERIOD,
            cfg.SOLVER.MAX_ITER,
            cfg.SOLVER.IMS_PER_BATCH,
        )
        self.path = Path(cfg.OUTPUT_DIR) / METRICS
        self.sums: dict[str, torch.Tensor] = {}
        self.count, self.waited, self.since, self.start = 0, 0.0, time.perf_counter(), start
        self.began = self.since
        self.loggers: list[loggers.Logger] = []
        if distributed.is_main():
            self._drop_lines_after(start)
            self.loggers = loggers.open_all(cfg, start)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        for logger in self.loggers:
            logger.close()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time of a `with` block as waiting for data."""
        began = time.perf_counter()
        yield
        self.waited += time.perf_counter() - began

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Exclude the time of a `with` block from speed and ETA."""
        began = time.perf_counter()
        yield
        spent = time.perf_counter() - began
        self.since, self.began = self.since + spent, self.began + spent

    def add(self, done: int, losses: dict[str, torch.Tensor], lr: float) -> None:
        """Add iteration `done` (counted from 1) with its losses; print and write at the end of a period."""
        for name, value in losses.items():
            self.sums[name] = self.sums.get(name, 0) + value
        self.count += 1
        if (done % self.period == 0 or done == self.end) and distributed.is_main():
            self._write_losses(done, lr)

    def write_metrics(self, done: int, metrics: dict[str, Metrics]) -> None:
        """Log the results of a test after iteration `done`, as `bbox/AP`, with the set's name if there are several.

        Call this only in the main process.
        """
        values = {
            f"{task}/{name}" if len(metrics) == 1 else f"{data_set}/{task}/{name}": value
            for data_set, tasks in metrics.items()
            for task, measured in tasks.items()
            for name, value in measured.items()
        }
        self._write(done, values)

    def flush(self) -> None:
        """Flush the loggers, so that nothing logged so far is lost if the process is killed."""
        for logger in self.loggers:
            logger.flush()

    def _write_losses(self, done: int, lr: float) -> None:
        now = time.perf_counter()
        spent = now - self.since
        means = {name: round(float(value) / self.count, 4) for name, value in self.sums.items()}
        record = {
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
        self._write(done, record)
        self.sums, self.count, self.waited, self.since = {}, 0, 0.0, now

    def _write(self, done: int, values: dict[str, float | None]) -> None:
        loggers.append_line(self.path, {"iteration": done, **values})
        known = {name: value for name, value in values.items() if value is not None}
        for logger in self.loggers:
            logger.write(done, known)

    def _drop_lines_after(self, start: int) -> None:
        """Keep only the lines up to the checkpoint: a resumed run writes the later ones again."""
        lines = self.path.read_text().splitlines() if start and self.path.exists() else []
        kept = [line for line in lines if _iteration(line) <= start]
        if start >= self.end:  # the final test is written again
            kept = [line for line in kept if _iteration(line) < start or '"loss"' in line]
        text = "".join(line + "\n" for line in kept).encode()
        write_atomic(self.path, lambda file: file.write(text))


def _iteration(line: str) -> float:
    try:
        return int(json.loads(line)["iteration"])
    except (ValueError, KeyError):  # truncated by a full disk or a power failure
        return float("inf")
