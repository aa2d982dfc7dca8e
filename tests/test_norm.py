"""Batch norm over groups and over processes, against plain batch norm on the same images."""

from pathlib import Path

import pytest
import torch
from torch import nn

from pretrain import config, dist, norm
from pretrain.norm import GroupBatchNorm2d, SyncBatchNorm, convert_sync_batchnorm


def random_layer(layer: nn.BatchNorm2d) -> nn.BatchNorm2d:
    torch.manual_seed(1)
    nn.init.uniform_(layer.weight, 0.5, 1.5)
    nn.init.normal_(layer.bias)
    return layer


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_groups_equal_separate_layers(memory_format: torch.memory_format) -> None:
    layer = random_layer(GroupBatchNorm2d(5, group_size=4))
    images = (3 * torch.randn(12, 5, 3, 2) + 7).to(memory_format=memory_format).requires_grad_()
    output = layer(images)
    upstream = torch.randn_like(output)
    (output * upstream).sum().backward()

    wanted, wanted_grad = torch.empty_like(output), torch.zeros_like(images)
    means, variances, weight_grad = [], [], torch.zeros(5)
    for group in range(3):
        plain = nn.BatchNorm2d(5, momentum=1.0)
        plain.load_state_dict({**layer.state_dict(), "running_mean": torch.zeros(5)})
        part = images.detach()[group::3].clone().requires_grad_()
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


def images_with_offset(seed: int = 3) -> torch.Tensor:
    """Channels whose mean is far larger than their spread, which plain sums of squares get wrong."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(7, 4, 3, 3, generator=generator)
    return images + torch.tensor([0.0, 10.0, 300.0, -1000.0])[:, None, None]


def upstream() -> torch.Tensor:
    return torch.randn(7, 4, 3, 3, generator=torch.Generator().manual_seed(4))


def sync_worker(folder: str) -> None:
    dist.init_from_env(torch.device("cpu"))
    part = slice(0, 2) if dist.rank() == 0 else slice(2, 7)  # unequal numbers of images
    layer = random_layer(SyncBatchNorm(4))
    images = images_with_offset()[part].clone().requires_grad_()
    output = layer(images)
    (output * upstream()[part]).sum().backward()
    evaluated = layer.eval()(images)
    torch.save(
        {"output": output.detach(), "grad": images.grad, "weight": layer.weight.grad, "bias": layer.bias.grad,
         "mean": layer.running_mean, "var": layer.running_var, "eval": evaluated.detach()},
        Path(folder) / f"{dist.rank()}.pt",
    )  # fmt: skip


def test_sync_over_two_processes_equals_plain_on_all_images(tmp_path: Path) -> None:
    dist.spawn(sync_worker, 2, (str(tmp_path),))
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    plain = random_layer(nn.BatchNorm2d(4)).double()
    images = images_with_offset().double().requires_grad_()
    output = plain(images)
    (output * upstream()).sum().backward()

    def compare(ours: torch.Tensor, wanted: torch.Tensor) -> None:
        torch.testing.assert_close(ours.double(), wanted.detach(), rtol=1e-3, atol=2e-3)

    compare(torch.cat([first["output"], second["output"]]), output)
    compare(torch.cat([first["grad"], second["grad"]]), images.grad)
    compare(first["weight"] + second["weight"], plain.weight.grad)
    compare(first["bias"] + second["bias"], plain.bias.grad)
    for part in (first, second):
        compare(part["mean"], plain.running_mean)
        compare(part["var"], plain.running_var)
    compare(torch.cat([first["eval"], second["eval"]]), plain.eval()(images))


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
    dist.init_from_env(torch.device("cpu"))
    cfg = config.defaults()
    cfg.SOLVER.IMS_PER_BATCH, cfg.MODEL.BN_GROUP_SIZE = 8, 4  # four processes of two images: two groups
    layer = norm.norm_layer(cfg, torch.device("cpu"))(4)
    total = torch.arange(8 * 4 * 2 * 2, dtype=torch.float32).view(8, 4, 2, 2).sin()
    output = dist.all_gather_interleaved(layer(dist.local_part(total)).detach())
    if dist.is_main():
        torch.save({"output": output, "wanted": GroupBatchNorm2d(4, group_size=4)(total).detach()}, folder)


@pytest.mark.slow
def test_a_group_may_span_processes(tmp_path: Path) -> None:
    dist.spawn(group_worker, 4, (str(tmp_path / "result.pt"),))
    result = torch.load(tmp_path / "result.pt")
    torch.testing.assert_close(result["output"], result["wanted"])
