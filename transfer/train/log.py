"""The training log of a fine-tuning run: a printed line per period, with the same values in `metrics.json`."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from detectron2.config import CfgNode

from pretrain.common import distributed, loggers
from pretrain.common.console import Bar, Pace, duration, is_terminal, say
from pretrain.common.files import write_atomic
from transfer.train.evaluation import Metrics
from transfer.train.start import LAPTOP

METRICS = "metrics.json"  # detectron2's name; one JSON object per line
_SILENCE = 30.0  # seconds after which a line is printed on a terminal, whatever the period


class Progress:
    """Prints a line every `SOLVER.LOG_PERIOD` iterations and writes its values to `metrics.json` and loggers.

    It also prints one after the first iteration and, on a terminal, at least every half minute, above a progress bar.
    `start` iterations are already done; lines about later ones are removed from the files.
    """

    def __init__(self, cfg: CfgNode, start: int) -> None:
        self.period, self.end, self.images = (
            cfg.SOLVER.LOG_PERIOD,
            cfg.SOLVER.MAX_ITER,
            cfg.SOLVER.IMS_PER_BATCH,
        )
        self.path, self.device = Path(cfg.OUTPUT_DIR) / METRICS, cfg.MODEL.DEVICE
        self.sums: dict[str, torch.Tensor] = {}
        self.count, self.waited, self.since, self.start = 0, 0.0, time.perf_counter(), start
        self.pace, self.bar, self.printed = Pace(self.end, start), Bar(self.end, start), self.since
        self.loggers: list[loggers.Logger] = []
        if distributed.is_main():
            self._drop_lines_after(start)
            self.loggers = loggers.open_all(cfg, start)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()
        for logger in self.loggers:
            logger.close()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time of a `with` block, with which an iteration begins, as waiting for data."""
        self.pace.begin()
        began = time.perf_counter()
        yield
        self.waited += time.perf_counter() - began

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Exclude the time of a `with` block from the speed."""
        began = time.perf_counter()
        yield
        spent = time.perf_counter() - began
        self.since += spent

    def add(self, done: int, losses: dict[str, torch.Tensor], lr: float) -> None:
        """Add iteration `done` (counted from 1) with its losses; print and write at the end of a period."""
        for name, value in losses.items():
            self.sums[name] = self.sums.get(name, 0) + value
        self.count += 1
        self.pace.end()
        if not distributed.is_main():
            return
        self.bar.show(done, self.pace.text())
        due = done % self.period == 0 or done == self.end
        late = is_terminal() and time.perf_counter() - self.printed >= _SILENCE
        if due or late or done == self.start + 1:
            record = self._say_losses(done, lr)
        if due:
            self._write(done, record)
            self.sums, self.count, self.waited, self.since = {}, 0, 0.0, time.perf_counter()
        self.pace.say_estimate(device=self.device, smaller=LAPTOP)

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

    def _say_losses(self, done: int, lr: float) -> dict[str, float | None]:
        """Print the means since the last period and return them."""
        self.printed = time.perf_counter()
        spent = self.printed - self.since
        means = {name: round(float(value) / self.count, 4) for name, value in self.sums.items()}
        record = {
            "loss": round(sum(means.values()), 4),
            **means,
            "lr": lr,
            "images_per_second": round(self.count * self.images / spent, 2),
            "data_wait": round(self.waited / spent, 3),
        }
        parts = "  ".join(f"{name.removeprefix('loss_')} {value:.3f}" for name, value in means.items())
        say(
            f"iteration {done}/{self.end}  loss {record['loss']:.3f}  ({parts})  lr {lr:.2g}  "
            f"{record['images_per_second']:.1f} images/s  data {record['data_wait']:.0%}  "
            f"ETA {duration(self.pace.left())}"
        )
        return record

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
