"""MoCo v3: loss and gradients by hand and in a loop, chunks, what is frozen, and the layout of its state."""

import contextlib
import copy
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pretrain.model import symmetric
from pretrain.model.moco_v3 import MoCoV3, mlp
from pretrain.model.norm import SyncBatchNorm
from pretrain.train.step import METRICS
from tests.support.contrast_models import (
    PIXELS,
    V3_KINDS,
    random_views,
    sgd,
    step,
    v3_config,
    v3_model,
)  # fmt: skip
from transfer.convert.recognise import read_source

OFF = torch.amp.GradScaler("cpu", enabled=False)


def test_two_images_by_hand() -> None:
    """Linear encoders that are multiples of the identity, unit vectors as images, no predictor."""
    model = MoCoV3(
        lambda: nn.Linear(2, 2, bias=False).double(), nn.Identity(), momentum=0.75, temperature=0.5
    )
    with torch.no_grad():
        model.base_encoder.weight.copy_(2 * torch.eye(2))
        model.momentum_encoder.weight.copy_(4 * torch.eye(2))
    model.before_step()
    assert torch.equal(model.momentum_encoder.weight, (0.75 * 4 + 0.25 * 2) * torch.eye(2).double())
    first = torch.eye(2, dtype=torch.float64)
    second = torch.tensor([[0.6, 0.8], [0.8, -0.6]], dtype=torch.float64)
    one, two = symmetric.backward(model, (first, second), precision=contextlib.nullcontext, scaler=OFF)
    # Cosines of q1 with k2, and of q2 with k1: the positives have 0.6 and -0.6, the negatives 0.8 and 0.8.
    cosines = torch.tensor([[0.6, 0.8], [0.8, -0.6]], dtype=torch.float64)
    torch.testing.assert_close(one.cosines, cosines)
    torch.testing.assert_close(two.cosines, cosines)
    # -log(e^(p/T) / (e^(p/T) + e^(n/T))) = log(1 + e^((n - p) / T)); 2 T = 1; the mean over two images
    half = (math.log(1 + math.exp(0.2 / 0.5)) + math.log(1 + math.exp(1.4 / 0.5))) / 2
    assert one.loss.item() == pytest.approx(half) and two.loss.item() == pytest.approx(half)

    # Gradient of the loss with respect to a unit query: 2 T / T * mean of share * (negative - positive key); of it,
    # the part perpendicular to the query passes the normalisation, divided by the length 2 of W x; then times x.
    shares = [1 / (1 + math.exp(-gap / 0.5)) for gap in (0.2, 1.4)]
    wanted = torch.zeros(2, 2).double()
    for queries, keys in ((first, second), (second, first)):
        for n, other in ((0, 1), (1, 0)):
            pull = 2 * shares[n] * (keys[other] - keys[n]) / 2
            across = pull - (pull @ queries[n]) * queries[n]
            wanted += torch.outer(across / 2, queries[n])
    torch.testing.assert_close(model.base_encoder.weight.grad, wanted)
    assert model.momentum_encoder.weight.grad is None


