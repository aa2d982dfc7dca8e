"""Batch normalisation over groups of images or over all processes, on CPUs as well as on GPUs.

In the paper, batch norm works on the images of one GPU: 256 / 8 = 32. Here the size of a group does not depend on the
number of processes. Image i of the total batch belongs to group i mod (number of groups). Since images are dealt to
the processes like cards (`pretrain.common.distributed`), the same holds inside each process.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as td
import torch.nn.functional as F
from fvcore.common.config import CfgNode
from torch import nn

from pretrain.common import distributed


def norm_layer(cfg: CfgNode, device: torch.device) -> Callable[..., nn.Module]:
    """Return a function that makes the layer of MODEL.NORM and MODEL.BN_GROUP_SIZE from its number of channels.

    It takes the options of `nn.BatchNorm2d` too, such as `affine`. Every process must call this at the same point,
    because it may create process groups.
    """
    kind, size, processes = cfg.MODEL.NORM, cfg.MODEL.BN_GROUP_SIZE, distributed.world_size()
    local = cfg.SOLVER.IMS_PER_BATCH // processes
    if kind == "BN":
        return nn.BatchNorm2d
    if kind == "ShuffleBN" and size <= local:
        return functools.partial(GroupBatchNorm2d, group_size=size)
    members = None if kind == "SyncBN" else _process_group(size // local)
    if processes > 1 and device.type == "cuda":
        return functools.partial(nn.SyncBatchNorm, process_group=members)
    return functools.partial(SyncBatchNorm, process_group=members)


def groups_of(cfg: CfgNode) -> int:
    """Return the number of ShuffleBN groups in the total batch."""
    return cfg.SOLVER.IMS_PER_BATCH // cfg.MODEL.BN_GROUP_SIZE


def local_groups(cfg: CfgNode) -> int:
    """Return the number of groups that one process normalises separately; 1 unless MODEL.NORM is ShuffleBN."""
    if cfg.MODEL.NORM != "ShuffleBN":
        return 1
    return max(cfg.SOLVER.IMS_PER_BATCH // distributed.world_size() // cfg.MODEL.BN_GROUP_SIZE, 1)


def parts(cfg: CfgNode, device: torch.device) -> int:
    """Return the number of pieces into which a step can cut its queries to save memory without changing the result.

    Groups are independent of each other. On a CPU, where activations would fill a large part of the memory, a piece
    is one group, or as many groups as have no more pixels than 32 images of 224 x 224.
    """
    groups = local_groups(cfg) if device.type == "cpu" else 1
    at_once = 32 * 224**2 / (cfg.MODEL.BN_GROUP_SIZE * cfg.INPUT.SIZE**2)  # groups in a piece
    return min(n for n in range(1, groups + 1) if not groups % n and (groups / n <= at_once or n == groups))


def _process_group(members: int) -> Any:
    """Return the processes that share a group of images with this one: ranks r, r + G, r + 2G, ... for G groups."""
    groups = distributed.world_size() // members
    made = [td.new_group(list(range(first, distributed.world_size(), groups))) for first in range(groups)]
    return made[distributed.rank() % groups]


class GroupBatchNorm2d(nn.BatchNorm2d):
    """Batch norm that normalises each group of `group_size` consecutive images separately.

    The encoder puts the images of a group next to each other (`in_groups`). Evaluation is that of plain batch norm.
    Running statistics are updated with the mean over the groups of batch means and (unbiased) variances. The authors'
    code keeps those of the first GPU, which are the same in expectation but noisier.
    """

    def __init__(self, channels: int, *, group_size: int, **options: Any) -> None:
        super().__init__(channels, **options)
        self.group_size = group_size

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Normalise (N, C, H, W), in any memory format; in training, N is a multiple of the group size."""
        images, channels = input.shape[:2]
        groups = images // self.group_size
        if not self.training or groups <= 1:
            return super().forward(input)
        assert groups * self.group_size == images, (
            f"{images} images do not divide into groups of {self.group_size}"
        )
        means, variances = self.weight.new_zeros(2, groups, channels).unbind()
        # With momentum 1, `mean` and `var` become those of the group.
        outputs = [
            F.batch_norm(
                group, mean, var, self.weight, self.bias, training=True, momentum=1.0, eps=self.eps,
            )
            for group, mean, var in zip(input.chunk(groups), means, variances, strict=True)
        ]  # fmt: skip
        _update_running(self, means.mean(0), variances.mean(0))
        return torch.cat(outputs)


