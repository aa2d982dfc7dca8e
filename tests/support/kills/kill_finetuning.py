"""Kills fine-tuning runs by SIGKILL, resumes them, and compares their ends with an undisturbed one, bit for bit.

    python tests/support/kills/kill_finetuning.py --kills 100
    python tests/support/kills/kill_finetuning.py --kills 20 --launcher

A run is a tiny `tools/train_net.py` that saves after each iteration. It is killed at a random time with its loader
workers, and resumed with `--resume` until it is finished. With `--launcher` it runs in two processes of torchrun, and
only torchrun is killed: its processes must end within 10 seconds.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[3])

import torch  # noqa: E402

from tests.support import detection_data  # noqa: E402
from tests.support.scripts import kill_script, start_script  # noqa: E402

ROOT = Path(__file__).resolve().parents[3]
TOOL = ["tools/train_net.py", "--config", "transfer/coco_R50_FPN.yaml", "--resume"]
TINY = [
    "MODEL.INIT", "random", *detection_data.TINY, *detection_data.NARROW, "SOLVER.MAX_ITER", "8",
    "SOLVER.STEPS", "(6,)", "SOLVER.CHECKPOINT_PERIOD", "1", "TEST.PICTURES", "0", "DATALOADER.NUM_WORKERS", "1",
]  # fmt: skip


def outcome(folder: Path) -> tuple[dict[str, torch.Tensor], list[dict]]:
    """Return the weights at the end of a run, and its losses."""
    weights = torch.load(folder / "model_final.pth", weights_only=True)["model"]
    lines = map(json.loads, (folder / "metrics.json").read_text().splitlines())
    return weights, [
        {key: line[key] for key in ("iteration", "total_loss", "lr") if key in line} for line in lines
    ]


def equal(first: Path, second: Path) -> bool:
    """Return whether two runs ended with the same weights and the same losses."""
    (a, losses), (b, others) = outcome(first), outcome(second)
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a) and losses == others


def alive(folder: Path) -> list[int]:
    """Return the processes whose command line names a folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes()
        except OSError:
            continue
        if str(folder).encode() in words and int(process.name) != os.getpid():
            found.append(int(process.name))
    return found


def start_once(settings: list[str], folder: Path, after: float | None) -> bool:
    """Start or resume a run, and kill it after so many seconds. Return whether it was killed before its end."""
    log = folder.with_suffix(".log")
    process = start_script([*TOOL, *settings, "OUTPUT_DIR", str(folder)], log, log)
    process.join(after)
    killed = process.exitcode is None
    kill_script(process)
    assert killed or process.exitcode == 0, log.read_text()
    return killed


def start_launcher(settings: list[str], folder: Path, after: float | None) -> tuple[bool, float]:
    """As `start_once`, with torchrun. Return also the seconds until all its processes have ended."""
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        *TOOL,
        *settings,
    ]
    with open(folder.with_suffix(".log"), "w", encoding="utf-8") as log:
        launcher = subprocess.Popen([*command, "OUTPUT_DIR", str(folder)], cwd=ROOT, stdout=log, stderr=log)
        try:
            launcher.wait(after)
        except subprocess.TimeoutExpired:
            launcher.send_signal(signal.SIGKILL)
        status = launcher.wait()
    began = time.monotonic()
    while alive(folder) and time.monotonic() - began < 60:
        time.sleep(0.05)
    assert status in (0, -signal.SIGKILL), folder.with_suffix(".log").read_text()
    return status != 0, time.monotonic() - began


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--launcher", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    chance, kills, runs, different, slowest = random.Random(args.seed), 0, 0, 0, 0.0
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory() as name:
        settings = [*TINY, *detection_data.tiny_run(Path(name) / "data")]
        whole = Path(name) / "whole"
        for folder in (whole, Path(name) / "again"):  # the first one also starts the server
            began = time.monotonic()
            start_launcher(settings, folder, None) if args.launcher else start_once(settings, folder, None)
            seconds = time.monotonic() - began
        while kills < args.kills:
            run, killed = Path(name) / f"run{runs}", True
            while killed:
                after = chance.uniform(0, seconds) if kills < args.kills else None
                if args.launcher:
                    killed, waited = start_launcher(settings, run, after)
                    slowest = max(slowest, waited)
                else:
                    killed = start_once(settings, run, after)
                kills += killed
            runs += 1
            different += not equal(whole, run)
            print(f"{kills} kills, {runs} runs, {different} different", flush=True)
            shutil.rmtree(run)
    print(f"the slowest process ended after {slowest:.1f} s" if args.launcher else "")
    sys.exit(bool(different or slowest > 10))


if __name__ == "__main__":
    main()
