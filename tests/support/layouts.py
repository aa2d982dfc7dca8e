"""A file of every known layout, from names and shapes: its two networks hold different random values.

The names are written down from what each project's code or documentation says, not from our table.
"""

import argparse
from collections.abc import Callable
from typing import Any

import numpy
import torch
from torch import nn

from tests.support.checkpoints import State, small_network

TRUNK = {"conv1", "bn1", "layer1", "layer2", "layer3", "layer4"}


def network(seed: int, name: str = "resnet50", width: float = 0.125) -> State:
    """Trunk of a narrow ResNet whose every tensor is random, counters included."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for key, tensor in small_network(name, width).state_dict().items():
        if key.split(".")[0] not in TRUNK:
            continue
        if tensor.is_floating_point():
            tensor = torch.rand(tensor.shape, generator=generator) + 0.5  # variances must be positive
            tensor = tensor * 0.01 if "conv" in key or "downsample.0" in key else tensor
        state[key] = tensor
    return state


def under(prefix: str, state: State) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


def mlp(prefix: str, *layers: str) -> State:
    """A head's tensors: weight and bias for each layer; batch norm statistics where a layer ends in `bn`."""
    state = {}
    for layer in layers:
        state |= {f"{prefix}{layer}.weight": torch.randn(16, 16), f"{prefix}{layer}.bias": torch.randn(16)}
        if layer.endswith("bn"):
            state |= {
                f"{prefix}{layer}.running_mean": torch.randn(16),
                f"{prefix}{layer}.running_var": torch.rand(16),
            }
    return state


class Hyper(dict):
    """Stands for a framework's configuration class inside a checkpoint."""


def lightning(state: State) -> dict[str, Any]:
    return {
        "epoch": 99,
        "global_step": 1000,
        "pytorch-lightning_version": "1.9.0",
        "state_dict": state,
        "hyper_parameters": argparse.Namespace(lr=0.3),
        "optimizer_states": [{"state": {0: {"momentum_buffer": torch.zeros(2)}}}],
    }


_HF = {"conv": "convolution", "bn": "normalization"}


def transformers_names(state: State) -> State:
    """`ResNetModel`'s names."""
    renamed = {}
    for name, tensor in state.items():
        module, leaf = name.rsplit(".", 1)
        if module in ("conv1", "bn1"):
            new = f"embedder.embedder.{_HF[module[:-1]]}"
        else:
            stage, block, part = module.split(".", 2)
            place = f"encoder.stages.{int(stage[-1]) - 1}.layers.{block}"
            if part.startswith("downsample"):
                new = f"{place}.shortcut.{'normalization' if part.endswith('1') else 'convolution'}"
            else:
                new = f"{place}.layer.{int(part[-1]) - 1}.{_HF[part[:-1]]}"
        renamed[f"{new}.{leaf}"] = tensor
    return renamed


def sequential_names(state: State) -> State:
    """Those of `nn.Sequential(*list(resnet.children())[:-1])`."""
    index = {"conv1": 0, "bn1": 1, "layer1": 4, "layer2": 5, "layer3": 6, "layer4": 7}
    return {f"{index[n.split('.')[0]]}.{n.split('.', 1)[1]}": t for n, t in state.items()}


def detectron2_names(state: State) -> dict[str, numpy.ndarray]:
    """Those of detectron2's ResNet, written from its module tree: stem.conv1(.norm), resN.B.convI(.norm)."""
    renamed = {}
    for name, tensor in state.items():
        if name.endswith("num_batches_tracked"):
            continue
        module, leaf = name.rsplit(".", 1)
        if module == "conv1":
            new = "stem.conv1"
        elif module == "bn1":
            new = "stem.conv1.norm"
        else:
            stage, block, part = module.split(".", 2)
            new = f"res{int(stage[-1]) + 1}.{block}."
            new += {"downsample.0": "shortcut", "downsample.1": "shortcut.norm"}.get(part, "")
            if part.startswith("conv"):
                new += part
            elif part.startswith("bn"):
                new += f"conv{part[-1]}.norm"
        renamed[f"{new}.{leaf}"] = tensor.numpy()
    return renamed


def caffe2_names(state: State) -> dict[str, numpy.ndarray]:
    """Detectron 1's: batch norm merged into scale `_s` and shift `_b`."""
    leaves = {"weight": "s", "bias": "b"}
    renamed = {"fc1000_w": numpy.zeros((10, 16), "f4"), "fc1000_b": numpy.zeros(10, "f4")}
    for name, tensor in state.items():
        module, leaf = name.rsplit(".", 1)
        if leaf not in leaves:
            continue
        if module in ("conv1", "bn1"):
            new = "conv1_w" if module == "conv1" else f"res_conv1_bn_{leaves[leaf]}"
        else:
            stage, block, part = module.split(".", 2)
            branch = "1" if part.startswith("downsample") else "2" + "abc"[int(part[-1]) - 1]
            norm = part.startswith("bn") or part == "downsample.1"
            new = f"res{int(stage[-1]) + 1}_{block}_branch{branch}_" + (f"bn_{leaves[leaf]}" if norm else "w")
        renamed[new] = tensor.numpy()
    return renamed


