"""The speed of pre-training on one GPU, from JPEG files and from tensors, next to a plain script's loop."""

import contextlib
import io
import itertools
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from fvcore.common.config import CfgNode

from pretrain import config
from pretrain.benchmark import step as phases
from pretrain.benchmark import timing
from pretrain.benchmark.published import PublishedLoop, batches
from pretrain.data.loader import make_train_loader, usable_workers
from pretrain.train import loop
from pretrain.train.setup import Run, set_up

CONFIG = "pretrain/moco_v2_R50.yaml"
IMAGES = 1024  # pictures to write if the user names none
# For trying on a CPU whether everything runs; its figures mean nothing.
TINY = [
    "MODEL.ARCH", "resnet18", "MODEL.WIDTH", "0.125", "MODEL.DIM", "16", "MODEL.BN_GROUP_SIZE", "2", "MOCO.K", "64",
    "INPUT.SIZE", "32", "DATA.NUM_WORKERS", "1", "SOLVER.BASE_LR", "0.001",
]  # fmt: skip
_AMP = {"bf16": "bf16", "fp32": "off"}
_SPLIT = 10  # steps that are split into phases


@dataclass(frozen=True)
class Case:
    """What differs between the measurements: images in a step, bf16 or fp32, and whether torch.compile is used."""

    batch: int
    precision: str
    compiled: bool

    def __str__(self) -> str:
        return f"batch {self.batch}, {self.precision}{', compiled' if self.compiled else ''}"


@dataclass(frozen=True)
class Extent:
    """How long to measure: at most `rounds` blocks of about `seconds` each; no round but the first begins after
    `deadline`, a moment of `time.monotonic`.
    """

    rounds: int
    seconds: float
    deadline: float


