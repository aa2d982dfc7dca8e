"""Whole runs of pre-training on a GPU: what they leave, a resumed one, and one that needs too much memory."""

import json
import math
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from pretrain import config
from pretrain.common.errors import UserError
from pretrain.tensor_files import checkpoint
from pretrain.train import loop
from pretrain.train.checkpoints import LAST
from pretrain.train.setup import Run
from tests.gpu.real import GPU, deterministic, little_memory, no_waiting
from tests.gpu.steps import CONFIGS, distance, overrides

pytestmark = GPU
MakeFolder = Callable[..., Path]
RUN = [
    "DATA.NUM_WORKERS", "2", "SOLVER.MAX_EPOCH", "10", "SOLVER.LOG_PERIOD", "1", "SOLVER.CHECKPOINT_PERIOD",
    "5", "KNN.PERIOD", "5", "LOG.TENSORBOARD", "False", "DEVICE", "cuda",
]  # fmt: skip


class Killed(Exception):
    """Ends a run as if it had been killed."""


def run(kind: str, images: Path, output: Path, *more: str, resume: bool = False) -> dict[str, Any]:
    """Train in this process; the contents of the last checkpoint."""
    given = overrides(kind, *RUN, "DATA.TRAIN", str(images), "OUTPUT_DIR", str(output), *more)
    loop.train(config.load(CONFIGS[kind], given), resume=resume)
    return checkpoint.load(output / LAST)


@pytest.mark.parametrize(
    ("kind", "amp", "views"),
    [
        ("v1", "off", "cpu"),
        ("v2", "auto", "gpu"),
        ("v2", "fp16", "cpu"),
        ("endtoend", "bf16", "gpu"),
        ("memorybank", "auto", "cpu"),
        ("v3", "fp16", "gpu"),
        ("v3_vit", "off", "gpu"),
        ("v3_chunks", "fp16", "cpu"),
    ],
)
def test_a_run_of_twenty_iterations(
    image_folder: MakeFolder, tmp_path: Path, kind: str, amp: str, views: str
) -> None:
    images = image_folder(16, size=(96, 80), classes=("a", "b"))
    found = run(kind, images, tmp_path / "run", "SOLVER.AMP", amp, "INPUT.VIEWS", views)
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.json").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert len(losses) == 20 and all(map(math.isfinite, losses))
    assert [line["iteration"] for line in lines if "knn" in line] == [0, 10, 20]
    assert found["iteration"] == 20 and found["amp"].startswith(amp if amp != "auto" else ("bf16", "off"))
    assert all(value.device.type == "cpu" for value in found["state_dict"].values())
    assert (found["scaler"] is not None) == (amp == "fp16")


