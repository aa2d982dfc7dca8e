"""Measure where the time of a pre-training step goes: to the encoders, and to the rest, which should be small."""

import contextlib
import functools
import io
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from fvcore.common.config import CfgNode
from torch import nn

from pretrain.benchmark.fake_photos import fake_photo, to_jpeg
from pretrain.common.console import say
from pretrain.data.loader import make_train_loader
from pretrain.train import loop, start_notes
from pretrain.train.setup import Run, set_up

# "other": the loss, the logged metrics, running statistics, and converting bytes to pixels.
ENCODERS = ("forward q", "forward k", "backward")
PHASES = ("data", *ENCODERS, "views", "EMA", "queue", "optimizer", "other")
WARM_UP = 3  # steps


class Watch:
    """A clock that assigns every moment to one phase. On a GPU it records events of the GPU, without waiting for it."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.phase = device, "other"
        self.marks: list[tuple[str, Any]] = []

    def switch(self, phase: str) -> None:
        """Count the time from now on for `phase`."""
        if self.device.type == "cuda":
            now: Any = torch.cuda.Event(enable_timing=True)
            now.record()
        else:
            now = time.perf_counter()
        self.marks.append((phase, now))
        self.phase = phase

    @contextlib.contextmanager
    def on(self, phase: str) -> Iterator[None]:
        """Count the time inside the context for `phase`, then switch back to the previous phase."""
        outer = self.phase
        self.switch(phase)
        try:
            yield
        finally:
            self.switch(outer)

    def timed(self, phase: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return `function` with its time counted for `phase`."""

        @functools.wraps(function)  # a GradScaler reads the signature of `step`
        def counted(*args: Any, **options: Any) -> Any:
            with self.on(phase):
                return function(*args, **options)

        return counted

    def read(self) -> dict[str, float]:
        """Return the seconds of each phase since the last reading."""
        self.switch("other")
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        spent = dict.fromkeys(PHASES, 0.0)
        for (phase, begin), (_, end) in pairwise(self.marks):
            spent[phase] += begin.elapsed_time(end) / 1000 if self.device.type == "cuda" else end - begin
        self.marks = self.marks[-1:]
        return spent


class TimedEncoder(nn.Module):
    """An encoder whose passes are timed. The backward pass before it reaches the encoder counts for the queue."""

    def __init__(self, encoder: Any, watch: Watch, phase: str) -> None:
        super().__init__()
        self.encoder, self.watch, self.phase = encoder, watch, phase

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self._timed(self.encoder, images)

    def feature(self, images: torch.Tensor) -> torch.Tensor:
        return self._timed(self.encoder.feature, images)

    @property
    def head(self) -> nn.Module:
        return self.encoder.head

    def _timed(self, network: Callable[[torch.Tensor], torch.Tensor], images: torch.Tensor) -> torch.Tensor:
        with self.watch.on(self.phase):
            output = network(images)
        if output.requires_grad:
            output.register_hook(lambda _: self.watch.switch("backward"))
        return output


def run(cfg: CfgNode, *, folder: str = "", iterations: int = 10) -> dict[str, list[float]]:
    """Run real training steps; print the median time of each phase, and the share of everything but the encoders.

    Args:
        cfg: from `pretrain.config.load`.
        folder: of images; empty: synthetic pictures.
        iterations: number of measured steps; a few more are run first as a warm-up.
    Returns:
        The seconds that each of PHASES took, for each step.
    """
    cfg = cfg.clone()
    cfg.defrost()
    with tempfile.TemporaryDirectory() as place:
        cfg.OUTPUT_DIR, cfg.KNN.TRAIN, cfg.KNN.VAL = f"{place}/run", "", ""
        cfg.DATA.TRAIN = [folder or write_pictures(Path(place) / "images", cfg.SOLVER.IMS_PER_BATCH)]
        cfg.SOLVER.MAX_ITER = iterations + WARM_UP
        cfg.SOLVER.MAX_EPOCH = max(cfg.SOLVER.MAX_EPOCH, cfg.SOLVER.MAX_ITER)
        cfg.freeze()
        with contextlib.redirect_stdout(io.StringIO()):  # its notes are meant for real training runs
            training = set_up(cfg, resume=False)
        steps = measure(training)[WARM_UP:]
    report = {phase: [step[phase] for step in steps] for phase in PHASES}
    for line in _lines(training, report):
        say(line)
    return report