def measure(case: Case, extent: Extent, *, images: str, device: str, tiny: bool) -> dict[str, Any]:
    """Time real training steps of one case, in blocks of each source of views, in turns.

    The sources are `resident` (views that are on the GPU already), `jpeg_cpu` and `jpeg_gpu` (files, with INPUT.VIEWS
    cpu and gpu), and `published` (the same network in a plain script's loop, with files; only without torch.compile,
    which such scripts do not use).

    Args:
        images: folder of images.
        device: cpu or cuda.
        tiny: a tiny network instead of the recipe's.
    Returns:
        `pairs_per_second`: `timing.spread` over the rounds, for each source. `ratio`: of `jpeg_cpu` to `published`
        in the same round. `peak_gb`: of our loop and the published one, None on a CPU. `phases_ms`: medians of the
        phases of our step; `share_outside_encoders` follows from them. `steps`: of a block of `resident`, and of one
        from files. `workers`: of each loader. `published_failed`: why there are no figures of that loop, or None.
    """
    place = torch.device(device)
    peak = timing.Peak(place)
    with tempfile.TemporaryDirectory() as folder:
        run = _set_up(case, images=images, output=f"{folder}/run", device=device, tiny=tiny)
        views, numbers = _resident(run), itertools.count()

        def resident() -> None:
            loop.step(run, *views, next(numbers))

        timing.seconds_of(resident, phases.WARM_UP, place)  # the first one compiles
        peak.restart()
        steps = timing.steps_for(extent.seconds, resident, place)
        peaks = {"ours": peak.read(), "published": None}
        workers = usable_workers(run.cfg)
        # The workers finish their batches together, in bursts: only whole bursts have a speed.
        burst = max(workers, 1)
        many = burst * -(-steps // burst)
        sources: dict[str, Callable[[], float]] = {
            "resident": lambda: timing.seconds_of(resident, steps, place) / steps,
            "jpeg_cpu": lambda: _from_files(_ours(run, "cpu"), many, warm_up=burst, device=place),
            "jpeg_gpu": lambda: _from_files(_ours(run, "gpu"), many, warm_up=burst, device=place),
        }
        failed = "not measured with torch.compile" if case.compiled else None
        if not case.compiled:
            try:
                peak = timing.Peak(place)
                plain = PublishedLoop(run.cfg, place, bf16=run.bf16)
                _from_files(_published(run, plain, workers), 1, warm_up=1, device=place)
                peak.restart()
                _from_files(_published(run, plain, workers), 1, warm_up=0, device=place)
                peaks["published"] = peak.read()
                sources["published"] = lambda: _from_files(
                    _published(run, plain, workers), many, warm_up=burst, device=place
                )
            except (
                Exception
            ) as error:  # its loader needs four times our shared memory; our figures count alone
                failed = (
                    "out of memory"
                    if timing.out_of_memory(error)
                    else f"{type(error).__name__}: {error}"[:300]
                )
        seconds = _in_turns(sources, extent)
        medians = phases.medians_of(_split(run))
    speeds = {name: [case.batch / each for each in values] for name, values in seconds.items()}
    ratios = [
        ours / theirs for ours, theirs in zip(speeds["jpeg_cpu"], speeds.get("published", ()), strict=False)
    ]
    return {
        "pairs_per_second": {name: timing.spread(values) for name, values in speeds.items()},
        "ratio": timing.spread(ratios) if ratios else None,
        "peak_gb": peaks,
        "phases_ms": {phase: 1000 * value for phase, value in medians.items()},
        "share_outside_encoders": phases.share_outside(medians),
        "steps": {"resident": steps, "files": many},
        "workers": workers,
        "published_failed": failed,
    }


def _set_up(case: Case, *, images: str, output: str, device: str, tiny: bool) -> Run:
    """Return a training run of the case, of which no step is taken yet."""
    settings = [
        "DATA.NUM_WORKERS", "1024", *(TINY if tiny else ()), "SOLVER.IMS_PER_BATCH", str(case.batch),
        "SOLVER.AMP", _AMP[case.precision], "MODEL.COMPILE", str(case.compiled), "SOLVER.MAX_EPOCH", "1000000",
        "SOLVER.MAX_ITER", str(phases.WARM_UP + _SPLIT), "KNN.PERIOD", "0", "DATA.TRAIN", images, "DEVICE", device,
        "OUTPUT_DIR", output, "LOG.TENSORBOARD", "False",
    ]  # fmt: skip
    cfg = config.load(CONFIG, settings)
    with contextlib.redirect_stdout(io.StringIO()):  # its notes are meant for real training runs
        return set_up(cfg, resume=False)


def _resident(run: Run) -> tuple[loop.Views, torch.Tensor]:
    """Return views of noise, whose content does not matter, and image numbers, on the device."""
    count, size = run.cfg.SOLVER.IMS_PER_BATCH, run.cfg.INPUT.SIZE
    query, key = torch.randint(
        0, 256, (2, count, size, size, 3), dtype=torch.uint8, device=run.device
    ).unbind()
    return (query, key), torch.arange(count, device=run.device)


class _Source(NamedTuple):
    """How to start a loader of at least so many batches, and what is done with a batch."""

    start: Callable[[int], Any]
    step: Callable[[Any], object]


def _ours(run: Run, views: str) -> _Source:
    cfg: CfgNode = run.cfg.clone()
    cfg.defrost()
    cfg.INPUT.VIEWS = views
    numbers = itertools.count()

    def step(batch: Any) -> None:
        loop.step(run, *loop.to_device(batch, run), next(numbers))

    return _Source(
        lambda count: make_train_loader(run.files, cfg, start=0, stop=count, device=run.device), step
    )


def _published(run: Run, plain: PublishedLoop, workers: int) -> _Source:
    pinned = run.device.type == "cuda"
    return _Source(lambda _: batches(run.files, run.cfg, workers=workers, pinned=pinned), plain.step)


def _from_files(source: _Source, steps: int, *, warm_up: int, device: torch.device) -> float:
    """Return the seconds of a step in a block of `steps`, after `warm_up` steps with the same loader.

    The loader is started for this block: workers that are ahead from before would make it too fast, and while other
    loops are timed they would take their time.
    """
    ahead = steps + 8 * warm_up  # so that the workers are busy until the end
    loader = source.start(warm_up + ahead)

    def take() -> None:
        source.step(next(loader))

    try:
        for _ in range(warm_up):
            take()
        return timing.seconds_of(take, steps, device) / steps
    finally:
        getattr(loader, "_shutdown_workers", lambda: None)()


def _in_turns(sources: dict[str, Callable[[], float]], extent: Extent) -> dict[str, list[float]]:
    """Return the seconds of a step in each round, for each source."""
    seconds: dict[str, list[float]] = {name: [] for name in sources}
    for number in range(extent.rounds):
        if number and time.monotonic() > extent.deadline:
            break
        for name, block in sources.items():
            seconds[name].append(block())
    return seconds


def _split(run: Run) -> dict[str, list[float]]:
    """Return the seconds of each phase in a few more steps. The run's encoders are wrapped from then on."""
    steps = phases.measure(run)[phases.WARM_UP :]
    return {phase: [each[phase] for each in steps] for phase in phases.PHASES}
