"""The replacements of PyTorch's own classes and functions while a checkpoint is read."""

import math
from collections.abc import Callable
from typing import Any

import torch

from pretrain.common.errors import UserError
from pretrain.tensor_files.numpy_pickle import Array, Dtype, NumpyObjects
from pretrain.tensor_files.pickle_machine import Buildable, Constructor, Opaque, label

_STORAGES = {
    "DoubleStorage": torch.float64, "FloatStorage": torch.float32, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64, "ComplexDoubleStorage": torch.complex128,
    "QInt8Storage": torch.int8, "QUInt8Storage": torch.uint8, "QInt32Storage": torch.int32,
    "UntypedStorage": torch.uint8,
}  # fmt: skip
_DTYPES = {str(kind): kind for kind in vars(torch).values() if isinstance(kind, torch.dtype)}
MAX_DIMENSIONS = 16

Storage = Callable[[torch.dtype, Any, Any, Any], torch.Tensor]


class _Lenient(Buildable):
    """An array of strings, objects or dates next to the weights, which is dropped."""

    def build(self, _: Any) -> None: ...


class _Inner(Array):
    """A NumPy array in a torch file; `value` stays None if it does not hold numbers."""

    def build(self, state: Any) -> None:
        if isinstance(state, tuple) and len(state) == 5 and isinstance(state[2], Dtype):
            super().build(state)


class TorchObjects:
    """Globals and storages of one checkpoint.

    Attributes:
        opaque: the classes in the file that were not loaded, by name.

    Args:
        storage: function (dtype, key, number of elements, view) -> the storage as a flat tensor.
        budget: bytes that all NumPy arrays in the file together may have.
    """

    def __init__(self, storage: Storage, budget: int) -> None:
        self.storage = storage
        self.numpy = NumpyObjects(budget)
        self.opaque: dict[str, Constructor] = {}
        self.own = {
            "torch._utils._rebuild_tensor_v2": Constructor(_tensor),
            "torch._utils._rebuild_tensor": Constructor(_tensor),
            "torch._utils._rebuild_tensor_v3": Constructor(_typed_tensor),
            "torch._utils._rebuild_qtensor": Constructor(_tensor),
            "torch._utils._rebuild_parameter": Constructor(_parameter),
            "torch._utils._rebuild_parameter_with_state": Constructor(_parameter),
            "torch._tensor._rebuild_from_type_v2": Constructor(self._from_type),
            "torch.Size": Constructor(_size),
            "collections.defaultdict": Constructor(lambda *_: {}),
            "numpy.dtype": Constructor(_dtype),
            "numpy.core.multiarray._reconstruct": Constructor(lambda *_: _Inner(self.numpy)),
            "numpy.core.multiarray.scalar": Constructor(self._scalar),
        }

    def resolve(self, module: str, name: str) -> Any:
        full = f"{module.replace('numpy._core', 'numpy.core')}.{name}"
        if full in self.own:
            return self.own[full]
        if module in ("torch", "torch.storage") and name in _STORAGES:
            return _STORAGES[name]
        if full in _DTYPES:
            return _DTYPES[full]
        known = self.numpy.find(module, name)
        if known is not None:
            return known
        if full not in self.opaque:
            text = label(full)
            self.opaque[full] = Constructor(lambda *_: Opaque(text), text)
        return self.opaque[full]

    def persistent(self, identity: Any) -> Any:
        """Map ("storage", type, key, location, number of elements[, view]) to the storage as a flat tensor."""
        if not isinstance(identity, tuple) or len(identity) < 2:
            raise UserError("it refers to data outside of the pickle in an unknown way: damaged")
        if identity[0] == "module":  # in pickled networks before PyTorch 1.6: a class and its source code
            return identity[1]
        _, kind, key, _, count, *view = identity
        if not isinstance(kind, torch.dtype):
            return Opaque(label(kind))
        if not isinstance(key, str | int) or type(count) is not int or count < 0:
            raise UserError("it has a storage of a negative size: damaged")
        return self.storage(kind, key, count, view[0] if view else None)

    def _from_type(self, function: Any, kind: Any, arguments: Any, *_: Any) -> Any:
        """Return a tensor of a subclass, such as torchvision's, or a parameter with attributes."""
        plain = [
            self.own[f"torch._utils._rebuild_{name}"] for name in ("tensor_v2", "tensor_v3", "parameter")
        ]
        if any(function is known for known in plain) and isinstance(arguments, tuple):
            return function.make(*arguments)
        return Opaque(label(kind))

    def _scalar(self, dtype: Any, raw: Any = b"") -> Any:
        return self.numpy.scalar(dtype, raw) if isinstance(dtype, Dtype) else Opaque("numpy.scalar")


def _dtype(name: Any = "", *_: Any) -> Any:
    try:
        return Dtype(name)
    except UserError:
        return _Lenient()


def _size(items: Any = (), *_: Any) -> tuple[Any, ...]:
    if not isinstance(items, tuple | list) or len(items) > MAX_DIMENSIONS:
        raise UserError("it has a tensor with too many dimensions: damaged")
    return tuple(items)


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> Any:
    """Return a view of a storage. The last of `rest` may mark a lazy negation or conjugation."""
    if not isinstance(storage, torch.Tensor):  # an object of a class that was not loaded
        return Opaque(label(storage))
    size, stride = _size(size), _size(stride)
    if any(type(n) is not int or n < 0 for n in (offset, *size, *stride)) or len(size) != len(stride):
        raise UserError("it has a tensor with a negative size: damaged")
    if math.prod(size) == 0:
        return torch.empty(0, dtype=storage.dtype)
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if last >= storage.numel():
        shape = label(str(size), 60)
        raise UserError(
            f"it has a tensor of shape {shape} that is larger than its {storage.numel()} numbers: damaged"
        )
    if any(isinstance(part, dict) and (part.get("neg") or part.get("conj")) for part in rest):
        raise UserError("it has a tensor with a lazy negation or conjugation: save a copy of it (.clone())")
    return torch.as_strided(storage, size, stride, offset)


def _typed_tensor(storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> Any:
    """Return a tensor of a type without its own storage class, such as uint16, from a storage of bytes."""
    kind = rest[2] if len(rest) > 2 else None
    if not isinstance(storage, torch.Tensor) or not isinstance(kind, torch.dtype):
        return Opaque(label(str(kind)))
    whole = storage[: storage.numel() - storage.numel() % kind.itemsize]
    return _tensor(whole.view(kind), offset, size, stride, *rest[3:])


def _parameter(data: Any, *_: Any) -> Any:
    return data