def in_groups(
    network: Callable[[torch.Tensor], torch.Tensor], images: torch.Tensor, group_size: int
) -> torch.Tensor:
    """Run a network whose batch norm groups consecutive images on a batch that is dealt to its groups like cards.

    Image j of (N, ...) is in group j mod (N / group_size). The network sees one group after another; its output,
    (N, dim), is put back into the order of `images`. Reordering the input once is cheaper than selecting the images
    of each group in each layer, and does not change the memory format.
    """
    groups = max(len(images) // group_size, 1)
    if groups == 1:
        return network(images)
    output = network(torch.cat([images[group::groups] for group in range(groups)]))
    return output.unflatten(0, (groups, -1)).transpose(0, 1).flatten(0, 1)


class SyncBatchNorm(nn.BatchNorm2d):
    """Batch norm over the images of all processes, on any backend; each may hold a different number of images.

    torch's own `SyncBatchNorm` refuses to run on CPUs. With one process, and in evaluation, this is plain batch norm.

    Args:
        process_group: the processes that share statistics; None: all.
    """

    def __init__(self, channels: int, *, process_group: Any = None, **options: Any) -> None:
        super().__init__(channels, **options)
        self.process_group = process_group

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Normalise (N, C, H, W), or (N, C)."""
        if input.dim() == 2:
            return self.forward(input[:, :, None, None]).flatten(1)
        alone = distributed.world_size() == 1 or td.get_world_size(self.process_group) == 1
        if alone or not (self.training or self.running_mean is None):
            return super().forward(input)
        output, mean, var, count = _SyncedNorm.apply(
            input, self.weight, self.bias, self.eps, self.process_group
        )
        if self.running_mean is not None:
            _update_running(self, mean, var * count / (count - 1).clamp(min=1))
        return output


@torch.no_grad()
def _update_running(layer: nn.BatchNorm2d, mean: torch.Tensor, var: torch.Tensor) -> None:
    """Update the running statistics with those of a batch, as `nn.BatchNorm2d` does."""
    assert layer.running_mean is not None and layer.running_var is not None
    assert layer.momentum is not None, "a cumulative average (momentum None) is not supported"
    layer.running_mean.lerp_(mean, layer.momentum)
    layer.running_var.lerp_(var, layer.momentum)
    if isinstance(layer.num_batches_tracked, torch.Tensor):
        layer.num_batches_tracked.add_(1)


class _SyncedNorm(torch.autograd.Function):
    """Normalise with the statistics of all processes, with a gradient that flows through these statistics."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: Any, bias: Any, eps: float, group: Any
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        mean, var, count = _global_statistics(x, group)
        scale = torch.rsqrt(var + eps)
        ctx.save_for_backward(x, weight, mean, scale, count)
        ctx.group = group
        output = F.batch_norm(x, mean, var, weight, bias, training=False, eps=eps)
        ctx.mark_non_differentiable(mean, var, count)
        return output, mean, var, count

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor, *_: Any) -> tuple[Any, ...]:
        x, weight, mean, scale, count = ctx.saved_tensors
        centred = x.to(mean.dtype) - mean[:, None, None]
        grad_sum = grad.sum((0, 2, 3), dtype=mean.dtype)
        grad_dot = (grad * centred).sum((0, 2, 3), dtype=mean.dtype)
        grad_weight = grad_dot * scale  # of this process alone: gradients are averaged over processes later
        both = torch.cat([grad_sum, grad_dot])
        td.all_reduce(both, group=ctx.group)
        total_sum, total_dot = both.chunk(2)
        gain = scale if weight is None else scale * weight
        slope, offset = -gain * scale**2 * total_dot / count, -gain * total_sum / count
        grad_x = centred.mul_(slope[:, None, None]).add_(offset[:, None, None])
        grad_x.addcmul_(grad.to(mean.dtype), gain[:, None, None])
        if weight is None:
            return grad_x.to(x.dtype), None, None, None, None
        return grad_x.to(x.dtype), grad_weight, grad_sum, None, None


def _global_statistics(x: torch.Tensor, group: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return mean (C,), biased variance (C,) and count (1,) over all processes.

    They are pooled from the means and squared deviations of each process. Plain sums of squares would lose all
    precision in channels whose mean is large compared with their spread.
    """
    axes, values = (0, 2, 3), x.numel() // x.shape[1]
    wide = torch.promote_types(x.dtype, torch.float32)
    mean = x.sum(axes, dtype=wide) / max(values, 1)
    deviations = (x.to(wide) - mean[:, None, None]).square_().sum(axes)
    own = torch.cat([mean, deviations, mean.new_tensor([float(values)])])
    parts = [torch.empty_like(own) for _ in range(td.get_world_size(group))]
    td.all_gather(parts, own, group=group)
    stacked = torch.stack(parts)
    means, squares, counts = stacked.split([len(mean), len(mean), 1], dim=1)  # (W, C), (W, C), (W, 1)
    count = counts.sum(0)
    mean = (means * counts).sum(0) / count
    var = (squares + counts * (means - mean).square()).sum(0) / count
    return mean, var, count


def convert_sync_batchnorm(model: nn.Module) -> nn.Module:
    """Replace every `torch.nn.SyncBatchNorm` inside `model` by ours, in place, and return the model.

    The new modules hold the same parameter and buffer objects, so that optimizers and state dicts stay valid.
    """
    for name, child in model.named_children():
        if isinstance(child, nn.SyncBatchNorm):
            options = {"eps": child.eps, "momentum": child.momentum, "affine": child.affine}
            ours = SyncBatchNorm(
                child.num_features, process_group=child.process_group,
                track_running_stats=child.track_running_stats, **options,
            )  # fmt: skip
            ours._parameters, ours._buffers = child._parameters, child._buffers
            setattr(model, name, ours.train(child.training))
        else:
            convert_sync_batchnorm(child)
    return model