def _moco(q: State, k: State) -> Any:
    heads = mlp("module.encoder_q.fc.", "0", "2") | mlp("module.encoder_k.fc.", "0", "2")
    queue = {"module.queue": torch.randn(16, 32), "module.queue_ptr": torch.zeros(1, dtype=torch.long)}
    state = under("module.encoder_q.", q) | under("module.encoder_k.", k) | heads | queue
    return {"epoch": 200, "arch": "resnet50", "state_dict": state, "optimizer": {"state": {}}}


def _mocov3(q: State, k: State) -> Any:
    heads = mlp("module.base_encoder.fc.", "0", "1.bn", "3") | mlp("module.predictor.", "0", "3")
    state = under("module.momentum_encoder.", k) | under("module.base_encoder.", q) | heads
    return {"epoch": 300, "arch": "resnet50", "state_dict": state, "optimizer": {}, "scaler": {"scale": 1.0}}


def _dino(q: State, k: State) -> Any:
    def net(state: State) -> State:
        return (
            under("module.backbone.", state)
            | mlp("module.head.mlp.", "0", "2")
            | {
                "module.head.last_layer.weight_g": torch.ones(9, 1),
                "module.head.last_layer.weight_v": torch.randn(9, 4),
            }
        )

    return {
        "student": net(k),
        "teacher": under("backbone.", q) | mlp("head.mlp.", "0", "2"),
        "epoch": 800,
        "args": argparse.Namespace(arch="resnet50"),
        "dino_loss": {"center": torch.zeros(1, 9)},
    }


def _openselfsup(q: State, k: State) -> Any:
    state = under("backbone.", q) | under("encoder_q.0.", q) | under("encoder_k.0.", k)
    heads = mlp("encoder_q.1.mlp.", "0", "2") | mlp("encoder_k.1.mlp.", "0", "2") | mlp("neck.mlp.", "0")
    return {
        "meta": {"epoch": 200, "hook": Hyper(a=1)},
        "state_dict": state | heads | {"queue": torch.randn(4, 8)},
    }


def _solo(q: State, k: State) -> Any:
    state = under("backbone.", q) | under("momentum_backbone.", k) | mlp("projector.", "0", "2")
    return lightning(
        state | mlp("momentum_projector.", "0") | mlp("classifier.", "lin") | {"queue": torch.randn(2, 4, 8)}
    )


def _lightly_tutorial(q: State, k: State) -> Any:
    state = under("backbone.", sequential_names(q)) | under("backbone_momentum.", sequential_names(k))
    return lightning(
        state | mlp("projection_head.layers.", "0", "2") | mlp("projection_head_momentum.layers.", "0")
    )


def _vissl(q: State, k: State) -> Any:
    base = {"model": {"trunk": under("_feature_blocks.", q), "heads": mlp("0.clf.", "0")}}
    return {"phase_idx": 100, "classy_state_dict": {"base_model": base, "optimizer": {"x": torch.zeros(2)}}}


def _instanceloc(q: State, k: State) -> Any:
    stage4 = {n: t for n, t in q.items() if n.startswith("layer4.")}
    rest = {n: t for n, t in q.items() if n not in stage4}
    own_k = {n: t for n, t in k.items() if not n.startswith("layer4.")}
    other = {n: t for n, t in k.items() if n.startswith("layer4.")}
    state = under("backbone.", rest) | under("roi_head.shared_head.", stage4) | under("backbone_k.", own_k)
    return {
        "state_dict": state
        | under("roi_head_k.shared_head.", other)
        | mlp("neck_k.", "0")
        | {"queue": torch.zeros(2, 3)}
    }


def _swav(q: State, k: State) -> Any:
    return (
        under("module.", q)
        | mlp("module.projection_head.", "0", "1.bn", "3")
        | {"module.prototypes.weight": torch.randn(9, 4)}
    )


