"""What a comparison costs: the number of its runs, their schedules, and what the user is told before they start."""

import argparse
import os
from collections.abc import Sequence
from dataclasses import asdict

from detectron2.config import CfgNode
from tabulate import tabulate

from pretrain.common import distributed
from pretrain.common.console import duration, say
from pretrain.common.errors import UserError
from pretrain.common.files import read_json, write_json
from pretrain.model.memory import machine_bytes
from transfer.compare import cost, rates, schedule
from transfer.compare.cost import Cost
from transfer.compare.schedule import Schedule
from transfer.config.length import USUAL
from transfer.config.load import load_config, read_config
from transfer.reproduce.jobs.local import visible_gpus
from transfer.train.start import LAPTOP, memory_gb, memory_note

_DAY = 24.0  # hours
_RUN_GB = 0.5  # state and weights of a run
_SHARE = 0.6  # of the machine's memory, which runs at the same time may take


def runs(args: argparse.Namespace, rows: int) -> int:
    """Return how many runs each share of the labels has: with `--lr-sweep`, at most."""
    tuned = args.seeds + len(rates.FACTORS) if args.lr_sweep else 0
    return rows * (args.seeds + tuned)


def lengths(
    args: argparse.Namespace,
    cfg: CfgNode,
    overrides: Sequence[str],
    images: int,
    number: int,
    *,
    at_once: int,
    epochs: float,
) -> list[Schedule]:
    """Return the schedule of each share of the labels, each of which has `number` runs, and say what they cost.

    Args:
        at_once: of `runs_at_once`. A resumed comparison keeps the number that its schedule was made for.
    """
    batch, processes = cfg.SOLVER.IMS_PER_BATCH, args.num_gpus
    if batch % processes:
        raise UserError(
            f"--num-gpus {processes}: SOLVER.IMS_PER_BATCH {batch} (the total) cannot be divided among them"
        )
    spent, at_once = _spent(args, overrides, batch // processes, at_once)
    found = [schedule.usual(images, share, batch, epochs=epochs) for share in args.fractions]
    rule = f"{epochs:g} epochs, at least {USUAL} iterations"
    if "SOLVER.MAX_ITER" in overrides:
        found = [Schedule(cfg.SOLVER.MAX_ITER)] * len(found)
        rule = "SOLVER.MAX_ITER, as given"
    elif args.hours:
        found = schedule.fitted(
            found, runs=number, each=spent.iteration / at_once, fixed=spent.fixed / at_once,
            seconds=3600 * args.hours,
        )  # fmt: skip
        rule += f"; shortened for all alike to fit into {args.hours:g} h, to no less than {schedule.LEAST}"
    lines, total = [], 0.0
    for share, length in zip(args.fractions, found, strict=True):
        seconds = length.iterations * spent.iteration + spent.fixed
        count, hours = max(1, round(share * images)), number * seconds / at_once / 3600
        total += hours
        sizes = (f"{hours:.2f}", f"{number * _RUN_GB:.1f}")
        lines.append((percent(share), count, length.iterations, duration(seconds), number, *sizes))
    heads = ("labels", "images", "iterations", "a run", "runs", "hours", "GB")
    say(tabulate(lines, heads, tablefmt="plain", disable_numparse=True))
    say(f"the same for every init: {rule}; {spent.test_images} test images; {at_once} run(s) at a time")
    if total > _DAY and distributed.pick_device(cfg.MODEL.DEVICE).type == "cpu":
        say(
            f"note: more than a day on this CPU: --config {LAPTOP} suits it, and --hours shortens all runs alike "
            "(docs/own_data.md)"
        )
    return found


def _spent(args: argparse.Namespace, overrides: Sequence[str], share: int, at_once: int) -> tuple[Cost, int]:
    """Return the timing of an earlier call for the same runs, or measure it, and how many of them share the time.

    Times differ from call to call, and `--jobs` may. With them, `--hours` would choose another schedule, and a resumed
    comparison would start all over.
    """
    file = args.output / "timing.json"
    cfg = load(args.config, [*overrides, "SOLVER.IMS_PER_BATCH", str(share)])
    cfg.MODEL.DEVICE = distributed.pick_device(cfg.MODEL.DEVICE).type
    made_for = [args.config, *overrides, share]
    stored = read_json(file)
    if stored.get("made_for") == made_for and "at_once" in stored:
        return Cost(**stored["cost"]), stored["at_once"]
    say("timing a few iterations of the detector and a few test images")
    if note := memory_note(cfg):  # before the timing, which could be ended for lack of it
        say(note)
    together = at_once if cfg.MODEL.DEVICE == "cpu" and not args.slurm else 1
    found = cost.measure(cfg, at_once=together, threads=max(1, (os.cpu_count() or 1) // together))
    args.output.mkdir(parents=True, exist_ok=True)
    write_json(file, {"made_for": made_for, "cost": asdict(found), "at_once": at_once})
    return found, at_once


def runs_at_once(args: argparse.Namespace, cfg: CfgNode, number: int) -> int:
    """Return how many of `number` runs share the time.

    Without GPUs, as many as there are cores and memory: several runs of one thread each get more done than one run of
    several threads.
    """
    if args.slurm:
        return max(1, args.jobs)
    gpus = visible_gpus() if distributed.pick_device(cfg.MODEL.DEVICE).type == "cuda" else []
    if gpus:
        places = len(gpus) // args.num_gpus
        return max(1, min(places, args.jobs or places))
    fit = int(_SHARE * machine_bytes() / 1e9 / memory_gb(cfg)) if machine_bytes() < float("inf") else 1
    return max(1, min(number, args.jobs or min((os.cpu_count() or 1) // args.num_gpus, fit)))


def percent(share: float) -> str:
    return f"{100 * share:g} %"


def load(config: str, overrides: Sequence[str]) -> CfgNode:
    """Return the config for random weights, with a schedule that is whole whatever of it the user has given."""
    given = read_config(config, overrides).SOLVER
    whole = Schedule(given.MAX_ITER).overrides(given.WARMUP_ITERS)
    return load_config(config, [*without(whole, overrides), *overrides, "MODEL.INIT", "random"])


def without(pairs: Sequence[str], overrides: Sequence[str]) -> tuple[str, ...]:
    """Return KEY, VALUE, ... without the keys that the user has given."""
    given = set(overrides[::2])
    found = zip(pairs[::2], pairs[1::2], strict=True)
    return tuple(part for key, value in found if key not in given for part in (key, value))
