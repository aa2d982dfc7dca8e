"""Batch norm over groups and over processes, compared with plain batch norm on the same images."""

import itertools
import re
from pathlib import Path

import pytest
import torch
from torch import nn

from pretrain import config
from pretrain.common import distributed
from pretrain.common.errors import UserError
from pretrain.config_checks import validate
from pretrain.model import build, norm
from pretrain.model.norm import GroupBatchNorm2d, SyncBatchNorm, convert_sync_batchnorm, in_groups


def random_layer(layer: nn.BatchNorm2d) -> nn.BatchNorm2d:
    torch.manual_seed(1)
    nn.init.uniform_(layer.weight, 0.5, 1.5)
    nn.init.normal_(layer.bias)
    return layer


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_groups_equal_separate_layers(memory_format: torch.memory_format) -> None:
    layer = random_layer(GroupBatchNorm2d(5, group_size=4)).double()
    images = (3 * torch.randn(12, 5, 3, 2) + 7).double().to(memory_format=memory_format).requires_grad_()
    output = in_groups(layer, images, 4)
    upstream = torch.randn_like(output)
    (output * upstream).sum().backward()

    wanted, wanted_grad = torch.empty_like(output), torch.zeros_like(images)
    means, variances, weight_grad = [], [], torch.zeros(5).double()
    for group in range(3):
        plain = nn.BatchNorm2d(5, momentum=1.0).double()
        plain.load_state_dict({**layer.state_dict(), "running_mean": torch.zeros(5)})
        part = images.detach()[group::3].clone().requires_grad_()  # image j is in group j mod 3
        result = plain(part)
        (result * upstream[group::3]).sum().backward()
        wanted[group::3] = result.detach()
        wanted_grad[group::3] = part.grad
        weight_grad += plain.weight.grad
        means.append(plain.running_mean)
        variances.append(plain.running_var)
    torch.testing.assert_close(output, wanted)
    torch.testing.assert_close(images.grad, wanted_grad)
    torch.testing.assert_close(layer.weight.grad, weight_grad)
    torch.testing.assert_close(layer.running_mean, 0.1 * torch.stack(means).mean(0))
    torch.testing.assert_close(layer.running_var, 0.9 + 0.1 * torch.stack(variances).mean(0))
    assert layer.num_batches_tracked == 1


def test_groups_keep_the_memory_format() -> None:
    layer = GroupBatchNorm2d(5, group_size=4)
    images = torch.randn(12, 5, 3, 2).to(memory_format=torch.channels_last)
    seen = []
    in_groups(lambda x: seen.append(x) or layer(x), images, 4)
    for tensor in (seen[0], layer(seen[0])):
        assert tensor.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("channels_last", [False, True])
def test_encoder_normalises_every_kth_image_together(channels_last: bool) -> None:
    """Images 0, 2, 4 and 1, 3, 5 are the groups: each depends on its own images and not on the other group's."""
    cfg = config.load("pretrain/moco_v2_R50.yaml", [
        "MODEL.ARCH", "resnet18", "MODEL.WIDTH", "0.125", "SOLVER.IMS_PER_BATCH", "6", "MODEL.BN_GROUP_SIZE", "3",
    ])  # fmt: skip
    torch.manual_seed(0)
    encoder = build.encoder_maker(cfg, norm.norm_layer(cfg, torch.device("cpu")))()
    images = torch.randn(6, 3, 32, 32)
    if channels_last:
        images = images.to(memory_format=torch.channels_last)
    first = encoder(images)
    others = images.clone()
    others[1::2] = torch.randn(3, 3, 32, 32)
    second = encoder(others)
    torch.testing.assert_close(first[0::2], second[0::2])
    assert not torch.isclose(first[1::2], second[1::2]).any(dim=1).all()
    alone = encoder(images[0::2])  # one group is plain batch norm
    torch.testing.assert_close(first[0::2], alone, rtol=1e-4, atol=1e-5)


def test_one_group_and_evaluation_are_plain() -> None:
    images = torch.randn(8, 5, 3, 3)
    grouped, plain = random_layer(GroupBatchNorm2d(5, group_size=8)), random_layer(nn.BatchNorm2d(5))
    assert torch.equal(grouped(images), plain(images))
    assert torch.equal(grouped.running_var, plain.running_var)
    assert torch.equal(grouped.eval()(images[:3]), plain.eval()(images[:3]))


def test_sync_with_one_process_is_plain() -> None:
    images = torch.randn(8, 5, 3, 3)
    ours, plain = random_layer(SyncBatchNorm(5)), random_layer(nn.BatchNorm2d(5))
    assert torch.equal(ours(images), plain(images))
    assert torch.equal(ours.running_mean, plain.running_mean)


