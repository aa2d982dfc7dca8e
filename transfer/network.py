"""The network of a checkpoint, as torchvision's modules with the checkpoint's weights."""

from pretrain.model.encoders import ResNet
from transfer.sources import Source


def build(source: Source) -> ResNet:
    """The backbone with its weights, in training mode, on the CPU; `fc` is the identity."""
    network = ResNet(source.architecture)
    network.load_state_dict(source.backbone)
    if source.input.stride_in_1x1:
        for stage in (network.layer2, network.layer3, network.layer4):
            stage[0].conv1.stride, stage[0].conv2.stride = stage[0].conv2.stride, stage[0].conv1.stride
    return network
