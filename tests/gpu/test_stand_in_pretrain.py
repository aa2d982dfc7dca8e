"""Every part of pre-training on a stand-in for a GPU, on any machine: no tensor is on the wrong device.

The numbers equal those of the CPU, and no step waits for the GPU.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from pretrain import config
from pretrain.data import on_device
from pretrain.data.on_device import Pixels
from pretrain.data.views import PACKED, RECIPES
from pretrain.model import precision
from pretrain.model.encoders import ResNet
from pretrain.model.vit import ViT
from pretrain.tensor_files import checkpoint
from pretrain.train import checkpoints
from pretrain.train.checkpoints import LAST
from pretrain.train.knn_monitor import Probe, knn, rankme
from pretrain.train.log import Meter
from pretrain.train.loop import train
from pretrain.train.nonfinite import first_bad_layer
from tests.gpu.stand_in import DEVICE, OnGpu, StandIn, plain, stand_in_gpu
from tests.gpu.steps import CONFIGS, WHOLE, distance, in_float64, overrides, poison, settings, trainee
from tests.support.contrast_models import encoder, random_views
from tests.support.pretrain_runs import log_lines

CPU = torch.device("cpu")
SMALLER = ["INPUT.SIZE", "32", "MODEL.BN_GROUP_SIZE", "8"]


@pytest.fixture
def gpu() -> Iterator[StandIn]:
    with stand_in_gpu() as seen:
        yield seen


@pytest.mark.parametrize(
    ("kind", "norm", "amp"),
    [
        ("v1", "ShuffleBN", "bf16"),
        ("v2", "ShuffleBN", "off"),
        ("v2", "BN", "fp16"),
        ("endtoend", "ShuffleBN", "off"),
        ("endtoend", "SyncBN", "bf16"),
        ("memorybank", "SyncBN", "off"),
        ("v3", "SyncBN", "fp16"),
        ("v3_vit", "SyncBN", "bf16"),
        ("v3_chunks", "SyncBN", "fp16"),
    ],
)
def test_steps_stay_on_the_gpu_and_wait_for_nothing(gpu: StandIn, kind: str, norm: str, amp: str) -> None:
    """Forward, backward, optimizer and what comes after; the second step finds what the first one left."""
    cfg = settings(kind, *SMALLER, "MODEL.NORM", norm, "SOLVER.AMP", amp)
    ours = trainee(cfg, DEVICE)
    meter = Meter(DEVICE)
    for _ in range(2):
        metrics = ours.step(watch=gpu.no_waits)
        with gpu.no_waits():
            meter.add(metrics)
    assert all(isinstance(value, OnGpu) for value in ours.model.state_dict().values())
    assert meter.is_finite() and len(meter.read()) == len(metrics)


@pytest.mark.parametrize("kind", CONFIGS)
def test_numbers_are_the_cpus(gpu: StandIn, kind: str) -> None:
    """In float64: all queries in one piece and channels last, as on a GPU, against pieces of one group.

    MoCo v3's chunks are compared with the plain step.
    """
    with in_float64():
        ours, theirs = (
            trainee(settings(each, *SMALLER, "SOLVER.AMP", "off"), device)
            for each, device in ((kind, DEVICE), (WHOLE.get(kind, kind), CPU))
        )
        for _ in range(3):
            torch.testing.assert_close(plain(ours.step()), theirs.step(), rtol=1e-6, atol=1e-6)
        assert distance(theirs.weights(), ours.weights()) < 1e-6


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (lambda logits: logits + torch.zeros(logits.shape[1]), "cuda:0 and cpu"),
        (lambda logits: torch.stack([logits, torch.zeros(logits.shape)])[0], "cuda:0 and cpu"),
        (lambda logits: logits[torch.arange(len(logits))], "__getitem__"),
        (lambda logits: logits / logits.detach().abs().max().item(), "item"),
        (lambda logits: logits + torch.tensor(1.0).to(logits.device), "copy to cuda"),
        (lambda logits: logits + torch.tensor([1.0], device=logits.device), "tensor"),
        (lambda logits: logits if logits.detach().isfinite().all() else logits * 0, "__bool__"),
    ],
)
def test_a_fault_is_found(
    gpu: StandIn, monkeypatch: pytest.MonkeyPatch, fault: Callable[[torch.Tensor], torch.Tensor], message: str
) -> None:
    """The check checks: a forgotten `device`, a copy, and a look at a value."""
    ours = trainee(settings("v2", *SMALLER), DEVICE)
    logits = ours.model.logits
    monkeypatch.setattr(ours.model, "logits", lambda *arguments: fault(logits(*arguments)))
    with pytest.raises(AssertionError, match=message):
        ours.step(watch=gpu.no_waits)


@pytest.mark.parametrize(
    ("kind", "amp", "layer"),
    [
        ("v2", "off", "queue"),
        ("memorybank", "off", "memory_bank"),
        ("v3", "off", ""),
        ("v3_vit", "fp16", ""),
    ],
)
def test_a_loss_that_is_not_finite(gpu: StandIn, kind: str, amp: str, layer: str) -> None:
    """Nobody waits for it: the weights stay as they are, and the first bad layer can be named later."""
    ours = trainee(settings(kind, *SMALLER, "SOLVER.AMP", amp), DEVICE)
    repair = poison(ours)
    before = [plain(p).clone() for p in ours.model.trained()]
    assert plain(ours.step(watch=gpu.no_waits))[0].isnan()
    assert all(torch.equal(plain(p), old) for p, old in zip(ours.model.trained(), before, strict=True))
    assert not any(plain(value).any() for state in ours.momenta() for value in state.values())
    views = tuple(view.to(DEVICE) for view in random_views(16, size=32))
    found = first_bad_layer(ours.model, (views[0], views[1]), pixels=ours.pixels, amp=torch.bfloat16)
    assert found == layer
    repair()
    assert plain(ours.step())[0].isfinite()
    assert not all(torch.equal(plain(p), old) for p, old in zip(ours.model.trained(), before, strict=True))


@pytest.mark.parametrize("recipe", RECIPES)
def test_views(gpu: StandIn, recipe: str) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (6, 32, 32, 3), generator=generator).to(torch.uint8)
    choices = torch.rand(6, PACKED, generator=generator)
    choices[:, 0:8:2] = torch.tensor([3.0, 0, 2, 1])
    on_device.finish(images.to(DEVICE), choices.to(DEVICE), RECIPES[recipe])  # constants are copied
    there, chosen = images.to(DEVICE), choices.to(DEVICE)
    pixels = Pixels([0.5] * 3, [0.2] * 3, channels_last=True).to(DEVICE)
    with gpu.no_waits():
        done = on_device.finish(there, chosen, RECIPES[recipe])
        assert pixels(done).shape == (6, 3, 32, 32)
    assert torch.equal(plain(done), on_device.finish(images, choices, RECIPES[recipe]))


def test_neighbours_and_rank(gpu: StandIn, image_folder: Callable[..., Path]) -> None:
    bank, labels = F.normalize(torch.randn(30, 4)), torch.randint(0, 3, (30,))
    for leave_one_out in (False, True):
        there = knn(
            bank.to(DEVICE),
            bank.to(DEVICE),
            labels.to(DEVICE),
            k=5,
            temperature=0.2,
            leave_one_out=leave_one_out,
        )
        here = knn(bank, bank, labels, k=5, temperature=0.2, leave_one_out=leave_one_out)
        assert torch.equal(plain(there), here)
    assert rankme(bank.to(DEVICE)) == pytest.approx(rankme(bank))
    folder = image_folder(2, classes=("a", "b"))
    cfg = settings("v2", *SMALLER, "KNN.TRAIN", str(folder), "DATA.NUM_WORKERS", "0")
    probe = Probe(cfg, Pixels(cfg.INPUT.MEAN, cfg.INPUT.STD).to(DEVICE), device=DEVICE)
    # Positions are interpolated.
    shape: dict[str, Any] = {"width": 24, "depth": 1, "heads": 3, "image_size": 64}
    for network in (encoder(), ViT(**shape)):
        assert isinstance(network, ResNet | ViT)
        assert probe.measure(network.to(DEVICE), bf16=True).largest == 4


def test_what_is_saved_and_the_choice_of_precision(gpu: StandIn, tmp_path: Path) -> None:
    ours = trainee(settings("v2", *SMALLER), DEVICE)
    checkpoints._check_finite(tmp_path, ours.model, ours.optimizer, iteration=1)
    with torch.no_grad():
        ours.model.state_dict()["queue"].fill_(torch.nan)
    with pytest.raises(Exception, match="queue became infinite or NaN"):
        checkpoints._check_finite(tmp_path, ours.model, ours.optimizer, iteration=1)
    decision = precision.decide("auto", lambda: pytest.fail("timed"), size=8, group_size=4, device=DEVICE)
    assert decision.startswith("bf16")


@pytest.mark.parametrize("kind", ["v2", "memorybank", "v3_chunks"])
def test_a_run_that_is_resumed(
    gpu: StandIn, image_folder: Callable[..., Path], tmp_path: Path, kind: str
) -> None:
    """The whole loop: the images of a loader, one of which is unreadable, the monitor, the log and the state."""
    images = image_folder(8, classes=("a", "b"))
    (images / "a" / "0000.jpg").write_bytes(b"no image")
    given = overrides(
        kind, "DEVICE", "cuda", "INPUT.SIZE", "32", "INPUT.VIEWS", "gpu", "SOLVER.IMS_PER_BATCH", "8",
        "MODEL.BN_GROUP_SIZE", "4", "DATA.MAX_BROKEN", "0.5", "SOLVER.AMP", "fp16", "DATA.NUM_WORKERS", "0",
        "SOLVER.LOG_PERIOD", "1", "LOG.TENSORBOARD", "False", "DATA.TRAIN", str(images), "OUTPUT_DIR",
        str(tmp_path / "run"),
    )  # fmt: skip
    train(config.load(CONFIGS[kind], [*given, "SOLVER.MAX_ITER", "2", "SOLVER.MAX_EPOCH", "2"]))
    train(config.load(CONFIGS[kind], [*given, "SOLVER.MAX_EPOCH", "2"]), resume=True)
    state = checkpoint.load(tmp_path / "run" / LAST)
    assert state["iteration"] == 4 and state["scaler"] is not None
    lines = log_lines(tmp_path / "run")
    assert [line["iteration"] for line in lines if "loss" in line] == [1, 2, 3, 4]
    assert "0000.jpg" in (tmp_path / "run/broken_images.txt").read_text()
