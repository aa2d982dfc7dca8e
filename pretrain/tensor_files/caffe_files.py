"""Caffe's networks (`.caffemodel`), through protobuf; used in the box (`inside.py`).

Only those fields are declared that a ResNet's tensors, and the place of its strides, need; protobuf skips the others.
"""

import array
import math
from typing import IO, Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from pretrain.common.errors import UserError, label
from pretrain.tensor_files.stand_ins import MAX_DIMENSIONS, Storage, Tensor
from pretrain.tensor_files.torch_files import Contents

MAX_LAYERS = 20_000  # a ResNet-152 has about 1,000
MAX_BLOBS = 100  # of one layer
EPS = 1e-5  # Caffe's default, and the only value that detectron2 builds
# Message -> its fields: name, number in Caffe's caffe.proto, type or message, whether repeated.
_MESSAGES: dict[str, list[tuple[str, int, str, bool]]] = {
    "BlobShape": [("dim", 1, "INT64", True)],
    "BlobProto": [
        ("num", 1, "INT32", False),
        ("channels", 2, "INT32", False),
        ("height", 3, "INT32", False),
        ("width", 4, "INT32", False),
        # Packed floats have bytes on the wire. Read as such they do not become millions of Python's numbers.
        ("data", 5, "BYTES", True),
        ("shape", 7, "BlobShape", False),
    ],
    "ConvolutionParameter": [("stride", 6, "UINT32", True)],
    "BatchNormParameter": [("eps", 3, "FLOAT", False)],
    "LayerParameter": [
        ("name", 1, "STRING", False),
        ("type", 2, "STRING", False),
        ("blobs", 7, "BlobProto", True),
        ("convolution_param", 106, "ConvolutionParameter", False),
        ("batch_norm_param", 139, "BatchNormParameter", False),
    ],
    "NetParameter": [("layers", 2, "BYTES", True), ("layer", 100, "LayerParameter", True)],
}


def _network_class() -> Any:
    """Return the class of NetParameter messages."""
    file = descriptor_pb2.FileDescriptorProto(name="caffe.proto", package="caffe")
    for message, fields in _MESSAGES.items():
        described = file.message_type.add(name=message)
        for name, number, kind, repeated in fields:
            field = described.field.add(name=name, number=number)
            field.label = field.LABEL_REPEATED if repeated else field.LABEL_OPTIONAL
            if kind in _MESSAGES:
                field.type, field.type_name = field.TYPE_MESSAGE, f".caffe.{kind}"
            else:
                field.type = getattr(field, f"TYPE_{kind}")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("caffe.NetParameter"))


_Network = _network_class()  # now, since protobuf cannot import anything later


def read(file: IO[bytes], size: int) -> Contents:
    """Return a network as layer -> parts, with the names that PyTorch has for the parts.

    A convolution has `weight`, `bias` if it has one, and `stride` if the file states it. A BatchNorm has `running_mean`
    and `running_var`, already divided by the scale factor that Caffe keeps in a third blob; a Scale has `weight` and
    `bias`. Blobs of other layers have their numbers as names.

    Raises:
        UserError: the file has Caffe's first format, or a layer cannot be what it says.
        google.protobuf.message.DecodeError: it is damaged, or not a network.
    """
    network = _Network()
    network.ParseFromString(file.read(size))
    if network.layers:
        raise UserError(
            "it has the layers of Caffe's first format (V1): upgrade it with Caffe's upgrade_net_proto_binary"
        )
    if len(network.layer) > MAX_LAYERS:
        raise UserError(f"it has {len(network.layer)} layers: damaged or hostile")
    contents: dict[str, dict[str, Any]] = {}
    for layer in network.layer:
        if not layer.blobs:
            continue
        if layer.name in contents:
            raise UserError(f"it has two layers named {label(layer.name, 80)}")
        try:
            contents[layer.name] = _parts(layer)
        except UserError as error:
            raise UserError(f"layer {label(layer.name, 80)} {error}") from None
    return contents, {}


def _parts(layer: Any) -> dict[str, Any]:
    """Return a layer's tensors. Raises `UserError` with what the layer does wrong, without its name."""
    kind, count = layer.type, len(layer.blobs)
    if kind == "BatchNorm":
        return _statistics(layer)
    most = 2 if kind in ("Convolution", "InnerProduct", "Scale") else MAX_BLOBS
    if count > most:
        raise UserError(
            f"has {count} blobs, and a {label(kind, 40)} at most {most}: damaged, or of another kind of Caffe"
        )
    if most == MAX_BLOBS:
        return {str(number): _tensor(blob) for number, blob in enumerate(layer.blobs)}
    parts: dict[str, Any] = {"weight": _tensor(layer.blobs[0], flat=kind == "Scale")}
    if count > 1:
        parts["bias"] = _tensor(layer.blobs[1], flat=True)
    if len(strides := set(layer.convolution_param.stride)) == 1:
        parts["stride"] = strides.pop()
    return parts


def _statistics(layer: Any) -> dict[str, Any]:
    if len(layer.blobs) != 3:
        raise UserError(
            f"has {len(layer.blobs)} blobs instead of mean, variance and scale factor: damaged, or of another kind of "
            "Caffe"
        )
    parameters = layer.batch_norm_param
    if parameters.HasField("eps") and not math.isclose(parameters.eps, EPS, rel_tol=1e-6):
        raise UserError(f"has an eps of {parameters.eps:g}; detectron2 builds only {EPS:g}")
    mean, variance, factor = (_tensor(blob, flat=True) for blob in layer.blobs)
    divisor = array.array("f", factor.storage.data)
    if len(divisor) != 1 or not 0 < divisor[0] < math.inf:
        found = f"{divisor[0]:g}" if len(divisor) == 1 else f"{len(divisor)} numbers"
        raise UserError(
            f"has {found} as its scale factor instead of a number above 0: it was never trained, or is damaged"
        )
    for part in (mean, variance):
        values = array.array("f", part.storage.data)
        part.storage.data = array.array("f", (value / divisor[0] for value in values)).tobytes()
    return {"running_mean": mean, "running_var": variance}


def _tensor(blob: Any, *, flat: bool = False) -> Tensor:
    """Return a blob; if `flat`, in one dimension, since old files have four for everything."""
    data = b"".join(blob.data)
    shape = (
        tuple(blob.shape.dim)
        if blob.HasField("shape")
        else (blob.num, blob.channels, blob.height, blob.width)
    )
    if len(shape) > MAX_DIMENSIONS or min(shape, default=1) < 0 or math.prod(shape) * 4 != len(data):
        raise UserError(f"has a blob of shape {label(shape, 60)} with {len(data) // 4} numbers: damaged")
    if flat:
        shape = (math.prod(shape),)
    strides = tuple(math.prod(shape[d + 1 :]) for d in range(len(shape)))
    return Tensor(Storage("float32", len(data), data), "float32", 0, shape, strides)