@pytest.mark.parametrize(
    ("kind", "amp"),
    [("v2", "bf16"), ("v2", "fp16"), ("v3", "fp16"), ("v3_vit", "bf16"), ("v3_chunks", "fp16")],
)
def test_nothing_waits_between_the_loader_and_the_log(
    image_folder: MakeFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, amp: str
) -> None:
    """Copies from pinned memory, views on the GPU, and the step, once cuDNN has chosen its algorithms."""

    def watched(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            (own,) = (each for each in arguments if isinstance(each, Run))
            with no_waiting() if own.progress.iteration >= 8 else nullcontext():
                return function(*arguments)

        return call

    monkeypatch.setattr(loop, "to_device", watched(loop.to_device))
    monkeypatch.setattr(loop, "step", watched(loop.step))
    images = image_folder(32, size=(96, 80))
    assert run(kind, images, tmp_path / "run", "SOLVER.AMP", amp, "INPUT.VIEWS", "gpu")["iteration"] == 20


@pytest.mark.parametrize("kind", ["v2", "v3", "v3_vit", "v3_chunks"])
def test_a_resumed_run_is_the_undisturbed_one(
    image_folder: MakeFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """In one process, in which cuDNN keeps the algorithms that it has chosen.

    Where an operation has no deterministic algorithm, two undisturbed runs differ too: the resumed one may then
    differ from them no more than they do from each other.
    """
    images, step = image_folder(32, size=(96, 80)), loop.train_step
    exact = ["SOLVER.AMP", "off", "INPUT.VIEWS", "gpu", "DATA.NUM_WORKERS", "0"]

    def until_the_tenth(*arguments: Any, **options: Any) -> torch.Tensor:
        if options["iteration"] == 9:
            raise Killed
        return step(*arguments, **options)

    with deterministic():
        whole, again = (run(kind, images, tmp_path / name, *exact)["state_dict"] for name in "ab")
        monkeypatch.setattr(loop, "train_step", until_the_tenth)
        with pytest.raises(Killed):
            run(kind, images, tmp_path / "cut", *exact)
        monkeypatch.setattr(loop, "train_step", step)
        assert checkpoint.load(tmp_path / "cut" / LAST)["iteration"] == 8
        resumed = run(kind, images, tmp_path / "cut", *exact, resume=True)["state_dict"]
    noise, found = distance(whole, again), distance(whole, resumed)
    print(f"two undisturbed runs differ by {noise:.1e}, the resumed one by {found:.1e}")
    assert found == 0 if noise == 0 else found <= 10 * noise


@pytest.mark.parametrize("kind", ["v2", "v3", "v3_vit"])
def test_a_float16_run_resumes_with_its_scale(image_folder: MakeFolder, tmp_path: Path, kind: str) -> None:
    images, output = image_folder(32, size=(96, 80)), tmp_path / "run"
    half = ["SOLVER.AMP", "fp16"]
    before = run(kind, images, output, *half, "SOLVER.MAX_ITER", "10")
    after = run(kind, images, output, *half, resume=True)
    assert before["iteration"] == 10 and after["iteration"] == 20
    assert 0 < after["scaler"]["scale"] <= before["scaler"]["scale"]  # it grows after 2000 good steps only


@pytest.mark.parametrize("views", ["cpu", "gpu"])
def test_too_little_memory_is_one_line(image_folder: MakeFolder, tmp_path: Path, views: str) -> None:
    """A batch of 64 images of 224 pixels needs more than twice as much."""
    images = image_folder(64, size=(240, 240))
    large = [
        "MODEL.WIDTH", "1.0", "INPUT.SIZE", "224", "SOLVER.IMS_PER_BATCH", "64", "MODEL.BN_GROUP_SIZE", "32",
        "SOLVER.AMP", "off", "SOLVER.MAX_EPOCH", "1", "INPUT.VIEWS", views,
    ]  # fmt: skip
    with (
        little_memory(0.7),
        pytest.raises(UserError, match=r"enough memory for SOLVER\.IMS_PER_BATCH 64: use fewer") as caught,
    ):
        run("v2", images, tmp_path / "run", *large)
    assert "\n" not in str(caught.value)


def test_chunks_fit_where_the_whole_batch_does_not(image_folder: MakeFolder, tmp_path: Path) -> None:
    """A ViT-S in 1 GB: activations of 64 images take more than 3 GB; those of two, weights and momenta half of one."""
    images = image_folder(64, size=(240, 240))
    large = [
        "MODEL.VIT.WIDTH", "384", "MODEL.VIT.DEPTH", "12", "MODEL.VIT.HEADS", "6", "INPUT.SIZE", "224",
        "SOLVER.IMS_PER_BATCH", "64", "SOLVER.AMP", "off", "SOLVER.MAX_ITER", "1", "SOLVER.MAX_EPOCH", "2",
    ]  # fmt: skip
    with little_memory(1.0):
        with pytest.raises(
            UserError, match=r"SOLVER\.IMS_PER_BATCH 64: set SOLVER\.CHUNK 32 \(same result\)"
        ):
            run("v3_vit", images, tmp_path / "run", *large)
        assert run("v3_vit", images, tmp_path / "chunks", *large, "SOLVER.CHUNK", "2")["iteration"] == 1


def test_a_compiled_run(image_folder: MakeFolder, tmp_path: Path) -> None:
    """With both kinds of passes: the monitor's evaluation does not compile a graph of its own."""
    images = image_folder(16, size=(96, 80), classes=("a", "b"))
    found = run(
        "v2", images, tmp_path / "run", "MODEL.COMPILE", "True", "SOLVER.MAX_EPOCH", "2", "SOLVER.AMP", "bf16"
    )
    assert found["iteration"] == 4
    assert not any("_orig_mod" in name for name in found["state_dict"])
