"""A training step: pieces that add up, float16, losses that are not finite and the layer that they come from."""

import pytest
import torch
from torch import nn

from pretrain import config
from pretrain.model import build, memory, moco
from pretrain.model.contrast import Contrast
from pretrain.model.moco import MoCo
from pretrain.model.moco_v3 import MoCoV3
from pretrain.train.nonfinite import first_bad_layer
from pretrain.train.step import METRICS, NonFiniteLoss, _leave_weights_after, train_step
from tests.support.contrast_models import (
    KINDS,
    PIXELS,
    V3_KINDS,
    any_model,
    random_numbers,
    random_views,
    resnet_model,
    sgd,
    step,
    tiny_encoder,
)  # fmt: skip

CPU = torch.device("cpu")


def states_close(one: nn.Module, two: nn.Module, tolerance: float) -> None:
    other = two.state_dict()
    for name, value in one.state_dict().items():
        difference = (value - other[name]).float().norm()
        assert difference <= tolerance * value.float().norm() + 1e-4, name


@pytest.mark.parametrize("kind", KINDS)
def test_pieces_change_nothing(kind: str) -> None:
    """Queries in pieces of whole groups: same gradients, statistics and memory as in one pass."""
    order = moco.permutation(16, groups=4, seed=0, step=0)
    results: list[tuple[Contrast, list[torch.Tensor]]] = []
    for parts in (1, 2):
        model = resnet_model(kind)
        optimizer = sgd(model, 0.01)
        metrics = [step(model, optimizer, n, images=16, order=order, parts=parts) for n in range(2)]
        results.append((model, metrics))
    (whole, ours), (pieces, theirs) = results
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
    states_close(whole, pieces, 1e-3)
    for a, b in zip(whole.trained(), pieces.trained(), strict=True):
        assert (a.grad - b.grad).norm() <= 0.02 * a.grad.norm() + 1e-6


@pytest.mark.parametrize("kind", [*KINDS, *V3_KINDS])
def test_recomputed_blocks_change_nothing(kind: str) -> None:
    """Same gradients and running statistics with blocks that are computed twice."""
    plain, frugal = any_model(kind), any_model(kind)
    for encoder in [frugal.query_encoder] if kind in V3_KINDS else frugal.children():
        memory.recompute_blocks(encoder)
    for model in (plain, frugal):
        optimizer = sgd(model, 0.01)
        for iteration in range(2):
            step(model, optimizer, iteration)
    other = frugal.state_dict()
    assert plain.state_dict().keys() == other.keys()
    assert all(torch.equal(value, other[name]) for name, value in plain.state_dict().items())