# For each of two batches: the first image of either process, and the end. The second batch is split unevenly.
SHARES = ((0, 4, 8), (0, 1, 7))


def images_with_offset(step: int) -> torch.Tensor:
    """Return images with channel means far larger than their spread, where plain sums of squares fail."""
    generator = torch.Generator().manual_seed(step)
    images = torch.randn(SHARES[step][-1], 4, 3, 3, generator=generator)
    return images + torch.tensor([0.0, 10.0, 300.0, -1000.0])[:, None, None]


def upstream(step: int) -> torch.Tensor:
    return torch.randn(SHARES[step][-1], 4, 3, 3, generator=torch.Generator().manual_seed(10 + step))


def run_layer(layer: nn.Module, step: int, share: slice, dtype: torch.dtype, form: torch.memory_format):
    images = images_with_offset(step)[share].to(dtype).contiguous(memory_format=form).requires_grad_()
    layer.zero_grad()
    output = layer(images)
    (output * upstream(step)[share]).sum().backward()
    statistics = [layer.running_mean.clone(), layer.running_var.clone()]
    return [output.detach(), images.grad], [layer.weight.grad, layer.bias.grad], statistics


def sync_worker(folder: str, dtype: torch.dtype, form: torch.memory_format) -> None:
    distributed.init_from_env(torch.device("cpu"))
    layer = random_layer(SyncBatchNorm(4)).to(dtype)
    found = []
    for step, starts in enumerate(SHARES):
        share = slice(starts[distributed.rank()], starts[distributed.rank() + 1])
        found.append(run_layer(layer, step, share, dtype, form))
    evaluated = layer.eval()(images_with_offset(0).to(dtype)).detach()
    torch.save([found, evaluated], Path(folder) / f"{distributed.rank()}.pt")


@pytest.mark.parametrize(
    ("dtype", "form", "tolerance"),
    [(torch.float64, torch.channels_last, 1e-9), (torch.float32, torch.contiguous_format, 2e-3)],
)
def test_sync_over_two_processes_equals_plain_on_all_images(
    tmp_path: Path, dtype: torch.dtype, form: torch.memory_format, tolerance: float
) -> None:
    """Outputs, gradients and running statistics of two batches, 4 + 4 and 1 + 6 images."""
    distributed.spawn(sync_worker, 2, (str(tmp_path), dtype, form))
    (first, evaluated), (second, evaluated_too) = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    plain = random_layer(nn.BatchNorm2d(4)).double()

    def compare(ours: torch.Tensor, wanted: torch.Tensor) -> None:
        torch.testing.assert_close(ours.double(), wanted.detach(), rtol=tolerance, atol=tolerance)

    for step in range(2):
        wanted = run_layer(plain, step, slice(None), torch.float64, torch.contiguous_format)
        values, parameters, statistics = zip(first[step], second[step], strict=True)
        for ours, theirs, whole in zip(*values, wanted[0], strict=True):
            compare(torch.cat([ours, theirs]), whole)
        for ours, theirs, whole in zip(*parameters, wanted[1], strict=True):
            compare(ours + theirs, whole)
        for own in statistics:
            for ours, whole in zip(own, wanted[2], strict=True):
                compare(ours, whole)
    wanted_evaluation = plain.eval()(images_with_offset(0).double())
    for ours in (evaluated, evaluated_too):
        compare(ours, wanted_evaluation)


def test_convert_keeps_parameters_and_buffers() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sequential(nn.SyncBatchNorm(4, eps=1e-3, momentum=0.2)))
    old = model[1][0]
    convert_sync_batchnorm(model)
    new = model[1][0]
    assert isinstance(new, SyncBatchNorm) and isinstance(new, nn.BatchNorm2d)
    assert new.weight is old.weight and new.running_var is old.running_var
    assert (new.eps, new.momentum) == (1e-3, 0.2)
    model(torch.randn(2, 3, 4, 4)).sum().backward()


def test_parts_hold_whole_groups_and_few_pixels() -> None:
    cfg = config.defaults()
    cpu = torch.device("cpu")
    assert norm.parts(cfg, cpu) == 8  # 256 images of 224 pixels in groups of 32: one group at a time
    assert norm.parts(cfg, torch.device("cuda")) == 1
    cfg.INPUT.SIZE = 64
    assert norm.parts(cfg, cpu) == 1
    cfg.MODEL.NORM, cfg.INPUT.SIZE = "SyncBN", 224
    assert norm.parts(cfg, cpu) == 1


