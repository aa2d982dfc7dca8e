"""Small models of every mechanism, with random views, for the tests of a training step."""

from pathlib import Path

import torch
from fvcore.common.config import CfgNode
from torch import nn

from pretrain import config
from pretrain.common import distributed
from pretrain.data.on_device import Pixels
from pretrain.model import build, moco, norm
from pretrain.model.contrast import Contrast, Mechanism
from pretrain.model.encoders import ResNet
from pretrain.model.mechanisms import EndToEnd, MemoryBank
from pretrain.model.moco import MoCo
from pretrain.model.moco_v3 import MoCoV3
from pretrain.train.step import train_step

KINDS = ("moco", "endtoend", "memorybank")
V3_KINDS = ("mocov3", "mocov3_vit")
CPU = torch.device("cpu")
PIXELS = Pixels([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
DIM, BANK = 16, 30


def tiny_encoder() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 6), nn.ReLU(), nn.Linear(6, 4))


def encoder(batch: int = 8, group_size: int = 4, width: float = 0.125, dim: int = DIM) -> ResNet:
    cfg = config.load(
        "pretrain/moco_v2_R50.yaml",
        ["MODEL.ARCH", "resnet18", "MODEL.WIDTH", str(width), "MODEL.DIM", str(dim),
         "MODEL.BN_GROUP_SIZE", str(group_size), "SOLVER.IMS_PER_BATCH", str(batch)],
        processes=distributed.world_size(),
    )  # fmt: skip
    return build.encoder_maker(cfg, norm.norm_layer(cfg, CPU))()


def v3_config(kind: str, *more: str) -> CfgNode:
    """A ResNet-18 of an eighth of its width, or a ViT of two blocks, with heads of 32 channels."""
    small = [
        "MODEL.DIM",
        str(DIM),
        "MODEL.HIDDEN",
        "32",
        "INPUT.SIZE",
        "64",
        "SOLVER.IMS_PER_BATCH",
        "8",
        *more,
    ]
    if kind == "mocov3":
        return config.load(
            "pretrain/moco_v3_R50_100ep.yaml", ["MODEL.ARCH", "resnet18", "MODEL.WIDTH", "0.125", *small]
        )
    shape = ["MODEL.VIT.WIDTH", "24", "MODEL.VIT.DEPTH", "2", "MODEL.VIT.HEADS", "3"]
    return config.load("pretrain/moco_v3_ViTB.yaml", [*shape, *small])


def v3_model(kind: str, *more: str) -> MoCoV3:
    """The same weights at every call, the momentum encoder's and all scales different from their start."""
    torch.manual_seed(0)
    cfg = v3_config(kind, *more)
    layer = norm.norm_layer(cfg, CPU)
    model = build.mechanism(cfg, build.encoder_maker(cfg, layer), layer, images=BANK)
    assert isinstance(model, MoCoV3)
    model.temperature = 0.2
    for p in model.parameters():
        p.data.add_(0.01 * torch.randn(p.shape))
    return model


def resnet_model(kind: str = "moco") -> Contrast:
    """The same weights at every call; batch norm in groups of 4 images; a queue of 20 keys or 30 images."""
    torch.manual_seed(0)
    if kind == "moco":
        return MoCo(encoder, dim=DIM, queue_length=20, momentum=0.9)
    if kind == "endtoend":
        model = EndToEnd(encoder)
        for p in model.encoder_k.parameters():  # apart, as after some steps
            p.data.add_(0.01 * torch.randn(p.shape))
        return model
    return MemoryBank(encoder, images=BANK, dim=DIM, negatives=20, temperature=0.2, seed=3)


def random_views(images: int, seed: int = 0, *, size: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    query, key = (torch.randint(0, 256, (images, size, size, 3), generator=generator) for _ in range(2))
    return query.to(torch.uint8), key.to(torch.uint8)


def random_numbers(images: int, seed: int = 0) -> torch.Tensor:
    return torch.randperm(BANK, generator=torch.Generator().manual_seed(seed))[:images]


def any_model(kind: str) -> Mechanism:
    """A model of one of KINDS or V3_KINDS."""
    return v3_model(kind) if kind in V3_KINDS else resnet_model(kind)


def sgd(model: Mechanism, rate: float = 0.1) -> torch.optim.SGD:
    return torch.optim.SGD(model.trained(), lr=rate, momentum=0.9)


def step(
    model: Mechanism, optimizer: torch.optim.Optimizer, iteration: int = 0, images: int = 8, **options: object
) -> torch.Tensor:
    """A step on this process's share of `images` random views that depend on the iteration alone."""
    query, key = (distributed.local_part(views) for views in random_views(images, iteration))
    numbers = distributed.local_part(random_numbers(images, iteration))
    return train_step(
        model, optimizer, (query, key), pixels=PIXELS, images=numbers, iteration=iteration, **options
    )


def steps_of_every_kind(folder: str) -> None:
    """Four steps of each mechanism on the same 8 images each, in any number of processes; leaves what came of it.

    In float64, also what asks for float32: there rounding grows to some percent of the last gradient.
    """
    torch.set_default_dtype(torch.float64)
    torch.Tensor.float = torch.Tensor.double  # type: ignore[method-assign]
    PIXELS.double()
    distributed.init_from_env(torch.device("cpu"))
    torch.set_num_threads(1)
    orders = [moco.permutation(8, groups=2, seed=0, step=iteration) for iteration in range(4)]
    for kind in (*KINDS, *V3_KINDS):
        model = any_model(kind)
        optimizer = sgd(model, 0.0001)
        metrics, gradients = [], []
        for iteration, order in enumerate(orders):
            metrics.append(step(model, optimizer, iteration, order=order))
            gradients.append([p.grad.clone() for p in model.trained()])
        distributed.mean_over_processes(metrics)
        found = {
            "metrics": metrics,
            "state": model.state_dict(),
            "first": gradients[0],
            "last": gradients[-1],
        }
        torch.save(found, Path(folder) / f"{kind}_{distributed.world_size()}_{distributed.rank()}.pt")
