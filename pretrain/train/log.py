"""The log of a run: one line every n steps on the terminal, and the same values in `metrics.json` and the loggers."""

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fvcore.common.config import CfgNode

from pretrain.common import console, distributed, loggers
from pretrain.common.files import write_text
from pretrain.data.decode import image_at
from pretrain.train.alarms import Alarms
from pretrain.train.step import METRICS

METRICS_FILE = "metrics.json"  # detectron2's name: one JSON object a line
_NO_CURVE = ("iteration", "time", "alarm", "text")


class Log:
    """Writes `metrics.json` and the loggers of `LOG`. A resumed run drops the lines after its checkpoint.

    Every process creates one; the main one writes. Close it at the end.

    Args:
        iteration: that of the checkpoint; 0 for a new run, whose `views.jpg` goes to the loggers too.
        alarms: checks every line; each alarm is printed and written once in a run.
    """

    def __init__(self, cfg: CfgNode, *, iteration: int, alarms: Alarms) -> None:
        self.path = Path(cfg.OUTPUT_DIR) / METRICS_FILE
        self.alarms = alarms
        self.kept: list[dict[str, Any]] = []
        self.loggers: list[loggers.Logger] = []
        if not distributed.is_main():
            return
        self.kept = (
            [line for line in _lines(self.path) if line["iteration"] <= iteration] if iteration else []
        )
        text = "".join(json.dumps(line) + "\n" for line in self.kept)
        write_text(self.path, text)
        for line in self.kept:
            alarms.see(line)  # their alarms were printed before
        self.loggers = loggers.open_all(cfg, iteration)
        views = self.path.with_name("views.jpg")
        if not iteration and views.is_file():
            for logger in self.loggers:
                with image_at(views) as image:
                    logger.picture("views", np.asarray(image.convert("RGB")), 0)

    def has(self, name: str, iteration: int) -> bool:
        """Whether the log of earlier sessions holds this value at this iteration; known to the main process only."""
        return any(name in line and line["iteration"] == iteration for line in self.kept)

    def write(self, values: dict[str, Any]) -> None:
        """Append one line, and one for each alarm that it raises, in the main process."""
        if not distributed.is_main():
            return
        loggers.append_line(self.path, values)
        curves = {name: value for name, value in values.items() if name not in _NO_CURVE}
        for logger in self.loggers:
            logger.write(values["iteration"], curves)
            logger.flush()  # a checkpoint follows, and the run may be killed right after it
        for name, text in self.alarms.see(values):
            console.say(f"alarm ({name}): {text}")
            loggers.append_line(self.path, {"iteration": values["iteration"], "alarm": name, "text": text})

    def close(self) -> None:
        """Finish the loggers' files."""
        for logger in self.loggers:
            logger.close()


def _lines(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:  # cut off when the machine went down
            continue
    return lines


class Clock:
    """Measures speed and the share of time spent waiting for data, between two log lines."""

    def __init__(self, images_per_step: int) -> None:
        self.images_per_step = images_per_step
        self.restart()

    def restart(self) -> None:
        """Forget what has been measured and start again."""
        self.begin, self.waited, self.steps = time.perf_counter(), 0.0, 0

    def step(self, waited: float) -> None:
        """Count a step that waited `waited` seconds for its data."""
        self.steps += 1
        self.waited += waited

    def read(self) -> tuple[float, float]:
        """Return images per second and share of waiting in [0, 1]; then start again."""
        seconds = max(time.perf_counter() - self.begin, 1e-9)
        result = self.steps * self.images_per_step / seconds, self.waited / seconds
        self.restart()
        return result


def say_step(values: dict[str, Any], *, total: int, epochs: int, seconds_left: float) -> None:
    """Print the line of one log period; docs/running.md explains its fields."""
    console.say(
        f"epoch {values['epoch'] + 1}/{epochs} iter {values['iteration']}/{total}"
        f"  loss {values['loss']:.3f}  acc {100 * values['accuracy']:.1f}%"
        f"  in-batch {100 * values['in_batch_accuracy']:.1f}%"
        f"  cos {values['positive_cosine']:.3f} (neg {values['negative_cosine']:.3f})"
        f"  std {values['feature_std']:.2f}"
        f"  lr {values['lr']:.3g}  {values['images_per_second']:.0f} img/s"
        f"  data {100 * values['data_wait']:.0f}%  ETA {console.duration(seconds_left)}"
    )


class Meter:
    """Sums metrics on the device. Only `read` brings their means to Python and waits for a GPU."""

    def __init__(self, device: torch.device) -> None:
        self.sums, self.steps = torch.zeros(len(METRICS), device=device), 0

    def add(self, metrics: torch.Tensor) -> None:
        """Add METRICS of one step, as `pretrain.train.step.train_step` returns them."""
        self.sums += metrics
        self.steps += 1

    def is_finite(self) -> bool:
        """Whether all losses since the last `read` were finite; the same in all processes."""
        return bool(self.sums[0].isfinite())  # the loss is already a mean over the processes

    def read(self) -> dict[str, float]:
        """Return the means of METRICS and start again."""
        means = self.sums / self.steps
        distributed.mean_over_processes([means])
        self.sums, self.steps = torch.zeros_like(self.sums), 0
        return dict(zip(METRICS, means.tolist(), strict=True))
