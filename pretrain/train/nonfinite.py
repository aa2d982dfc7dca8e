"""Find the layer where an infinite value or NaN first appears, after a loss that was not finite."""

from collections.abc import Callable

import torch
from torch import nn

from pretrain.common import distributed
from pretrain.model.contrast import Mechanism


@torch.no_grad()
def first_bad_layer(
    model: Mechanism,
    views: tuple[torch.Tensor, torch.Tensor],
    *,
    pixels: Callable[[torch.Tensor], torch.Tensor],
    amp: torch.dtype | None = None,
) -> str:
    """Run a step's images through the encoders again and return the first weight or output that is not finite.

    The search follows the computation: images, query encoder, key encoder, then queue or bank; with MoCo v3, both
    views through either encoder. Keys are not shuffled. Running statistics are restored. Every process must call this;
    all get the same answer.

    Args:
        views: the query and key images of the step.
        pixels: turns them into an encoder's input.
        amp: torch.bfloat16 or torch.float16 if the step ran under autocast.
    Returns:
        For example "encoder_q.layer1.0.bn1.weight" or "encoder_q.layer3.0.conv2 (its output)"; an empty string if
        nothing is found, as after an overflow of the loss alone.
    """
    names: list[str] = []
    bad: list[torch.Tensor] = []

    def note(name: str, tensor: torch.Tensor) -> None:
        names.append(name)
        bad.append(~torch.isfinite(tensor).all())

    for path in model.paths():
        x = pixels(views[path.view])
        note(f"the images of {path.networks[0]}", x)
        for name in path.networks:
            x = _run(model.get_submodule(name), name, x, note, amp)
    for name, buffer in model.named_buffers(recurse=False):
        note(name, buffer)
    found = torch.stack(bad).float()
    distributed.mean_over_processes([found])
    return names[int(found.gt(0).int().argmax())] if found.gt(0).any() else ""


def _run(
    network: nn.Module,
    network_name: str,
    inputs: torch.Tensor,
    note: Callable[[str, torch.Tensor], None],
    amp: torch.dtype | None,
) -> torch.Tensor:
    """Return a network's output; note its weights and the outputs of its layers on the way."""
    for part, tensor in network.named_parameters(network_name, recurse=False):
        note(part, tensor)
    hooks = [
        module.register_forward_hook(_checker(f"{network_name}.{name}", note))
        for name, module in network.named_modules()
        if not list(module.children())
    ]
    buffers = [buffer.clone() for buffer in network.buffers()]
    try:
        with torch.autocast(inputs.device.type, dtype=amp or torch.bfloat16, enabled=amp is not None):
            return network.forward(inputs)  # not `network(...)`: a compiled one would skip the hooks
    finally:
        for hook in hooks:
            hook.remove()
        for buffer, before in zip(network.buffers(), buffers, strict=True):
            buffer.copy_(before)


def _checker(name: str, note: Callable[[str, torch.Tensor], None]) -> Callable[..., None]:
    """Return a hook that notes the weights of a layer and then its output."""

    def hook(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        for part, tensor in module.named_parameters(recurse=False):
            note(f"{name}.{part}", tensor)
        note(f"{name} (its output)", output)

    return hook
