"""Kills pre-training runs by SIGKILL, resumes them, and compares their ends with undisturbed ones, bit for bit.

    python tests/support/kills/kill_runs.py --kills 100 --processes 2

Each run is `tools/pretrain.py` in separate processes, with loader workers, tiny, and saves after every step. It is
killed from outside at a random time or after a random number of log lines, or kills itself at a random one of the
calls that write a checkpoint; then it is resumed with `--resume` and killed again, until it is finished.
"""

import argparse
import collections
import contextlib
import json
import os
import random
import runpy
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from tests.support.scripts import start_script

TINY = [
    "MODEL.ARCH", "resnet18", "MODEL.WIDTH", "0.125", "MODEL.DIM", "16", "MODEL.BN_GROUP_SIZE", "4", "MOCO.K", "100",
    "MOCO.M", "0.9", "INPUT.SIZE", "32", "DATA.NUM_WORKERS", "1", "SOLVER.BASE_LR", "0.01", "SOLVER.IMS_PER_BATCH",
    "8", "SOLVER.MAX_EPOCH", "4", "SOLVER.LOG_PERIOD", "1", "SOLVER.AMP", "off", "SOLVER.CHECKPOINT_PERIOD", "3",
    "SOLVER.KEEP_LAST", "2", "SOLVER.SAVE_MINUTES", "1e-6", "KNN.PERIOD", "2", "LOG.TENSORBOARD", "False",
    "DEVICE", "cpu",
]  # fmt: skip
# Calls of a save, in their order, at which a run can kill itself; `write` leaves half a file.
CALLS = ("write", "fsync", "replace", "copy_file_range", "unlink")
MOMENTS = ("time", "line", "line", *CALLS)


@dataclass
class Summary:
    """What happened. `kills`: by moment; `runs`: finished ones; `different`: what ended otherwise, by name."""

    kills: collections.Counter[str] = field(default_factory=collections.Counter)
    runs: int = 0
    different: list[str] = field(default_factory=list)


def kill_runs(
    folder: Path,
    *,
    kills: int,
    processes: int = 1,
    seed: int = 0,
    settings: list[str] | None = None,
    images: int = 100,
) -> Summary:
    """Kill at least `kills` times, over as many runs as that takes, and compare each with an undisturbed one.

    A run has four epochs of `images` / 8 iterations.

    Raises `AssertionError` with the output of a run that ends by itself in another way than by success.
    """
    chance, summary, moments = random.Random(seed), Summary(), list[str]()
    arguments = [*TINY, "DATA.TRAIN", str(_images(folder / "images", images)), *(settings or [])]
    began = time.monotonic()
    _session(folder / "whole", arguments, processes, None, chance)
    seconds = time.monotonic() - began
    while sum(summary.kills.values()) < kills:
        run = folder / f"run{summary.runs}"
        while True:
            last_kill = sum(summary.kills.values()) >= kills
            if not moments:  # each comes up, however few kills there are
                moments = chance.sample(MOMENTS, len(MOMENTS))
            plan = None if last_kill else _plan(moments.pop(), chance, seconds)
            if not _session(run, arguments, processes, plan, chance):
                break
            assert plan
            summary.kills[plan[0]] += 1
        summary.runs += 1
        summary.different += [f"{run.name}: {what}" for what in differences(folder / "whole", run)]
        shutil.rmtree(run)
    return summary


def differences(whole: Path, run: Path) -> list[str]:
    """What differs at the ends of two runs: tensors of the last checkpoint, its numbers, files, losses, kNN."""
    from pretrain.tensor_files import checkpoint

    ends = [checkpoint.load(path / "checkpoint_last.pth.tar") for path in (whole, run)]
    found = list(_unequal(*ends, where="checkpoint"))
    names = [sorted(path.name for path in each.iterdir()) for each in (whole, run)]
    if names[0] != names[1]:
        found.append(f"files {names[1]}")
    logs = [list(_lines(each)) for each in (whole, run)]
    if logs[0] != logs[1]:
        found.append("metrics.json")
    return found


def _unequal(a: Any, b: Any, *, where: str) -> Iterator[str]:
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        for key in a:
            if key != "config":  # it holds OUTPUT_DIR
                yield from _unequal(a[key], b[key], where=f"{where}.{key}")
    elif isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        for index, pair in enumerate(zip(a, b, strict=True)):
            yield from _unequal(*pair, where=f"{where}.{index}")
    elif type(a) is not type(b) or not (a.equal(b) if hasattr(a, "equal") else a == b):
        yield where


def _lines(folder: Path) -> Iterator[tuple[Any, ...]]:
    for line in (folder / "metrics.json").read_text().splitlines():
        values = json.loads(line)
        yield tuple(values.get(key) for key in ("iteration", "epoch", "loss", "accuracy", "lr", "knn"))


