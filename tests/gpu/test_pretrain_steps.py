"""Steps of pre-training on a GPU: each mechanism, norm and precision, against the CPU, without waiting."""

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
import torch.distributed as td
from torch import nn

from pretrain.common import distributed
from pretrain.model.norm import _SyncedNorm
from tests.gpu.real import DEVICE, GPU, no_waiting
from tests.gpu.steps import CONFIGS, FROZEN, WHOLE, distance, in_float64, poison, raise_eps, settings, trainee

pytestmark = GPU
CPU = torch.device("cpu")
KINDS = list(CONFIGS)
V3 = ["v3", "v3_vit", "v3_chunks"]
_WARM_UP = 4  # steps in which cuDNN tries its algorithms and constants are copied


@pytest.mark.parametrize("amp", ["off", "bf16", "fp16"])
@pytest.mark.parametrize("kind", KINDS)
def test_twenty_steps_without_waiting_for_the_gpu(kind: str, amp: str) -> None:
    own = trainee(settings(kind, "SOLVER.AMP", amp), DEVICE)
    before = own.weights()
    metrics = [own.step() for _ in range(_WARM_UP)]
    metrics += [own.step(watch=no_waiting) for _ in range(20 - _WARM_UP)]
    assert torch.isfinite(torch.stack(metrics)).all()
    after = own.weights()
    assert all(torch.isfinite(value).all() for value in after.values())
    unchanged = {name for name in after if torch.equal(before[name], after[name])}
    assert unchanged == (FROZEN if kind in ("v3_vit", "v3_chunks") else set())
    kinds = {value.dtype for value in after.values() if value.is_floating_point()}
    assert kinds == {torch.float32}


@pytest.mark.parametrize("norm", ["ShuffleBN", "SyncBN", "BN"])
@pytest.mark.parametrize("kind", ["v2", "endtoend"])
def test_every_norm(kind: str, norm: str) -> None:
    own = trainee(settings(kind, "MODEL.NORM", norm, "SOLVER.AMP", "bf16"), DEVICE)
    metrics = [own.step() for _ in range(_WARM_UP)]
    metrics += [own.step(watch=no_waiting) for _ in range(2)]
    assert torch.isfinite(torch.stack(metrics)).all()


@pytest.mark.parametrize("kind", KINDS)
def test_five_float64_steps_equal_the_cpus(kind: str) -> None:
    """MoCo v3's chunks equal the plain step."""
    with in_float64():
        ours, theirs = (
            trainee(settings(each, "SOLVER.AMP", "off"), device)
            for each, device in ((kind, DEVICE), (WHOLE.get(kind, kind), CPU))
        )
        assert distance(ours.weights(), theirs.weights()) == 0  # the same at the start
        for _ in range(5):
            torch.testing.assert_close(ours.step().cpu(), theirs.step(), rtol=1e-7, atol=1e-7)
        assert distance(theirs.weights(), ours.weights()) < 1e-6


@pytest.mark.parametrize("kind", KINDS)
def test_five_float32_steps_equal_the_cpus(kind: str) -> None:
    """Each from the CPU's state: rounding alone would grow to percents over five steps (see `in_float64`)."""
    rate = {"v3": "0.02"}.get(kind, "0.001")
    cfg = settings(kind, "SOLVER.AMP", "off", "SOLVER.BASE_LR", rate)
    ours, theirs = trainee(cfg, DEVICE), trainee(cfg, CPU)
    for own in (ours, theirs):
        raise_eps(own.optimizer)
    for _ in range(5):
        ours.continue_from(theirs)
        found, expected = ours.step().cpu(), theirs.step()
        assert found[0].item() == pytest.approx(expected[0].item(), rel=1e-4, abs=1e-4)
        state = ours.weights()
        for name, value in theirs.weights().items():
            torch.testing.assert_close(
                state[name], value, rtol=1e-4, atol=1e-4, msg=lambda text, n=name: f"{n}: {text}"
            )
        for here, there in zip(ours.momenta(), theirs.momenta(), strict=True):
            # One ReLU that rounding switches changes the gradients by a percent.
            for name, value in there.items():
                assert (here[name].cpu() - value).norm() <= 0.05 * value.norm() + 1e-7, name


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
@pytest.mark.parametrize("kind", V3)
def test_half_precision_starts_at_the_loss_of_float32_and_learns(kind: str, amp: str) -> None:
    """On the same images in each step, which is enough to learn them."""
    half, full = (trainee(settings(kind, "SOLVER.AMP", name), DEVICE) for name in (amp, "off"))
    first = half.step()[0].item()
    assert first == pytest.approx(full.step()[0].item(), rel=0.01)
    for _ in range(11):
        half.done = 0
        last = half.step()[0].item()
    assert last < 0.97 * first


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_chunks_of_half_precision_are_close_to_the_whole(amp: str) -> None:
    """Only the order of sums may differ; in float64 they are compared with the CPU."""
    whole, chunks = (trainee(settings(kind, "SOLVER.AMP", amp), DEVICE) for kind in ("v3_vit", "v3_chunks"))
    for _ in range(3):
        assert chunks.step()[0].item() == pytest.approx(whole.step()[0].item(), rel=0.03)


