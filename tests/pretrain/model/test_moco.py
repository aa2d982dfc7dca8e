"""Queue, momentum encoder and shuffling, compared with hand-written loops and closed forms."""

import itertools
import random

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pretrain import config
from pretrain.model import moco
from pretrain.model.contrast import KeyInputs
from pretrain.model.encoders import ResNet
from pretrain.model.moco import MoCo
from pretrain.train.step import METRICS, train_step
from tests.support.contrast_models import PIXELS, encoder, random_views, resnet_model, sgd, step, tiny_encoder


def tiny(queue_length: int = 8, **options: float) -> MoCo:
    torch.manual_seed(0)
    return MoCo(tiny_encoder, dim=4, queue_length=queue_length, **options)


def test_starts_with_equal_encoders_and_unit_queue() -> None:
    model = resnet_model()
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
    for iteration in range(7):
        keys = torch.randn(batch, 4, generator=torch.Generator().manual_seed(iteration))
        model.enqueue(keys)
        for key in keys:  # one at a time, as in the definition of a ring buffer
            slots[place] = key
            place = (place + 1) % queue_length
        assert torch.equal(model.queue, torch.stack(slots, dim=1))
        assert model.queue_ptr.tolist() == [place]


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


def test_key_encoder_after_n_steps_in_closed_form() -> None:
    """k_n = m^n q_0 + (1 - m) sum_i m^(n-1-i) q_i, with q_i the query encoder before step i (from 0)."""
    model = resnet_model()
    optimizer = sgd(model, 0.01)
    passed = []
    for iteration in range(4):
        passed.append([p.detach().clone() for p in model.encoder_q.parameters()])
        step(model, optimizer, iteration)
    for index, key in enumerate(model.encoder_k.parameters()):
        wanted = 0.9**4 * passed[0][index]
        for i in range(4):
            wanted = wanted + 0.1 * 0.9 ** (3 - i) * passed[i][index]
        torch.testing.assert_close(key, wanted)


def test_buffers_of_the_key_encoder_are_its_own() -> None:
    model = resnet_model()
    model.encoder_q.bn1.running_mean.fill_(5)
    model.update_key_encoder()
    assert model.encoder_k.bn1.running_mean.abs().max() == 0


@pytest.mark.parametrize(("images", "groups"), [(4, 2), (8, 4), (16, 2), (256, 8)])
def test_no_key_group_is_a_query_group(images: int, groups: int) -> None:
    for iteration in range(50):
        order = moco.permutation(images, groups=groups, seed=1, step=iteration).tolist()
        assert sorted(order) == list(range(images))
        key_groups = [{order[p] for p in range(images) if p % groups == g} for g in range(groups)]
        query_groups = [{i for i in range(images) if i % groups == g} for g in range(groups)]
        assert all(a != b for a, b in itertools.product(key_groups, query_groups))
    again = moco.permutation(images, groups=groups, seed=1, step=49)
    assert again.tolist() == order
    if images > 8:
        assert moco.permutation(images, groups=groups, seed=2, step=49).tolist() != order


def test_unshuffle_restores_the_order() -> None:
    """For any number of groups and of images in them, any seed and step, and outputs of any shape."""
    chance = random.Random(0)
    for _ in range(200):
        groups, members = chance.randint(2, 9), chance.randint(2, 9)
        shape = [chance.randint(1, 4) for _ in range(chance.randint(0, 3))]
        batch = torch.arange(groups * members).view(-1, *[1] * len(shape)).expand(-1, *shape) + torch.rand(
            shape
        )
        order = moco.permutation(
            len(batch), groups=groups, seed=chance.randrange(2**63), step=chance.randrange(10**6)
        )
        shuffled = moco.shuffle(batch, order)
        assert not torch.equal(shuffled, batch), (groups, members, order)
        assert torch.equal(shuffled, torch.stack([batch[image] for image in order]))
        assert torch.equal(moco.unshuffle(shuffled, order), batch), (groups, members, order)


def test_keys_are_shuffled_where_it_matters() -> None:
    """He et al. Sec. 3.3: MoCo and the end-to-end mechanism shuffle, a memory bank does not need to."""
    for recipe, shuffles in [("moco_v1_R50", True), ("endtoend_R50", True), ("memorybank_R50", False)]:
        order = moco.key_order(config.load(f"pretrain/{recipe}.yaml"), 5)
        assert (order is not None) == shuffles
    cfg = config.load("pretrain/moco_v2_R50.yaml")
    wanted = moco.permutation(256, groups=8, seed=0, step=5)
    assert torch.equal(moco.key_order(cfg, 5), wanted)  # groups of 32
    for more in (["MOCO.SHUFFLE", "False"], ["MODEL.NORM", "SyncBN"], ["MODEL.NORM", "BN"]):
        assert moco.key_order(config.load("pretrain/moco_v2_R50.yaml", more), 5) is None


def test_learns_to_tell_images_apart() -> None:
    """Shifted crops of random pictures: the positive is found among 32 keys far more often than by chance."""
    torch.manual_seed(0)

    def wider() -> ResNet:
        return encoder(32, 16, width=0.25, dim=32)

    model = MoCo(wider, dim=32, queue_length=128, momentum=0.9)
    optimizer = sgd(model, 0.01)
    pictures = F.interpolate(255 * torch.rand(256, 3, 4, 4), size=40, mode="bicubic").clamp(0, 255)
    pictures = pictures.permute(0, 2, 3, 1).to(torch.uint8)
    found = []
    for iteration in range(60):
        batch = pictures[torch.randperm(256)[:32]]
        corners = torch.randint(0, 9, (2, 2)).tolist()
        query, key = (batch[:, top : top + 32, left : left + 32] for top, left in corners)
        order = moco.permutation(32, groups=2, seed=0, step=iteration)
        metrics = train_step(model, optimizer, (query, key), pixels=PIXELS, order=order)
        found.append(metrics[METRICS.index("in_batch_accuracy")].item())
    assert sum(found[-20:]) / 20 > 5 / 32


def test_no_gradient_reaches_the_key_encoder() -> None:
    model = resnet_model()
    step(model, sgd(model))
    assert all(p.grad is None and not p.requires_grad for p in model.encoder_k.parameters())
    assert all(p.grad is not None for p in model.encoder_q.parameters())
    assert len(model.trained()) == len(list(model.encoder_q.parameters()))


def test_shuffled_views_alone_change_the_keys() -> None:
    """The key of an image depends on the other images of its group, and thus on the order."""
    _, views = random_views(8)
    order = moco.permutation(8, groups=2, seed=0, step=0)
    one, two = (resnet_model().keys(KeyInputs(views, PIXELS, o)).positive for o in (None, order))
    assert (one - two).abs().max() > 1e-3