def group_worker(folder: str) -> None:
    distributed.init_from_env(torch.device("cpu"))
    cfg = config.defaults()
    cfg.SOLVER.IMS_PER_BATCH, cfg.MODEL.BN_GROUP_SIZE = 8, 4  # four processes of two images: two groups
    layer = norm.norm_layer(cfg, torch.device("cpu"))(4)
    total = torch.arange(8 * 4 * 2 * 2, dtype=torch.float32).view(8, 4, 2, 2).sin()
    output = distributed.all_gather_interleaved(layer(distributed.local_part(total)).detach())
    if distributed.is_main():
        wanted = in_groups(GroupBatchNorm2d(4, group_size=4), total, 4)
        torch.save({"output": output, "wanted": wanted.detach()}, folder)


@pytest.mark.slow
def test_a_group_may_span_processes(tmp_path: Path) -> None:
    distributed.spawn(group_worker, 4, (str(tmp_path / "result.pt"),))
    result = torch.load(tmp_path / "result.pt")
    torch.testing.assert_close(result["output"], result["wanted"])


@pytest.mark.parametrize(
    ("kind", "batch", "size", "processes", "advice"),
    [
        ("ShuffleBN", 32, 32, 1, "at least two groups .* use MODEL.BN_GROUP_SIZE 16"),
        ("ShuffleBN", 32, 64, 1, "at least two groups .* use MODEL.BN_GROUP_SIZE 16"),
        ("ShuffleBN", 32, 12, 1, "does not fit 32 images .* use MODEL.BN_GROUP_SIZE 8"),
        ("ShuffleBN", 12, 3, 6, "does not fit 2 images on each of 6 .* use MODEL.BN_GROUP_SIZE 2"),
        ("ShuffleBN", 32, 1, 1, "2 or more images in a group; use MODEL.BN_GROUP_SIZE 2"),
        ("ShuffleBN", 3, 2, 1, "does not divide into groups.* use SOLVER.IMS_PER_BATCH 4 with MODEL.BN_GROUP_SIZE 2"),
        ("ShuffleBN", 7, 4, 1, "use SOLVER.IMS_PER_BATCH 8 with MODEL.BN_GROUP_SIZE 4, or MODEL.NORM SyncBN"),
        ("ShuffleBN", 3, 2, 3, "use SOLVER.IMS_PER_BATCH 6 with MODEL.BN_GROUP_SIZE 2"),
        ("ShuffleBN", 30, 15, 4, "into 4 processes: use SOLVER.IMS_PER_BATCH 28 with MODEL.BN_GROUP_SIZE 14"),
        ("ShuffleBN", 4, 2, 3, "into 3 processes: use SOLVER.IMS_PER_BATCH 6 with MODEL.BN_GROUP_SIZE 2"),
        ("BN", 5, 32, 4, "into 4 processes: use SOLVER.IMS_PER_BATCH 8"),
        ("BN", 4, 32, 4, "each process, here 1: use SOLVER.IMS_PER_BATCH 8 or more, or MODEL.NORM SyncBN"),
        ("SyncBN", 1, 32, 1, "needs 2 or more images"),
    ],
)  # fmt: skip
def test_choices_that_make_no_sense(kind: str, batch: int, size: int, processes: int, advice: str) -> None:
    """The error of each names settings to use, and these settings are accepted."""
    keys = ["MODEL.NORM", kind, "SOLVER.IMS_PER_BATCH", str(batch), "MODEL.BN_GROUP_SIZE", str(size)]
    with pytest.raises(UserError, match=advice) as caught:
        config.load("pretrain/moco_v2_R50.yaml", keys, processes=processes)
    more = advised(caught.value)
    assert more
    config.load("pretrain/moco_v2_R50.yaml", [*keys, *more], processes=processes)


def advised(error: UserError) -> list[str]:
    pairs = re.findall(r"(MODEL\.BN_GROUP_SIZE|SOLVER\.IMS_PER_BATCH) (\d+)", str(error).split("use ")[-1])
    return [word for pair in pairs for word in pair]


def test_all_advice_about_groups_is_taken() -> None:
    refused = 0
    for processes, batch, size in itertools.product((1, 2, 3, 4, 7, 8), range(1, 25), (1, 2, 3, 8, 15, 64)):
        cfg = config.defaults()
        cfg.merge_from_list(["SOLVER.IMS_PER_BATCH", batch, "MODEL.BN_GROUP_SIZE", size])
        try:
            validate(cfg, processes=processes)
        except UserError as error:
            cfg.merge_from_list(advised(error))
            validate(cfg, processes=processes)
            refused += 1
    assert refused > 100


@pytest.mark.parametrize(
    ("batch", "size", "processes"), [(32, 16, 1), (32, 8, 2), (32, 16, 4), (32, 2, 16), (4, 2, 1)]
)
def test_choices_that_make_sense(batch: int, size: int, processes: int) -> None:
    keys = ["SOLVER.IMS_PER_BATCH", str(batch), "MODEL.BN_GROUP_SIZE", str(size)]
    config.load("pretrain/moco_v2_R50.yaml", keys, processes=processes)