# name -> (the layout expected, file from a query and a key network)
FILES: dict[str, tuple[str, Callable[[State, State], Any]]] = {
    "moco v2, DDP": ("moco", _moco),
    "moco v1, no DDP": (
        "moco",
        lambda q, k: {
            "state_dict": under("encoder_k.", k) | under("encoder_q.", q) | mlp("encoder_q.", "fc")
        },
    ),
    "moco, compiled": (
        "moco",
        lambda q, k: {"state_dict": under("_orig_mod.encoder_q.", q) | under("_orig_mod.encoder_k.", k)},
    ),
    "moco, stripped": (
        "moco",
        lambda q, k: {"state_dict": under("module.encoder_q.", q), "arch": "resnet50"},
    ),
    "moco v3": ("mocov3", _mocov3),
    "dino full": ("dino", _dino),
    "dino hub": ("torchvision", lambda q, k: dict(q)),
    "swav": ("swav", _swav),
    "swav in state_dict": ("swav", lambda q, k: {"epoch": 3, "state_dict": _swav(q, k)}),
    "deepcluster v2": (
        "swav",
        lambda q, k: (
            under("module.", q)
            | mlp("module.projection_head.", "0", "3")
            | {"module.prototypes.prototypes0.weight": torch.randn(9, 4)}
        ),
    ),
    "barlow twins full": (
        "barlowtwins",
        lambda q, k: {
            "epoch": 5,
            "model": under("module.backbone.", q)
            | mlp("module.projector.", "0", "1.bn")
            | mlp("module.", "bn"),
            "optimizer": {},
        },
    ),
    "vicreg full": (
        "vicreg",
        lambda q, k: {
            "epoch": 5,
            "model": under("module.backbone.", q) | mlp("module.projector.", "0", "1.bn"),
        },
    ),
    "simsiam": (
        "simsiam",
        lambda q, k: {
            "epoch": 100,
            "state_dict": under("module.encoder.", q)
            | mlp("module.encoder.fc.", "0", "1.bn", "6")
            | mlp("module.predictor.", "0", "3"),
        },
    ),
    "byol port": (
        "byol",
        lambda q, k: {
            "state_dict": under("target_network.encoder.", k)
            | under("online_network.encoder.", q)
            | mlp("online_network.projection.", "0")
            | mlp("predictor.", "0")
        },
    ),
    "byol-pytorch": (
        "byol",
        lambda q, k: (
            under("online_encoder.net.", q) | under("target_encoder.net.", k) | mlp("online_predictor.", "0")
        ),
    ),
    "vissl": ("vissl", _vissl),
    "vissl trunk": ("vissl", lambda q, k: {"model_state_dict": under("_feature_blocks.", q)}),
    "openselfsup, densecl raw": ("openselfsup", _openselfsup),
    "openselfsup byol": (
        "openselfsup",
        lambda q, k: {
            "state_dict": under("backbone.", q)
            | under("online_net.0.", q)
            | under("target_net.0.", k)
            | mlp("neck.", "0")
        },
    ),
    "openselfsup extracted": ("torchvision", lambda q, k: {"state_dict": q, "author": "OpenSelfSup"}),
    "pixpro": (
        "pixpro",
        lambda q, k: {
            "model": under("module.encoder.", q)
            | under("module.encoder_k.", k)
            | mlp("module.projector.", "linear1", "bn")
            | mlp("module.value_transform.", "0"),
            "opt": argparse.Namespace(a=1),
        },
    ),
    "pycontrast": (
        "pycontrast",
        lambda q, k: {
            "opt": argparse.Namespace(a=1),
            "model": under("module.encoder.", q) | mlp("module.head.", "0"),
            "model_ema": under("encoder.", k) | mlp("head.", "0"),
        },
    ),
    "lightning, an encoder in its model": (
        "unknown",
        lambda q, k: lightning(under("model.encoder.", q) | mlp("model.head.", "0")),
    ),
    "soco": (
        "soco",
        lambda q, k: {
            "model": under("module.encoder.", q)
            | under("module.encoder_k.", k)
            | mlp("module.neck.", "lateral")
            | mlp("module.projector.", "0"),
            "model_ema": {},
        },
    ),
    "instanceloc c4": ("instanceloc", _instanceloc),
    "solo": ("solo", _solo),
    "solo old": (
        "solo",
        lambda q, k: lightning(
            under("encoder.", q)
            | under("momentum_encoder.", k)
            | mlp("projector.", "0", "2")
            | mlp("classifier.", "lin")
        ),
    ),
    "solo nested": (
        "solo",
        lambda q, k: lightning(under("backbone.encoder.", q) | mlp("projector.", "0", "2")),
    ),
    "lightly benchmark moco": (
        "lightly-moco",
        lambda q, k: lightning(
            under("backbone.", k)
            | under("query_backbone.", q)
            | mlp("projection_head.layers.", "0")
            | mlp("query_projection_head.layers.", "0")
            | mlp("online_classifier.", "linear")
        ),
    ),
    "lightly benchmark": (
        "lightly",
        lambda q, k: lightning(
            under("backbone.", q)
            | under("student_backbone.", k)
            | mlp("projection_head.layers.", "0")
            | mlp("online_classifier.", "linear")
        ),
    ),
    "lightly tutorial": ("lightly", _lightly_tutorial),
    "lightly-train export": ("torchvision", lambda q, k: dict(q)),
    "torchvision": ("torchvision", lambda q, k: q | mlp("", "fc")),
    "torchvision, old": (
        "torchvision",
        lambda q, k: {n: t for n, t in q.items() if not n.endswith("tracked")} | mlp("", "fc"),
    ),
    "transformers": (
        "transformers",
        lambda q, k: under("resnet.", transformers_names(q)) | mlp("classifier.", "1"),
    ),
    "transformers, bare": ("transformers", lambda q, k: transformers_names(q)),
    "obow": ("torchvision", lambda q, k: {"network": q | mlp("", "fc"), "epoch": 200}),
}


def whole_module(state: State) -> nn.Module:
    """For files saved as objects instead of state dicts."""
    module = small_network()
    module.load_state_dict(state, strict=False)
    return module