def _images(folder: Path, count: int = 100) -> Path:
    """JPEGs in two class folders, for 12 iterations an epoch."""
    source = np.random.default_rng(0)
    for index in range(count):
        path = folder / "ab"[index % 2] / f"{index:03d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(source.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        coarse.resize((48, 40), Image.Resampling.BICUBIC).save(path)
    return folder


def _plan(moment: str, chance: random.Random, seconds: float) -> tuple[str, float]:
    """A moment and its number: seconds from the start, log lines, or calls of a function."""
    if moment == "time":
        return moment, chance.uniform(0, seconds)
    return moment, chance.randint(
        1, {"write": 400, "line": 10, "unlink": 2, "copy_file_range": 4}.get(moment, 12)
    )


def _session(
    run: Path, arguments: list[str], processes: int, plan: tuple[str, float] | None, chance: random.Random
) -> bool:
    """One start of a run. Whether it was killed; `False`: it is finished."""
    tool = ["tools/pretrain.py", "--config", "pretrain/moco_v2_R50.yaml", "--resume", *arguments,
            "OUTPUT_DIR", str(run)]  # fmt: skip
    inside = [__file__, "--child", plan[0], str(plan[1]), *tool] if plan and plan[0] in CALLS else tool
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1",
                   "MASTER_PORT": str(_free_port()), "GLOO_SOCKET_IFNAME": "lo"}  # fmt: skip
    output = run.with_suffix(".output")
    output.unlink(missing_ok=True)
    started = []
    for rank in range(processes):
        own = {**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        started.append(start_script(inside if rank == 0 else tool, output, output, environment=own))
    if plan and plan[0] not in CALLS:
        _kill_from_outside(started, run, plan, chance)
    while all(process.exitcode is None for process in started):
        time.sleep(0.005)
    killed = any(process.exitcode == -signal.SIGKILL for process in started)
    # The other processes die at once, as with their machine, or later, as when torchrun ends them.
    if killed and chance.random() < 0.7:
        _kill(started)
    for process in started:
        process.join(10)
        if process.exitcode is None:  # it waits for the other to start
            assert killed, output.read_text()
            _kill([process])
    assert killed or all(process.exitcode == 0 for process in started), output.read_text()
    return killed


def _kill_from_outside(
    started: list[ForkServerProcess], run: Path, plan: tuple[str, float], chance: random.Random
) -> None:
    moment, number = plan
    began, before = time.monotonic(), _count_lines(run)

    def reached() -> bool:
        if moment == "time":
            return time.monotonic() - began >= number
        return _count_lines(run) >= before + number

    while not reached():
        if any(process.exitcode is not None for process in started):
            return
        time.sleep(0.002)
    time.sleep(chance.uniform(0, 0.03))
    _kill(started if chance.random() < 0.7 else [chance.choice(started)])


def _kill(processes: list[ForkServerProcess]) -> None:
    """Each with its loader workers, which outlive a process that killed itself."""
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    for process in processes:
        process.join()


def _count_lines(run: Path) -> int:
    try:
        return (run / "metrics.json").read_bytes().count(b"\n")
    except FileNotFoundError:
        return 0


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _child(moment: str, number: float, tool: list[str]) -> None:
    """Run the tool in this process, which dies at the so manieth call that belongs to a checkpoint."""
    from pretrain.tensor_files import checkpoint

    calls = 0

    def deadly(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal calls
            about = " ".join(str(a) for a in arguments if isinstance(a, str | Path))
            calls += moment in ("write", "fsync", "copy_file_range") or "checkpoint_" in about
            if calls >= number:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **options)

        return call

    if moment == "write":
        checkpoint._Watched.write = deadly(checkpoint._Watched.write)
    elif moment == "unlink":
        Path.unlink = deadly(Path.unlink)
    else:
        setattr(os, moment, deadly(getattr(os, moment)))
    sys.argv = tool
    runpy.run_path(tool[0], run_name="__main__")


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        _child(sys.argv[2], float(sys.argv[3]), sys.argv[4:])
        return
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("overrides", nargs="*", metavar="KEY VALUE", help="more settings of the runs")
    args = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        summary = kill_runs(
            Path(folder), kills=args.kills, processes=args.processes, seed=args.seed, settings=args.overrides
        )
    total = sum(summary.kills.values())
    moments = ", ".join(f"{count} {moment}" for moment, count in sorted(summary.kills.items()))
    print(f"{total} kills ({moments}) in {summary.runs} runs of {args.processes} process(es)")
    print(
        f"{len(summary.different)} differences; {time.monotonic() - began:.0f} s",
        *summary.different,
        sep="\n",
    )
    sys.exit(bool(summary.different))


if __name__ == "__main__":
    main()
