"""Checkpoints for the converter's tests: random networks in the layouts of MoCo and torchvision."""

from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import nn

from pretrain.model.encoders import ResNet, architecture

State = dict[str, torch.Tensor]


def randomise(network: nn.Module, seed: int = 0) -> nn.Module:
    """Give every batch norm statistics and parameters that are not the initial ones."""
    generator = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            with torch.no_grad():
                module.weight.uniform_(0.5, 1.5, generator=generator)
                module.bias.normal_(0, 0.3, generator=generator)
                module.running_mean.normal_(0, 0.3, generator=generator)
                module.running_var.uniform_(0.5, 2, generator=generator)
    return network


def torchvision_network(name: str) -> nn.Module:
    """torchvision's own class, with its classifier."""
    torch.manual_seed(0)
    return randomise(getattr(torchvision.models, name)())


def small_network(name: str = "resnet50", width: float = 0.125) -> nn.Module:
    """A narrow network with a classifier, which detectron2 can build too."""
    torch.manual_seed(0)
    kind = architecture(name, width)
    return randomise(ResNet(kind, head=nn.Linear(kind.feature_channels, 10)))


def moco_state(backbone: State, *, head: str = "mlp", wrapped: bool = True, queue: bool = True) -> State:
    """The public layout: both encoders with their heads (v1 `linear`, v2 `mlp`) and the queue."""
    backbone = {name: tensor for name, tensor in backbone.items() if not name.startswith("fc.")}
    layers = ("fc.0", "fc.2") if head == "mlp" else ("fc",)
    for layer in layers:
        backbone |= {f"{layer}.weight": torch.randn(16, 16), f"{layer}.bias": torch.randn(16)}
    state = {f"encoder_q.{name}": tensor for name, tensor in backbone.items()}
    state |= {f"encoder_k.{name}": tensor + 1 for name, tensor in backbone.items()}
    if queue:
        state |= {"queue": torch.randn(16, 32), "queue_ptr": torch.zeros(1, dtype=torch.long)}
    return {f"module.{name}" if wrapped else name: tensor for name, tensor in state.items()}


def moco_file(path: Path, backbone: State, **layout: Any) -> Path:
    """A MoCo training checkpoint, optimizer included."""
    momentum = {index: {"momentum_buffer": torch.zeros(2)} for index in range(3)}
    contents = {
        "epoch": 200,
        "arch": "resnet50",
        "state_dict": moco_state(backbone, **layout),
        "optimizer": {"state": momentum, "param_groups": [{"lr": 0.03, "params": [0, 1, 2]}]},
    }
    torch.save(contents, path)
    return path


def plain_file(path: Path, state: State) -> Path:
    """A state dict alone, as torchvision's files are."""
    torch.save(state, path)
    return path
