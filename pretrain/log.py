"""What a run says while it goes: one line every n steps, and the same values in `log.jsonl`."""

import json
import time
from pathlib import Path
from typing import Any

from pretrain import console, dist
from pretrain.checkpoint import write_atomic


class Log:
    """`log.jsonl`: one JSON object a line. A run that goes on drops the lines after its checkpoint first."""

    def __init__(self, path: Path, *, iteration: int) -> None:
        self.path = path
        if not dist.is_main():
            return
        kept = [line for line in _lines(path) if line["iteration"] <= iteration] if iteration else []
        text = "".join(json.dumps(line) + "\n" for line in kept)
        write_atomic(path, lambda file: file.write(text.encode()))

    def write(self, values: dict[str, Any]) -> None:
        """Append one line, on the main process."""
        if dist.is_main():
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps(values) + "\n")


def _lines(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:  # the machine stopped while it was written
            continue
    return lines


class Clock:
    """Speed, share of time spent waiting for data, and time to go; measured between two log lines."""

    def __init__(self, images_per_step: int) -> None:
        self.images_per_step = images_per_step
        self.restart()

    def restart(self) -> None:
        """Forget what has been measured: from here on time counts anew."""
        self.begin, self.waited, self.steps = time.perf_counter(), 0.0, 0

    def step(self, waited: float) -> None:
        """Note a step whose data took `waited` seconds to come."""
        self.steps += 1
        self.waited += waited

    def read(self, steps_left: int) -> tuple[float, float, float]:
        """Images a second, share of waiting in [0, 1], seconds left; then start anew."""
        seconds = max(time.perf_counter() - self.begin, 1e-9)
        result = self.steps * self.images_per_step / seconds, self.waited / seconds, (
            steps_left * seconds / max(self.steps, 1)
        )  # fmt: skip
        self.restart()
        return result


def say_step(values: dict[str, Any], *, total: int, epochs: int, seconds_left: float) -> None:
    """Print the line of one log period."""
    console.say(
        f"epoch {values['epoch'] + 1}/{epochs} iter {values['iteration']}/{total}"
        f"  loss {values['loss']:.3f}  acc {100 * values['accuracy']:.1f} %"
        f"  in-batch {100 * values['in_batch_accuracy']:.1f} %"
        f"  cos + {values['positive_cosine']:.3f} - {values['negative_cosine']:.3f}"
        f"  lr {values['lr']:.4g}  {values['images_per_second']:.0f} img/s"
        f"  data {100 * values['data_wait']:.0f} %  ETA {console.duration(seconds_left)}"
    )