def by_hand(model: MoCoV3) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss and queries of a step on 8 images, in plain torch and a loop over pairs of images."""
    views = [PIXELS(view) for view in random_views(8)]
    slow = copy.deepcopy(model.momentum_encoder)
    for k, q in zip(slow.parameters(), model.base_encoder.parameters(), strict=True):
        k.data = 0.99 * k.data + 0.01 * q.data
    with torch.no_grad():
        keys = [F.normalize(slow(view), dim=1) for view in views]
    queries = [F.normalize(model.predictor(model.base_encoder(view)), dim=1) for view in views]
    loss = torch.zeros(())
    for q, k in ((queries[0], keys[1]), (queries[1], keys[0])):
        for n in range(8):
            scores = torch.stack([q[n] @ k[other] / 0.2 for other in range(8)])
            loss = loss - 2 * 0.2 * torch.log_softmax(scores, 0)[n] / 8
    return loss, torch.cat(queries)


@pytest.mark.parametrize("kind", V3_KINDS)
def test_loss_and_gradients_equal_a_loop(kind: str) -> None:
    model, plain = v3_model(kind), v3_model(kind)
    metrics = dict(zip(METRICS, step(model, sgd(model, 0.0)), strict=True))
    loss, queries = by_hand(plain)
    loss.backward()
    torch.testing.assert_close(metrics["loss"], loss.detach(), rtol=1e-4, atol=1e-4)
    assert metrics["accuracy"] == metrics["in_batch_accuracy"]
    assert len(queries) == 16
    trained = {id(p) for p in model.trained()}
    for (name, ours), theirs in zip(model.named_parameters(), plain.parameters(), strict=True):
        if id(ours) in trained:
            assert (ours.grad - theirs.grad).norm() <= 1e-3 * theirs.grad.norm() + 1e-5, name
        else:
            assert ours.grad is None and (
                name.startswith("momentum_encoder.") or "patch_embed" in name or "pos_embed" in name
            )


@pytest.mark.parametrize("chunk", [1, 3, 8, 100])
def test_chunks_change_nothing(chunk: int) -> None:
    """Float64: loss, queries, gradients and running statistics of the plain step, within 1e-10 of the largest value."""
    images = tuple(torch.randn(8, 3, 64, 64, dtype=torch.float64) for _ in range(2))
    results = []
    for size in (0, chunk):
        model = v3_model("mocov3_vit").double()
        halves = symmetric.backward(model, images, precision=contextlib.nullcontext, scaler=OFF, chunk=size)
        gradients = [p.grad for p in model.trained()]
        state = [value for value in model.state_dict().values() if value.is_floating_point()]
        results.append([*halves[0][:3], *halves[1][:3], *gradients, *state])
    assert len(results[0]) == len(results[1])
    for plain, chunked in zip(*results, strict=True):
        assert (plain - chunked).abs().max() <= 1e-10 * plain.abs().max().clamp(min=1)
    assert any(value.abs().max() > 1e-3 for value in results[0][6:])


def test_a_vit_keeps_its_patch_embedding_and_positions() -> None:
    model = v3_model("mocov3_vit")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.AdamW(model.trained(), lr=0.01, weight_decay=0.1)
    step(model, optimizer)
    frozen = {"patch_embed.proj.weight", "patch_embed.proj.bias", "pos_embed"}
    for name, p in model.base_encoder.named_parameters():
        unchanged = torch.equal(p, before[f"base_encoder.{name}"])
        assert unchanged == (name in frozen), name


def test_running_statistics_are_those_of_each_encoder() -> None:
    """The momentum encoder's are not averaged with the base encoder's."""
    model = v3_model("mocov3")
    model.momentum = 1.0
    slow = copy.deepcopy(model.momentum_encoder)
    step(model, sgd(model))
    for view in random_views(8):
        slow(PIXELS(view))
    for name, value in slow.state_dict().items():
        torch.testing.assert_close(model.momentum_encoder.state_dict()[name], value)


def test_heads_are_the_papers() -> None:
    """Published shapes, and whether a norm follows the last layer: projector and predictor of both architectures."""
    layers = mlp((2048, 4096, 256), SyncBatchNorm, last_norm=False)
    assert [type(layer) for layer in layers] == [nn.Linear, SyncBatchNorm, nn.ReLU, nn.Linear]
    vit, resnet = v3_model("mocov3_vit"), v3_model("mocov3")
    for head, linear, norms in [
        (resnet.base_encoder.fc, 2, 2), (resnet.predictor, 2, 1), (vit.base_encoder.head, 3, 3), (vit.predictor, 2, 2)
    ]:  # fmt: skip
        kinds = [layer for layer in head if isinstance(layer, nn.Linear)]
        batch_norms = [layer for layer in head if isinstance(layer, SyncBatchNorm)]
        assert (len(kinds), len(batch_norms)) == (linear, norms)
        assert all(layer.bias is None for layer in kinds)
        assert [norm.affine for norm in batch_norms] == [True] * (linear - 1) + [False] * (norms - linear + 1)
        assert kinds[-1].out_features == 16 and all(layer.out_features == 32 for layer in kinds[:-1])


def test_names_of_the_public_files() -> None:
    names = {kind: set(v3_model(kind).state_dict()) for kind in V3_KINDS}
    for encoder in ("base_encoder", "momentum_encoder"):
        assert {
            f"{encoder}.{n}" for n in ("conv1.weight", "fc.0.weight", "fc.1.running_mean", "fc.3.weight")
        } <= names["mocov3"]
        assert f"{encoder}.fc.4.weight" not in names["mocov3"]
        assert {
            f"{encoder}.{n}"
            for n in ("cls_token", "pos_embed", "norm.bias", "head.0.weight", "head.7.running_var")
        } <= names["mocov3_vit"]
    assert "predictor.4.running_var" in names["mocov3_vit"] - names["mocov3"]
    assert not any(n.startswith("encoder_") or "queue" in n for kind in names.values() for n in kind)


def test_blocks_of_a_resnet_start_as_the_identity() -> None:
    from pretrain.model import build, norm

    cfg = v3_config("mocov3")
    encoder = build.encoder_maker(cfg, norm.norm_layer(cfg, torch.device("cpu")))()
    assert not any(block.bn2.weight.any() for block in encoder.layer3)
    assert all(block.bn1.weight.all() for block in encoder.layer3)


def test_transfer_finds_the_base_encoder(tmp_path: Path) -> None:
    model = v3_model("mocov3")
    state = {f"module.{name}": value for name, value in model.state_dict().items()}
    torch.save({"epoch": 1, "arch": "resnet18", "state_dict": state}, tmp_path / "checkpoint.pth.tar")
    source = read_source(tmp_path / "checkpoint.pth.tar")
    assert source.kind == "mocov3" and source.branch.endswith("base_encoder")
    for name, value in source.backbone.items():
        assert torch.equal(value, model.base_encoder.state_dict()[name]), name
