"""Queue, momentum encoder, logits and shuffling, against hand-written loops and closed forms."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pretrain import memory, moco
from pretrain.encoders import ResNet, architecture, projection_head
from pretrain.moco import MoCo
from pretrain.norm import GroupBatchNorm2d
from pretrain.step import METRICS, NonFiniteLoss, Pixels, train_step


def tiny_encoder() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 6), nn.ReLU(), nn.Linear(6, 4))


def tiny(queue_length: int = 8, **options: float) -> MoCo:
    torch.manual_seed(0)
    return MoCo(tiny_encoder, dim=4, queue_length=queue_length, **options)


def resnet_moco(group_size: int = 4) -> MoCo:
    torch.manual_seed(0)
    shape = architecture("resnet18", 0.125)

    def encoder() -> ResNet:
        head = projection_head("mlp", shape.feature_channels, 16)
        return ResNet(shape, head=head, norm_layer=lambda c: GroupBatchNorm2d(c, group_size=group_size))

    return MoCo(encoder, dim=16, queue_length=20, momentum=0.9)


def random_views(images: int, seed: int = 0, *, size: int = 32) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    query, key = (torch.randint(0, 256, (images, size, size, 3), generator=generator) for _ in range(2))
    return query.to(torch.uint8), key.to(torch.uint8)


PIXELS = Pixels([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


def test_starts_with_equal_encoders_and_unit_queue() -> None:
    model = resnet_moco()
    query, key = model.encoder_q.state_dict(), model.encoder_k.state_dict()
    assert query.keys() == key.keys() and "fc.2.weight" in query
    assert all(torch.equal(query[name], key[name]) for name in query)
    assert not {p.data_ptr() for p in model.encoder_q.parameters()} & {
        p.data_ptr() for p in model.encoder_k.parameters()
    }
    torch.testing.assert_close(model.queue.norm(dim=0), torch.ones(20))
    assert {"queue", "queue_ptr"} <= model.state_dict().keys()


@pytest.mark.parametrize("queue_length", [1, 5, 8])
@pytest.mark.parametrize("batch", [1, 3, 5, 8, 13])
def test_queue_is_circular_for_any_batch(queue_length: int, batch: int) -> None:
    model = tiny(queue_length)
    slots = [model.queue[:, n].clone() for n in range(queue_length)]
    place = 0
    for step in range(7):
        keys = torch.randn(batch, 4, generator=torch.Generator().manual_seed(step))
        model.enqueue(keys)
        for key in keys:  # one by one, as a ring is defined
            slots[place] = key
            place = (place + 1) % queue_length
        assert torch.equal(model.queue, torch.stack(slots, dim=1))
        assert model.queue_ptr.tolist() == [place]


def test_logits_equal_a_loop() -> None:
    model = tiny(5, temperature=0.3)
    queries, keys = (F.normalize(torch.randn(3, 4), dim=1) for _ in range(2))
    logits = model.logits(queries, keys)
    for n in range(3):
        wanted = [torch.dot(queries[n], keys[n]) / 0.3]
        wanted += [torch.dot(queries[n], model.queue[:, slot]) / 0.3 for slot in range(5)]
        torch.testing.assert_close(logits[n], torch.stack(wanted))


def test_key_encoder_follows_in_closed_form() -> None:
    model = tiny(momentum=0.9)
    start = [p.clone() for p in model.encoder_k.parameters()]
    for p in model.encoder_q.parameters():
        nn.init.normal_(p)
    for _ in range(7):
        model.update_key_encoder()
    pairs = zip(start, model.encoder_q.parameters(), model.encoder_k.parameters(), strict=True)
    for old, query, key in pairs:
        torch.testing.assert_close(key, 0.9**7 * old + (1 - 0.9**7) * query)


def test_buffers_of_the_key_encoder_are_its_own() -> None:
    model = resnet_moco()
    model.encoder_q.bn1.running_mean.fill_(5)
    model.update_key_encoder()
    assert model.encoder_k.bn1.running_mean.abs().max() == 0


@pytest.mark.parametrize(("images", "groups"), [(4, 2), (8, 4), (16, 2), (256, 8)])
def test_no_key_group_is_a_query_group(images: int, groups: int) -> None:
    for step in range(50):
        order = moco.permutation(images, groups=groups, seed=1, step=step).tolist()
        assert sorted(order) == list(range(images))
        key_groups = [{order[p] for p in range(images) if p % groups == g} for g in range(groups)]
        query_groups = [{i for i in range(images) if i % groups == g} for g in range(groups)]
        assert all(a != b for a, b in itertools.product(key_groups, query_groups))
    again = moco.permutation(images, groups=groups, seed=1, step=49)
    assert again.tolist() == order
    if images > 8:
        assert moco.permutation(images, groups=groups, seed=2, step=49).tolist() != order


def test_unshuffle_restores_the_order() -> None:
    batch = torch.arange(8.0)[:, None]
    order = moco.permutation(8, groups=2, seed=0, step=0)
    shuffled = moco.shuffle(batch, order)
    assert not torch.equal(shuffled, batch)
    assert torch.equal(moco.unshuffle(shuffled, order), batch)


def test_shuffling_changes_the_statistics_of_keys_only() -> None:
    """Each key is normalised with the images of its shuffled group, each query with its own neighbours."""
    model = resnet_moco()
    _, key_images = random_views(8)
    order = moco.permutation(8, groups=2, seed=0, step=0)
    keys = moco.unshuffle(model.encode_keys(PIXELS(moco.shuffle(key_images, order))), order)
    wanted = torch.empty_like(keys)
    for group in range(2):
        members = order[group::2]
        wanted[members] = model.encode_keys(PIXELS(key_images[members]))
    torch.testing.assert_close(keys, wanted)


def test_step_equals_algorithm_1_by_hand() -> None:
    model, by_hand = resnet_moco(), resnet_moco()
    optimizer = torch.optim.SGD(model.encoder_q.parameters(), lr=0.1, momentum=0.9)
    views = random_views(8)
    order = moco.permutation(8, groups=2, seed=0, step=0)
    metrics = dict(zip(METRICS, train_step(model, optimizer, views, pixels=PIXELS, order=order), strict=True))

    query, key = (PIXELS(view) for view in views)
    queries = F.normalize(by_hand.encoder_q(query))
    with torch.no_grad():
        keys = torch.empty(8, 16)
        keys[order] = F.normalize(by_hand.encoder_k(key[order]))
    loss, hits, in_batch = torch.zeros(()), 0, 0
    for n in range(8):
        scores = torch.cat([(queries[n] @ keys[n])[None], queries[n] @ by_hand.queue]) / 0.2
        loss = loss - torch.log_softmax(scores, 0)[0] / 8
        hits += int(scores.argmax() == 0)
        in_batch += int((keys @ queries[n]).argmax() == n)
    loss.backward()
    torch.testing.assert_close(metrics["loss"], loss.detach())
    assert metrics["accuracy"] == hits / 8 and metrics["in_batch_accuracy"] == in_batch / 8
    torch.testing.assert_close(metrics["positive_cosine"], (queries * keys).sum(1).mean().detach())
    for ours, theirs in zip(model.encoder_q.parameters(), by_hand.encoder_q.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(ours, theirs - 0.1 * theirs.grad, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model.queue[:, :8], keys.T)


def test_no_gradient_reaches_the_key_encoder() -> None:
    model = resnet_moco()
    optimizer = torch.optim.SGD(model.encoder_q.parameters(), lr=0.1)
    train_step(model, optimizer, random_views(8), pixels=PIXELS)
    assert all(p.grad is None and not p.requires_grad for p in model.encoder_k.parameters())
    assert all(p.grad is not None for p in model.encoder_q.parameters())


def test_pieces_change_nothing() -> None:
    """Queries in pieces of whole groups: same gradients and running statistics as in one pass."""
    whole, pieces = resnet_moco(), resnet_moco()
    results = []
    for model, parts in ((whole, 1), (pieces, 2)):
        optimizer = torch.optim.SGD(model.encoder_q.parameters(), lr=0.01)
        for step in range(2):
            views = random_views(16, step, size=64)
            results.append(train_step(model, optimizer, views, pixels=PIXELS, parts=parts))
    torch.testing.assert_close(results[1], results[3], rtol=1e-4, atol=1e-5)
    other = pieces.state_dict()
    for name, value in whole.state_dict().items():
        difference = (value - other[name]).float().norm()
        assert difference <= 1e-3 * value.float().norm() + 1e-4, name
    for ours, theirs in zip(whole.encoder_q.parameters(), pieces.encoder_q.parameters(), strict=True):
        assert (ours.grad - theirs.grad).norm() <= 0.02 * ours.grad.norm() + 1e-6


def test_stops_before_the_optimizer_when_the_loss_is_not_finite() -> None:
    model = resnet_moco()
    optimizer = torch.optim.SGD(model.encoder_q.parameters(), lr=0.1)
    with torch.no_grad():
        model.queue[0, 0] = torch.nan
    before = {name: p.clone() for name, p in model.encoder_q.named_parameters()}
    with pytest.raises(NonFiniteLoss):
        train_step(model, optimizer, random_views(8), pixels=PIXELS)
    assert all(torch.equal(p, before[name]) for name, p in model.encoder_q.named_parameters())
    assert model.queue_ptr.item() == 0


def test_learns_to_tell_images_apart() -> None:
    """Shifted crops of random pictures: the positive is found among 32 keys far more often than by chance."""
    torch.manual_seed(0)
    shape = architecture("resnet18", 0.25)

    def encoder() -> ResNet:
        head = projection_head("mlp", shape.feature_channels, 32)
        return ResNet(shape, head=head, norm_layer=lambda c: GroupBatchNorm2d(c, group_size=16))

    model = MoCo(encoder, dim=32, queue_length=128, momentum=0.9)
    optimizer = torch.optim.SGD(model.encoder_q.parameters(), lr=0.01, momentum=0.9)
    pictures = F.interpolate(255 * torch.rand(256, 3, 4, 4), size=40, mode="bicubic").clamp(0, 255)
    pictures = pictures.permute(0, 2, 3, 1).to(torch.uint8)
    found = []
    for step in range(60):
        batch = pictures[torch.randperm(256)[:32]]
        corners = torch.randint(0, 9, (2, 2)).tolist()
        query, key = (batch[:, top : top + 32, left : left + 32] for top, left in corners)
        order = moco.permutation(32, groups=2, seed=0, step=step)
        metrics = train_step(model, optimizer, (query, key), pixels=PIXELS, order=order)
        found.append(metrics[METRICS.index("in_batch_accuracy")].item())
    assert sum(found[-20:]) / 20 > 5 / 32


def test_recomputed_blocks_change_nothing() -> None:
    """Same gradients and running statistics with blocks that are computed twice."""
    plain, frugal = resnet_moco(), resnet_moco()
    memory.recompute_blocks(frugal.encoder_q)
    for model in (plain, frugal):
        optimizer = torch.optim.SGD(model.encoder_q.parameters(), lr=0.01)
        for step in range(2):
            train_step(model, optimizer, random_views(8, step), pixels=PIXELS)
    other = frugal.state_dict()
    assert plain.state_dict().keys() == other.keys()
    assert all(torch.equal(value, other[name]) for name, value in plain.state_dict().items())
