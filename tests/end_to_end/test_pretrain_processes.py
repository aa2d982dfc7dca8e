"""Results do not depend on the number of processes: whole runs in 1, 2 and 4 of them, for the same total batch.

In float64, where one process and several differ in the twelfth digit after five steps. In float32 the order of
sums alone comes to percents by then: each step multiplies what the one before left.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pretrain import config
from pretrain.common import distributed
from pretrain.model import build
from pretrain.tensor_files import checkpoint
from pretrain.train.log import METRICS_FILE
from pretrain.train.loop import train
from tests.support.scripts import ROOT, run_script, server

MakeFolder = Callable[..., Path]
SMALL = [
    "MODEL.ARCH", "resnet18", "MODEL.WIDTH", "0.125", "MODEL.DIM", "16", "MOCO.K", "100", "MOCO.M", "0.9",
    "INPUT.SIZE", "32", "DATA.NUM_WORKERS", "0", "SOLVER.BASE_LR", "0.01", "SOLVER.IMS_PER_BATCH", "32",
    "SOLVER.MAX_ITER", "5", "SOLVER.LOG_PERIOD", "1", "SOLVER.AMP", "off", "KNN.PERIOD", "1",
    "LOG.TENSORBOARD", "False", "DEVICE", "cpu",
]  # fmt: skip
# 32 images: two groups, each on one process of two or on two of four; four groups, one or several on a process; and
# one group over everything
NORMS = {
    "two": ["MODEL.BN_GROUP_SIZE", "16"],
    "four": ["MODEL.BN_GROUP_SIZE", "8"],
    "sync": ["MODEL.NORM", "SyncBN"],
}
VARY = ("images_per_second", "data_wait", "time", "iteration")
CONFIG = ["--config", "pretrain/moco_v2_R50.yaml"]


def arguments(images: Path, labelled: Path, output: Path, *more: str) -> list[str]:
    return [
        *SMALL, "DATA.TRAIN", str(images), "KNN.TRAIN", str(labelled), "OUTPUT_DIR", str(output), *more
    ]  # fmt: skip


def in_float64(runs: list[list[str]]) -> None:
    """Train one run after the other; what asks for float32 gets float64 too."""
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    torch.Tensor.float = torch.Tensor.double  # type: ignore[method-assign]
    distributed.init_from_env(torch.device("cpu"))
    for run in runs:
        train(config.load(CONFIG[1], run, processes=distributed.world_size()))


def starts_worker(folder: str) -> None:
    distributed.init_from_env(torch.device("cpu"))
    cfg = config.load(
        CONFIG[1], [*SMALL, "MODEL.BN_GROUP_SIZE", "16", "SEED", str(distributed.rank())], processes=2
    )
    model, _, _ = build.build(cfg, torch.device("cpu"), images=64, decide=False)
    torch.save(model.state_dict(), f"{folder}/{distributed.rank()}.pt")


def test_all_processes_start_from_the_weights_of_the_first(tmp_path: Path) -> None:
    """Also where their random numbers differ, as in the last bit between kinds of machines."""
    distributed.spawn(starts_worker, 2, (str(tmp_path),))
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    for name, value in first.items():
        assert torch.equal(value, second[name]) == (name != "queue"), name


def log_lines(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / METRICS_FILE).read_text().splitlines()]


def assert_equal(one: Path, other: Path, *, tolerance: float) -> None:
    """The same log, and weights, running statistics, queue, pointer and momenta as near as `tolerance` of each."""
    for a, b in zip(log_lines(one), log_lines(other), strict=True):
        assert a.keys() == b.keys() and a["iteration"] == b["iteration"]
        for key in a.keys() - set(VARY):  # a near tie of one of 32 images may flip where sums are rounded
            slack = 1 / 32 if "accuracy" in key and tolerance > 1e-6 else 0
            assert a[key] == pytest.approx(b[key], rel=10 * tolerance, abs=10 * tolerance + slack), key
    ours, theirs = (checkpoint.load(folder / "checkpoint_last.pth.tar") for folder in (one, other))
    assert ours["state_dict"].keys() == theirs["state_dict"].keys()
    pairs = {name: (value, theirs["state_dict"][name]) for name, value in ours["state_dict"].items()}
    for index, state in ours["optimizer"]["state"].items():  # sums of the gradients so far
        pairs[index] = (state["momentum_buffer"], theirs["optimizer"]["state"][index]["momentum_buffer"])
    for name, (mine, other_) in pairs.items():
        assert mine.dtype == other_.dtype and mine.shape == other_.shape, name
        limit = (20 if isinstance(name, int) else 1) * tolerance * mine.double().norm() + 1e-2 * tolerance
        assert (mine.double() - other_.double()).norm() <= limit, name


def test_runs_do_not_depend_on_the_number_of_processes(image_folder: MakeFolder, tmp_path: Path) -> None:
    """Five steps over two epochs, with a queue of 100 keys that wraps around, and kNN."""
    images, labelled = image_folder(100), image_folder(3, classes=("a", "b", "c"))  # 9 images: no even shares

    def runs(folder: str, *names: str) -> list[list[str]]:
        return [arguments(images, labelled, tmp_path / folder / name, *NORMS[name]) for name in names]

    alone = server().Process(target=in_float64, args=(runs("1", *NORMS),))
    alone.start()
    distributed.spawn(in_float64, 2, (runs("2", *NORMS),))
    alone.join()
    assert alone.exitcode == 0
    distributed.spawn(in_float64, 4, (runs("4", "two", "sync"),))
    for name in NORMS:
        assert [line["iteration"] for line in log_lines(tmp_path / "1" / name) if "knn" in line] == [0, 3, 5]
        assert_equal(tmp_path / "1" / name, tmp_path / "2" / name, tolerance=1e-9)
    for name in ("two", "sync"):
        assert_equal(tmp_path / "1" / name, tmp_path / "4" / name, tolerance=1e-9)
    state = checkpoint.load(tmp_path / "1" / "two" / "checkpoint_last.pth.tar")["state_dict"]
    assert state["module.queue"].dtype == torch.float64 and state["module.queue_ptr"].tolist() == [60]
    assert not torch.equal(*(log_loss(tmp_path / "1" / name) for name in ("two", "four")))  # groups matter


def log_loss(output: Path) -> torch.Tensor:
    return torch.tensor([line["loss"] for line in log_lines(output) if "loss" in line])


@pytest.mark.slow
def test_the_tool_under_torchrun_equals_the_tool_alone(image_folder: MakeFolder, tmp_path: Path) -> None:
    """As users run it, in float32; at a low rate rounding grows slowly."""
    images, labelled = image_folder(64), image_folder(3, classes=("a", "b", "c"))
    more = ["MODEL.BN_GROUP_SIZE", "8", "SOLVER.BASE_LR", "0.0001"]
    alone = run_script("tools/pretrain.py", *CONFIG, *arguments(images, labelled, tmp_path / "one", *more))
    assert alone.returncode == 0, alone.stderr
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*launcher, "tools/pretrain.py", *CONFIG, *arguments(images, labelled, tmp_path / "two", *more)],
        cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert_equal(tmp_path / "one", tmp_path / "two", tolerance=1e-4)
