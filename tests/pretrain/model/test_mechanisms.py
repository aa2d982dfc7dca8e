"""Loss, gradients and memory of the three mechanisms (He et al. Figure 2), compared with hand-written loops."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from pretrain.common import distributed
from pretrain.model import moco
from pretrain.model.contrast import Contrast, KeyInputs, Keys
from pretrain.model.mechanisms import EndToEnd, MemoryBank
from pretrain.model.moco import MoCo
from pretrain.train.step import METRICS
from tests.support.contrast_models import (
    BANK,
    DIM,
    KINDS,
    PIXELS,
    V3_KINDS,
    random_numbers,
    random_views,
    resnet_model,
    sgd,
    step,
    steps_of_every_kind,
    tiny_encoder,
)  # fmt: skip
from tests.support.scripts import server
from transfer.convert.recognise import read_source

ORDER = moco.permutation(8, groups=2, seed=0, step=0)


def by_hand(kind: str, model: Contrast, iteration: int = 0) -> tuple[torch.Tensor, ...]:
    """Return loss, queries and positives of a step on 8 images, with the gradients that the mechanism should have."""
    query, key = (PIXELS(view) for view in random_views(8, iteration))
    numbers = random_numbers(8, iteration).tolist()
    queries = F.normalize(model.encoder_q(query), dim=1)
    if kind == "memorybank":
        keys = [model.memory_bank[number] for number in numbers]
    else:
        with torch.set_grad_enabled(kind == "endtoend"):
            shuffled = F.normalize(model.encoder_k(key[ORDER]), dim=1)
        keys = [shuffled[ORDER.tolist().index(n)] for n in range(8)]
    loss = torch.zeros(())
    for n in range(8):
        if kind == "moco":
            negatives = list(model.queue.T)
        elif kind == "endtoend":
            negatives = [keys[other] for other in range(8) if other != n]
        else:
            drawn = model.draw(iteration).tolist()
            assert len(drawn) == 20
            negatives = [model.memory_bank[number] for number in drawn if number != numbers[n]]
        scores = torch.stack([queries[n] @ vector / 0.2 for vector in (keys[n], *negatives)])
        loss = loss - torch.log(scores[0].exp() / scores.exp().sum()) / 8  # Eqn. 1
    return loss, queries, torch.stack(keys)


@pytest.mark.parametrize("kind", KINDS)
def test_loss_and_gradients_equal_a_loop(kind: str) -> None:
    model, plain = resnet_model(kind), resnet_model(kind)
    start = resnet_model(kind)
    metrics = dict(zip(METRICS, step(model, sgd(model), order=ORDER), strict=True))
    loss, queries, keys = by_hand(kind, plain)
    loss.backward()
    torch.testing.assert_close(metrics["loss"], loss.detach())
    torch.testing.assert_close(metrics["positive_cosine"], (queries * keys).sum(1).mean().detach())
    found = sum(int((keys @ queries[n]).argmax() == n) for n in range(8))
    assert metrics["in_batch_accuracy"] == found / 8
    trained = {id(p) for p in model.trained()}
    for (name, ours), theirs in zip(model.named_parameters(), plain.parameters(), strict=True):
        before = start.get_parameter(name)
        assert (id(ours) in trained) == (kind == "endtoend" or name.startswith("encoder_q."))
        if id(ours) in trained:
            assert theirs.grad.abs().max() > 0, name
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-5)
            torch.testing.assert_close(ours, before - 0.1 * theirs.grad, rtol=1e-3, atol=1e-5)
        else:
            assert ours.grad is None and torch.equal(ours, before)


def test_negative_cosine_counts_what_the_loss_counts() -> None:
    """End-to-end: the mean over the other keys. Bank: the mean over the drawn vectors of other images."""
    for kind in ("endtoend", "memorybank"):
        model = resnet_model(kind)
        metrics = dict(zip(METRICS, step(model, sgd(model), order=ORDER), strict=True))
        model = resnet_model(kind)
        _, queries, keys = by_hand(kind, model)
        means = []
        for n in range(8):
            drawn = model.draw(0) if kind == "memorybank" else torch.arange(8)
            others = [
                int(d) for d in drawn if int(d) != (random_numbers(8)[n] if kind == "memorybank" else n)
            ]
            vectors = model.memory_bank if kind == "memorybank" else keys
            means.append(torch.stack([queries[n] @ vectors[d] for d in others]).mean())
        torch.testing.assert_close(metrics["negative_cosine"], torch.stack(means).mean().detach())


def test_logits_equal_a_loop() -> None:
    torch.manual_seed(0)
    model = MoCo(tiny_encoder, dim=4, queue_length=5, temperature=0.3)
    queries, keys = F.normalize(torch.randn(3, 4), dim=1), F.normalize(torch.randn(6, 4), dim=1)
    places = torch.tensor([1, 3, 5])  # of three queries in a batch of six
    logits = model.logits(queries, Keys(keys, model.queue), places)
    for n in range(3):
        wanted = [torch.dot(queries[n], keys[places[n]]) / 0.3]
        wanted += [torch.dot(queries[n], model.queue[:, slot]) / 0.3 for slot in range(5)]
        torch.testing.assert_close(logits[n], torch.stack(wanted))


@pytest.mark.parametrize("kind", KINDS)
def test_shuffling_is_undone(kind: str) -> None:
    """Every key is its image encoded within its shuffled group; a bank's keys do not depend on the order."""
    model = resnet_model(kind)
    _, views = random_views(8)
    numbers = random_numbers(8)
    keys = model.keys(KeyInputs(views, PIXELS, ORDER, numbers))
    if kind == "memorybank":
        assert torch.equal(keys.positive, model.memory_bank[numbers])
        return
    wanted = torch.empty(8, DIM)
    for group in range(2):
        members = ORDER[group::2]
        wanted[members] = F.normalize(model.encoder_k(PIXELS(views[members])), dim=1).detach()
    torch.testing.assert_close(keys.positive.detach(), wanted)