@pytest.mark.parametrize(
    ("kind", "share", "frugal"),
    [("moco", 0.9, 1), ("moco", 1.1, 0), ("endtoend", 2.6, 2), ("endtoend", 3.1, 0)],
)
def test_what_a_step_keeps_is_fitted_to_the_memory(
    kind: str, share: float, frugal: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A machine for `share` pieces of queries; end to end, the keys of the whole batch (2 pieces) are kept too."""
    cfg = config.load(
        "pretrain/moco_v2_R50.yaml", ["MOCO.MECHANISM", kind, "MODEL.ARCH", "resnet18", "MODEL.WIDTH", "0.125",
                                      "MOCO.K", "64", "SOLVER.IMS_PER_BATCH", "64"]
    )  # fmt: skip
    model, _, _ = build.build(cfg, CPU, images=200, decide=False)
    whole = 32 * memory.activation_bytes(model.encoder_q, cfg.INPUT.SIZE) / 0.6
    pages = {"SC_PHYS_PAGES": int(share * whole), "SC_PAGE_SIZE": 1}
    monkeypatch.setattr(memory.os, "sysconf", pages.__getitem__)
    memory.fit(cfg, model, CPU)
    encoders = [child for child in model.children() if "forward" in vars(child.layer1[0])]
    assert len(encoders) == frugal
    assert ("blocks are computed twice" in capsys.readouterr().out) == bool(frugal)


@pytest.mark.parametrize("kind", [*KINDS, *V3_KINDS])
def test_stops_before_the_optimizer_when_the_loss_is_not_finite(kind: str) -> None:
    model = any_model(kind)
    optimizer = sgd(model)
    if isinstance(model, MoCoV3):
        model.momentum = 1.0  # the momentum encoder stays as it is
    with torch.no_grad():  # what only the keys or only the queries meet
        poisoned = {
            "moco": "queue", "endtoend": "encoder_k.fc.2.bias", "memorybank": "memory_bank",
            "mocov3": "momentum_encoder.fc.0.weight", "mocov3_vit": "predictor.0.weight",
        }[kind]  # fmt: skip
        model.state_dict()[poisoned].view(-1)[:: 1 if kind == "memorybank" else 4] = torch.nan
    before = {name: value.clone() for name, value in model.state_dict().items() if "running" not in name}
    with pytest.raises(NonFiniteLoss):
        step(model, optimizer)
    for name, value in before.items():
        if "num_batches" not in name:
            torch.testing.assert_close(model.state_dict()[name], value, equal_nan=True, rtol=0, atol=0)
    assert not optimizer.state  # no momentum yet


def test_weights_stay_after_a_loss_that_nobody_looked_at() -> None:
    """As on a GPU, where no step waits for its loss: the next finite loss continues from the same weights."""
    model = resnet_model()
    optimizer = torch.optim.SGD(model.trained(), lr=0.01, momentum=0.9, fused=True)
    step(model, optimizer)
    before = [(p.clone(), optimizer.state[p]["momentum_buffer"].clone()) for p in model.trained()]
    for p in model.trained():
        p.grad = torch.full_like(p, torch.nan)
    _leave_weights_after(torch.tensor(torch.nan), optimizer)
    optimizer.step()
    for p, (weights, momentum) in zip(model.trained(), before, strict=True):
        assert torch.equal(p, weights) and torch.equal(optimizer.state[p]["momentum_buffer"], momentum)
        p.grad = torch.ones_like(p)
    _leave_weights_after(torch.tensor(1.0), optimizer)
    optimizer.step()
    assert not any(torch.equal(p, weights) for p, (weights, _) in zip(model.trained(), before, strict=True))


def test_fused_sgd_equals_sgd_by_hand() -> None:
    """Over the recipe's optimizer: v <- 0.9 v + (g + 1e-4 w), w <- w - lr v."""
    cfg = config.load(
        "pretrain/moco_v2_R50.yaml", ["MODEL.ARCH", "resnet18", "MODEL.WIDTH", "0.125", "MOCO.K", "8"]
    )
    model, optimizer, decision = build.build(cfg, CPU, images=512, decide=False)
    assert decision == "" and [group["lr"] for group in optimizer.param_groups] == [0.03]
    weights = [p.detach().clone() for p in model.trained()]
    velocity = [torch.zeros_like(w) for w in weights]
    for iteration in range(3):
        generator = torch.Generator().manual_seed(iteration)
        for p, w, v in zip(model.trained(), weights, velocity, strict=True):
            p.grad = torch.randn(p.shape, generator=generator)
            v.mul_(0.9).add_(p.grad + 1e-4 * w)
            w.sub_(0.03 * v)
        optimizer.step()
    for p, w in zip(model.trained(), weights, strict=True):
        torch.testing.assert_close(p.detach(), w)


def test_float16_keeps_to_float32_and_skips_overflows() -> None:
    """Gradients are scaled up and back; a scale that is too high costs a step and is halved."""
    plain, half = resnet_model(), resnet_model()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    metrics = [
        step(plain, sgd(plain, 0.01)),
        step(half, torch.optim.SGD(half.trained(), lr=0.01, momentum=0.9, fused=True), scaler=scaler),
    ]
    torch.testing.assert_close(metrics[0][0], metrics[1][0], rtol=0.02, atol=0.02)
    assert scaler.get_scale() == 2.0**10
    moved = [torch.cat([(a - b).flatten() for a, b in zip(m.trained(), resnet_model().trained(), strict=True)])
             for m in (plain, half)]  # fmt: skip
    assert torch.cosine_similarity(*moved, dim=0) > 0.98
    assert (moved[1].norm() / moved[0].norm()).item() == pytest.approx(1, abs=0.05)

    model = resnet_model()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**126)
    before = [p.detach().clone() for p in model.trained()]
    loss = step(model, sgd(model), scaler=scaler)[0]
    assert torch.isfinite(loss) and scaler.get_scale() == 2.0**125
    assert all(torch.equal(p, old) for p, old in zip(model.trained(), before, strict=True))
    assert model.queue_ptr.item() == 8  # the keys are as good as any


def test_bfloat16_runs_the_encoders_alone() -> None:
    for kind in (*KINDS, *V3_KINDS):
        full, half = any_model(kind), any_model(kind)
        losses = [step(full, sgd(full))[0], step(half, sgd(half), bf16=True)[0]]
        torch.testing.assert_close(*losses, rtol=0.1, atol=0.1)
        assert losses[0] != losses[1]
        assert all(p.dtype == torch.float32 for p in half.state_dict().values() if p.is_floating_point())


def spoil(model: nn.Module, name: str, value: float) -> None:
    model.state_dict()[name].view(-1)[0] = value