def write_pictures(folder: Path, batch: int) -> str:
    """Write enough JPEGs for a batch, copies of a few pictures: the content does not matter. Return the folder."""
    folder.mkdir()
    jpegs = [to_jpeg(fake_photo(n)) for n in range(8)]
    for n in range(max(batch, 64)):
        (folder / f"{n:05}.jpg").write_bytes(jpegs[n % len(jpegs)])
    return str(folder)


def measure(training: Run) -> list[dict[str, float]]:
    """Return the seconds of each phase, for each step of a whole run."""
    watch, model, optimizer = Watch(training.device), training.model, training.optimizer
    encoders = {
        "encoder_q": "forward q", "base_encoder": "forward q", "predictor": "forward q",
        "encoder_k": "forward k", "momentum_encoder": "forward k",
    }  # fmt: skip
    for name, phase in encoders.items():
        if hasattr(model, name):
            setattr(model, name, TimedEncoder(getattr(model, name), watch, phase))
    methods = {"before_step": "EMA", "keys": "queue", "logits": "queue", "after_step": "queue"}
    for name, phase in methods.items():
        if not hasattr(model, name):  # MoCo v3 has neither logits nor anything to do after a step
            continue
        setattr(model, name, watch.timed(phase, getattr(model, name)))
    for name in ("step", "zero_grad"):
        setattr(optimizer, name, watch.timed("optimizer", getattr(optimizer, name)))
    batches = make_train_loader(
        training.files, training.cfg, start=0, stop=training.total, device=training.device
    )
    steps = []
    with _backward_counted(watch):
        watch.read()
        for iteration in range(training.total):
            with watch.on("data"):
                batch = next(batches)
            with watch.on("views"):  # copy to the device, and the work of INPUT.VIEWS gpu there
                views, images = loop.to_device(batch, training)
            loop.step(training, views, images, iteration)
            steps.append(watch.read())
    return steps


@contextlib.contextmanager
def _backward_counted(watch: Watch) -> Iterator[None]:
    original = torch.Tensor.backward
    torch.Tensor.backward = watch.timed("queue", original)  # type: ignore[method-assign]
    try:
        yield
    finally:
        torch.Tensor.backward = original  # type: ignore[method-assign]


def medians_of(report: dict[str, list[float]]) -> dict[str, float]:
    """Return the median seconds of each phase."""
    return {phase: statistics.median(times) for phase, times in report.items()}


def share_outside(medians: dict[str, float]) -> float:
    """Return the share of a step, without the wait for data, that is not spent in the encoders."""
    whole = sum(seconds for phase, seconds in medians.items() if phase != "data")
    return 1 - sum(medians[phase] for phase in ENCODERS) / whole


def _lines(training: Run, report: dict[str, list[float]]) -> list[str]:
    """Return the table. Shares exclude the wait for data, which other processes prepare at the same time."""
    cfg, device = training.cfg, training.device
    medians = medians_of(report)
    whole = sum(medians.values()) - medians["data"]
    on_gpu, threads = device.type == "cuda", torch.get_num_threads()
    machine = torch.cuda.get_device_name(device) if on_gpu else f"CPU, {threads} thread(s)"
    queue = "" if cfg.MOCO.MECHANISM in ("endtoend", "mocov3") else f" K {cfg.MOCO.K},"
    return [
        f"{machine}, torch {torch.__version__}, precision: {training.progress.amp}",
        f"{start_notes.network(cfg)}, {cfg.MOCO.MECHANISM},{queue} {cfg.MODEL.NORM}, "
        f"batch {cfg.SOLVER.IMS_PER_BATCH} at {cfg.INPUT.SIZE} pixels; medians of {len(report['data'])} steps:",
        *(f"  {name:<10}{1000 * medians[name]:10.2f} ms {medians[name] / whole:8.2%}" for name in PHASES[1:]),
        f"  {'step':<10}{1000 * whole:10.2f} ms, {cfg.SOLVER.IMS_PER_BATCH / whole:.1f} images/s",
        f"  {PHASES[0]:<10}{1000 * medians[PHASES[0]]:10.2f} ms of waiting before the step",
        f"everything but the encoders: {share_outside(medians):.1%}",
    ]