def test_bank_moves_the_seen_images_only() -> None:
    model = resnet_model("memorybank")
    optimizer = sgd(model, 0.01)
    for iteration in range(3):
        before = model.memory_bank.clone()
        _, queries, _ = by_hand("memorybank", model, iteration)
        step(model, optimizer, iteration)
        numbers = random_numbers(8, iteration).tolist()
        for number in range(BANK):
            wanted = before[number]
            if number in numbers:
                wanted = 0.5 * wanted + 0.5 * queries[numbers.index(number)].detach()
                wanted = wanted / wanted.square().sum().sqrt()
            torch.testing.assert_close(model.memory_bank[number], wanted)


def test_bank_momentum_and_double_images() -> None:
    """An image that is in a batch twice, because it replaces an unreadable one, takes its last query."""
    bank = MemoryBank(tiny_encoder, images=5, dim=4, negatives=3, momentum=0.8)
    before = bank.memory_bank.clone()
    queries = F.normalize(torch.randn(4, 4), dim=1)
    numbers = torch.tensor([2, 0, 2, 4])
    bank.after_step(Keys(before[numbers], before.T), queries, numbers)
    for number, query in ((0, queries[1]), (2, queries[2]), (4, queries[3])):
        wanted = 0.8 * before[number] + 0.2 * query
        torch.testing.assert_close(bank.memory_bank[number], wanted / wanted.norm())
    assert torch.equal(bank.memory_bank[[1, 3]], before[[1, 3]])


def test_draws_depend_on_seed_and_iteration_alone() -> None:
    def draws(seed: int) -> list[list[int]]:
        bank = MemoryBank(tiny_encoder, images=50, dim=4, negatives=4000, seed=seed)
        torch.manual_seed(seed)
        return [bank.draw(iteration).tolist() for iteration in (4, 5, 4)]

    first, second, again = draws(0)
    assert first == again != second and draws(1)[0] != first
    counts = torch.bincount(torch.tensor(first), minlength=50)  # 80 of each on average
    assert len(counts) == 50 and counts.min() > 40 and counts.max() < 130


def test_key_views_of_a_bank_are_not_looked_at() -> None:
    states = []
    for seed in (0, 1):
        model = resnet_model("memorybank")
        query, _ = random_views(8)
        _, views = random_views(8, seed)
        keys = model.keys(KeyInputs(views, PIXELS, images=random_numbers(8), iteration=2))
        states.append((model.logits(model.encode_queries(PIXELS(query)), keys, torch.arange(8)), model))
    assert torch.equal(states[0][0], states[1][0])
    assert [name for name, _ in states[0][1].named_children()] == ["encoder_q"]


def test_what_each_stores() -> None:
    own = {kind: set(resnet_model(kind).state_dict()) for kind in KINDS}
    outside = {kind: {name for name in own[kind] if not name.startswith("encoder_")} for kind in KINDS}
    assert outside == {"moco": {"queue", "queue_ptr"}, "endtoend": set(), "memorybank": {"memory_bank"}}
    bank = resnet_model("memorybank").memory_bank
    assert bank.shape == (BANK, DIM) and bank.dtype == torch.float32
    torch.testing.assert_close(bank.norm(dim=1), torch.ones(BANK))
    fresh = EndToEnd(tiny_encoder)
    assert all(torch.equal(*pair) for pair in zip(*(e.parameters() for e in fresh.children()), strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_transfer_finds_the_query_encoder(kind: str, tmp_path: Path) -> None:
    model = resnet_model(kind)
    step(model, sgd(model))
    state = {f"module.{name}": value for name, value in model.state_dict().items()}
    torch.save({"epoch": 1, "arch": "resnet18", "state_dict": state}, tmp_path / "checkpoint.pth.tar")
    source = read_source(tmp_path / "checkpoint.pth.tar")
    assert source.kind == "moco" and source.branch.endswith("encoder_q")
    for name, value in source.backbone.items():
        assert torch.equal(value, model.encoder_q.state_dict()[name]), name


def test_two_processes_equal_one(tmp_path: Path) -> None:
    """Losses, weights, running statistics, queue or bank after four steps; the gradients of the first and last."""
    alone = server().Process(target=steps_of_every_kind, args=(str(tmp_path),))
    alone.start()
    alone.join()
    distributed.spawn(steps_of_every_kind, 2, (str(tmp_path),))
    for kind in (*KINDS, *V3_KINDS):
        one, first, second = (torch.load(tmp_path / f"{kind}_{name}.pt") for name in ("1_0", "2_0", "2_1"))
        for name, value in first["state"].items():  # any process could write the checkpoint
            assert torch.equal(value, second["state"][name]), (kind, name)
        torch.testing.assert_close(one["metrics"], first["metrics"], rtol=1e-9, atol=1e-9)
        for when in ("first", "last"):
            for ours, theirs in zip(one[when], first[when], strict=True):
                assert (ours - theirs).norm() <= 1e-9 * ours.norm() + 1e-10, (kind, when)
        for name, value in one["state"].items():
            difference = (value - first["state"][name]).double().norm()
            assert difference <= 1e-9 * value.double().norm() + 1e-10, (kind, name)