@pytest.mark.parametrize(
    ("kind", "name", "value", "found"),
    [
        ("moco", "encoder_q.layer1.0.bn1.weight", torch.nan, "encoder_q.layer1.0.bn1.weight"),
        ("moco", "encoder_q.layer3.0.conv2.weight", torch.inf, "encoder_q.layer3.0.conv2.weight"),
        ("moco", "encoder_q.layer3.0.conv2.weight", 3e38, "encoder_q.layer3.0.conv2 (its output)"),
        ("moco", "encoder_k.fc.2.bias", torch.nan, "encoder_k.fc.2.bias"),
        ("moco", "queue", torch.nan, "queue"),
        ("endtoend", "encoder_k.conv1.weight", torch.nan, "encoder_k.conv1.weight"),
        ("memorybank", "memory_bank", torch.inf, "memory_bank"),
        ("memorybank", "encoder_q.fc.0.weight", torch.nan, "encoder_q.fc.0.weight"),
        ("mocov3", "predictor.3.weight", torch.nan, "predictor.3.weight"),
        ("mocov3_vit", "base_encoder.cls_token", torch.nan, "base_encoder.cls_token"),
        ("mocov3_vit", "momentum_encoder.head.6.weight", torch.inf, "momentum_encoder.head.6.weight"),
    ],
)
def test_the_first_bad_layer_is_named(kind: str, name: str, value: float, found: str) -> None:
    model = any_model(kind)
    assert first_bad_layer(model, random_views(8), pixels=PIXELS) == ""
    spoil(model, name, value)
    if found.endswith("output)"):
        spoil(model, "encoder_q.layer3.0.bn1.weight", 1e4)
        model.state_dict()["encoder_q.layer3.0.conv2.weight"][:] = value
    before = {n: v.clone() for n, v in model.state_dict().items()}
    assert first_bad_layer(model, random_views(8), pixels=PIXELS) == found
    for n, v in model.state_dict().items():  # running statistics too
        torch.testing.assert_close(v, before[n], rtol=0, atol=0, equal_nan=True)
    assert not any(module._forward_hooks for module in model.modules())


def test_float16_overflow_is_found_under_float16() -> None:
    model = resnet_model()
    model.state_dict()["encoder_q.layer2.0.bn1.weight"][:] = (
        1e5  # finite in float32 and above float16's 65504
    )
    assert first_bad_layer(model, random_views(8), pixels=PIXELS) == ""
    found = first_bad_layer(model, random_views(8), pixels=PIXELS, amp=torch.float16)
    assert found == "encoder_q.layer2.0.bn1 (its output)"


def test_compiled_encoders_keep_their_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """MODEL.COMPILE with a backend that needs no C++ compiler: same step, same names."""
    compiled, inner = [], nn.Module.compile
    monkeypatch.setattr(
        nn.Module, "compile", lambda module: (compiled.append(module), inner(module, backend="eager"))
    )
    small = [
        "MODEL.ARCH", "resnet18", "MODEL.WIDTH", "0.125", "MOCO.K", "20", "SOLVER.IMS_PER_BATCH", "8",
        "MODEL.BN_GROUP_SIZE", "4",
    ]  # fmt: skip
    results = []
    for more in ([], ["MODEL.COMPILE", "True"]):
        cfg = config.load("pretrain/moco_v2_R50.yaml", small + more)
        model, optimizer, _ = build.build(cfg, CPU, images=30, decide=False)
        results.append((step(model, optimizer), model))
    assert compiled == list(results[1][1].children()) and len(compiled) == 2
    torch.testing.assert_close(results[0][0], results[1][0])
    assert list(results[0][1].state_dict()) == list(results[1][1].state_dict())
    states_close(results[0][1], results[1][1], 1e-4)
    assert first_bad_layer(results[1][1], random_views(8), pixels=PIXELS) == ""
    spoil(results[1][1], "encoder_q.layer2.0.conv1.weight", torch.nan)
    assert first_bad_layer(results[1][1], random_views(8), pixels=PIXELS) == "encoder_q.layer2.0.conv1.weight"


def test_metrics_are_named_and_finite() -> None:
    for kind in (*KINDS, *V3_KINDS):
        model = any_model(kind)
        metrics = step(model, sgd(model))
        assert len(metrics) == len(METRICS) and torch.isfinite(metrics).all()


def test_image_numbers_are_only_for_a_bank() -> None:
    torch.manual_seed(0)
    model = MoCo(tiny_encoder, dim=4, queue_length=8)
    small = tuple(views[:, :2, :2] for views in random_views(8))
    train_step(model, sgd(model), small, pixels=PIXELS)
    bank = resnet_model("memorybank")
    with pytest.raises(AssertionError, match="indices of the images"):
        train_step(bank, sgd(bank), random_views(8), pixels=PIXELS)
    train_step(bank, sgd(bank), random_views(8), pixels=PIXELS, images=random_numbers(8))