@pytest.mark.parametrize("kind", ["v2", "v3_vit"])
def test_compiled_encoders_compute_the_same(kind: str) -> None:
    slow = [
        "SOLVER.AMP",
        "off",
        "SOLVER.BASE_LR",
        "0.001" if kind == "v2" else "0.0001",
        "MODEL.VIT.DEPTH",
        "1",
    ]
    plain, compiled = (
        trainee(settings(kind, *slow, *more), DEVICE) for more in ([], ["MODEL.COMPILE", "True"])
    )
    for own in (plain, compiled):
        raise_eps(own.optimizer)
    for watch in (nullcontext, nullcontext, no_waiting):
        ours, theirs = compiled.step(watch=watch)[0].item(), plain.step()[0].item()
        assert ours == pytest.approx(theirs, rel=1e-3)
    assert distance(plain.weights(), compiled.weights()) < 1e-2


@pytest.mark.parametrize("amp", ["off", "bf16", "fp16"])
@pytest.mark.parametrize("steps", [0, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_a_loss_that_is_not_finite_leaves_the_weights(kind: str, steps: int, amp: str) -> None:
    """Also in the first step, when there is no momentum yet. Nobody has looked at the loss by then."""
    own = trainee(settings(kind, "SOLVER.AMP", amp), DEVICE)
    for _ in range(steps):
        own.step()
    repair, before = poison(own), own.weights()
    weights, momenta = [p.detach().clone() for p in own.model.trained()], own.momenta()
    scale = own.scaler.get_scale() if own.scaler else 0.0
    assert own.step(watch=no_waiting if steps else nullcontext)[0].isnan()
    for p, old, now, then in zip(own.model.trained(), weights, own.momenta(), momenta, strict=True):
        torch.testing.assert_close(p.detach(), old, rtol=0, atol=0, equal_nan=True)
        assert all(torch.equal(value, then.get(name, torch.zeros_like(value))) for name, value in now.items())
    if kind in V3:
        _only_the_usual_update_of_the_momentum_encoder(before, own.weights(), own.model.momentum)
    assert own.scaler is None or own.scaler.get_scale() == scale / 2
    repair()
    assert own.step()[0].isfinite()
    moved = [not torch.equal(p, old) for p, old in zip(own.model.trained(), weights, strict=True)]
    assert all(moved)


def _only_the_usual_update_of_the_momentum_encoder(
    before: dict[str, torch.Tensor], after: dict[str, torch.Tensor], momentum: float
) -> None:
    """It is made before the loss is known, towards weights that are good."""
    for name, value in after.items():
        assert value.isfinite().all(), name
        base = before.get(name.replace("momentum_encoder.", "base_encoder."))
        if name.startswith("momentum_encoder.") and "running_" not in name and "num_batches" not in name:
            torch.testing.assert_close(value, torch.lerp(before[name], base, 1 - momentum), msg=name)


@pytest.fixture
def nccl(tmp_path: Path) -> Iterator[None]:
    """A process group of this process alone."""
    store = td.FileStore(str(tmp_path / "store"), 1)
    td.init_process_group("nccl", store=store, rank=0, world_size=1)
    yield
    distributed.shutdown()


def test_synchronised_norms_of_one_process_over_nccl(nccl: None) -> None:
    """torch's own, which a GPU run uses, and the exchange of ours: both are plain batch norm here."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(8, 4, 6, 6, generator=generator).to(DEVICE)
    factor = torch.randn(8, 4, 6, 6, generator=generator).to(DEVICE)
    plain, synced = nn.BatchNorm2d(4).to(DEVICE), nn.SyncBatchNorm(4).to(DEVICE)
    results = []
    for layer in (plain, synced):
        given = x.clone().requires_grad_()
        output = layer(given)
        (output * factor).sum().backward()
        results.append(
            (output.detach(), given.grad, layer.weight.grad, layer.running_mean, layer.running_var)
        )
    torch.testing.assert_close(results[0], results[1])
    given = x.clone().requires_grad_()
    output, *_ = _SyncedNorm.apply(given, plain.weight.detach(), plain.bias.detach(), plain.eps, None)
    (output * factor).sum().backward()
    torch.testing.assert_close((output.detach(), given.grad), results[0][:2], rtol=1e-4, atol=1e-5)


def test_the_groups_of_a_run_over_nccl(nccl: None) -> None:
    """Barriers of the GPU, flags between CPUs, and a group for SyncBN."""
    td.barrier(device_ids=[torch.cuda.current_device()])
    flags = torch.tensor([0, 1], dtype=torch.uint8)
    td.all_reduce(flags, td.ReduceOp.MAX, group=distributed._cpu_group())
    assert flags.tolist() == [0, 1]
    members = td.new_group([0])
    value = torch.ones(3, device=DEVICE)
    td.all_reduce(value, group=members)
    assert value.tolist() == [1, 1, 1]


def test_channels_last_stays() -> None:
    """Weights and momenta keep the format of the images; otherwise each step would reorder them."""
    own = trainee(settings("v2", "SOLVER.AMP", "bf16"), DEVICE)
    for _ in range(2):
        own.step()
    for name, p in own.model.named_parameters():
        if p.ndim == 4 and p.requires_grad:
            momentum = own.optimizer.state[p]["momentum_buffer"]
            for value in (p, momentum):
                assert value.is_contiguous(memory_format=torch.channels_last), name
