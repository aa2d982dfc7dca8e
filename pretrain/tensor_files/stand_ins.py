"""Unpickling with a stand-in for everything that a pickle names, so that it can build nothing but plain data.

Only the reader in the box (`inside.py`) uses this. It imports neither torch nor NumPy: a tensor is described by its
storage's bytes, dtype, shape and strides, as both libraries pickle it.
"""

import array
import math
import pickle
import re
import struct
from collections.abc import Callable
from typing import IO, Any

from pretrain.common.errors import UserError, label

MAX_DIMENSIONS = 16
SIZES = {
    "float64": 8, "float32": 4, "float16": 2, "bfloat16": 2, "int64": 8, "int32": 4, "int16": 2, "int8": 1,
    "uint64": 8, "uint32": 4, "uint16": 2, "uint8": 1, "bool": 1, "complex64": 8, "complex128": 16,
    "float8_e4m3fn": 1, "float8_e4m3fnuz": 1, "float8_e5m2": 1, "float8_e5m2fnuz": 1,
}  # fmt: skip
_STORAGES = {
    "DoubleStorage": "float64", "FloatStorage": "float32", "HalfStorage": "float16", "BFloat16Storage": "bfloat16",
    "LongStorage": "int64", "IntStorage": "int32", "ShortStorage": "int16", "CharStorage": "int8",
    "ByteStorage": "uint8", "BoolStorage": "bool", "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128", "QInt8Storage": "int8", "QUInt8Storage": "uint8", "QInt32Storage": "int32",
    "UntypedStorage": "uint8",
}  # fmt: skip
_FORMATS = {"f2": "e", "f4": "f", "f8": "d", "b1": "?", "i1": "b", "i2": "h", "i4": "i", "i8": "q",
            "u1": "B", "u2": "H", "u4": "I", "u8": "Q"}  # fmt: skip
_NAMES = {"f": "float", "i": "int", "u": "uint"}
_WORDS = {2: "H", 4: "I", 8: "Q"}


class Foreign(dict):
    """An object of a class that is not loaded; its subclasses stand for one class each. It keeps a dict's entries."""

    name = ""

    def __new__(cls, *_: Any, **__: Any) -> "Foreign":
        return super().__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def __call__(self, *_: Any, **__: Any) -> "Foreign":  # a method of it
        return self

    def __setstate__(self, _: Any) -> None: ...

    append = extend = add = __setstate__
    __hash__ = object.__hash__  # type: ignore[assignment]
    __eq__ = object.__eq__


class Mapping(dict):
    """A dict of a known class. Its attributes, such as `_metadata`, are not needed."""

    def __setstate__(self, _: Any) -> None: ...


class DefaultDict(Mapping):
    def __init__(self, *_: Any) -> None:
        super().__init__()


class Function:
    """The stand-in of a function or of a class that is loaded."""

    def __init__(self, name: str, make: Callable[..., Any]) -> None:
        self.name, self.make = name, make

    def __call__(self, *arguments: Any) -> Any:
        return self.make(*arguments)

    def __setstate__(self, _: Any) -> None:
        raise UserError(f"it sets the state of {self.name}: damaged or hostile")


class Dtype(str):
    """The name of a torch dtype."""


class Storage:
    """A tensor's memory.

    Args:
        dtype: of its elements, by torch's name.
        size: in bytes.
        data: its bytes, which can be set later than the tensors are made.
        whole, start: for a part of another storage: that one, and the part's first element.
    """

    def __init__(
        self, dtype: str, size: int, data: bytes = b"", *, whole: "Storage | None" = None, start: int = 0
    ) -> None:
        self.dtype, self.size, self.data, self.whole, self.start = dtype, size, data, whole, start

    def __setstate__(self, _: Any) -> None:
        raise UserError("it sets the state of a storage: damaged or hostile")


class Tensor:
    """A strided view of a storage. Offset and strides count elements of its dtype.

    Raises:
        UserError: it does not lie within its storage.
    """

    def __init__(
        self, storage: Storage, dtype: str, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]
    ) -> None:
        self.storage, self.dtype, self.offset, self.shape, self.strides = (
            storage,
            dtype,
            offset,
            shape,
            strides,
        )
        if any(type(n) is not int or not 0 <= n < 1 << 62 for n in (offset, *shape, *strides)) or (
            len(shape) != len(strides)
        ):
            raise UserError("it has a tensor with a negative size: damaged")
        if math.prod(shape) == 0:
            if max(shape) > 1 << 31:
                raise UserError("it has an empty tensor of endless size: damaged")
            return
        last = offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
        count = storage.size // SIZES[dtype]
        if last >= count:
            raise UserError(
                f"it has a tensor of shape {label(shape, 60)} that is larger than its {count} numbers: damaged"
            )

    def __setstate__(self, _: Any) -> None: ...  # a parameter's attributes

    def in_whole(self) -> "Tensor":
        """Return the same tensor as a view of the whole storage."""
        if self.storage.whole is None:
            return self
        return Tensor(
            self.storage.whole, self.dtype, self.offset + self.storage.start, self.shape, self.strides
        )


class NumpyDtype:
    """A NumPy dtype of numbers; `name` is None for strings, objects and dates."""

    def __init__(self, code: Any, *, strict: bool) -> None:
        match = re.fullmatch(r"([<>|=]?)([fiub][1248])", code) if type(code) is str else None
        self.code = match[2] if match and match[2] in _FORMATS else None
        self.swapped = bool(match and match[1] == ">")
        if strict and not self.code:
            raise UserError(f"it holds an array of type {label(code, 20)!r}; only arrays of numbers are read")

    def __setstate__(self, state: Any) -> None:
        self.swapped = type(state) is tuple and state[1:2] == (">",)


class NumpyArray:
    """A NumPy array; `tensor` stays None if it does not hold numbers."""

    def __init__(self, *, strict: bool) -> None:
        self.strict = strict
        self.tensor: Tensor | None = None

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, data = state
        self.fill(data, dtype, shape, fortran=bool(fortran))

    def fill(self, data: Any, dtype: Any, shape: Any, *, fortran: bool) -> "NumpyArray":
        if (
            not isinstance(dtype, NumpyDtype)
            or not dtype.code
            or not isinstance(data, bytes | bytearray | str)
        ):
            if self.strict:
                raise UserError("it holds an array that does not consist of numbers")
            return self
        raw = data.encode("latin1") if isinstance(data, str) else bytes(data)
        size, shape = int(dtype.code[1]), _shape(shape)
        if math.prod(shape) * size != len(raw):
            raise UserError(f"it holds an array of shape {label(shape, 60)} with {len(raw)} bytes: damaged")
        if dtype.swapped and size > 1:
            words = array.array(_WORDS[size], raw)
            words.byteswap()
            raw = words.tobytes()
        name = "bool" if dtype.code == "b1" else f"{_NAMES[dtype.code[0]]}{8 * size}"
        strides = [math.prod(shape[:d] if fortran else shape[d + 1 :]) for d in range(len(shape))]
        self.tensor = Tensor(Storage(name, len(raw), raw), name, 0, shape, tuple(strides))
        return self


class Unpickler(pickle.Unpickler):
    """Python's unpickler; what a pickle names is looked up in a closed list.

    Args:
        storage: function (dtype, key, number of elements, view) -> `Storage`, for torch's files.
        load_bytes: function (bytes) -> the object in a torch file inside a pickle.
        strict: refuse names that are not in the list. Otherwise a `Foreign` object stands for them.

    Attributes:
        foreign: the names that were not in the list -> their stand-ins.

    Raises:
        UserError: by `load`, if the pickle does something that no weights file does. Damaged data raise any exception.
    """

    def __init__(
        self,
        file: IO[bytes],
        *,
        storage: Callable[..., Storage] | None = None,
        load_bytes: Callable[[bytes], Any] | None = None,
        strict: bool = False,
    ) -> None:
        super().__init__(file, encoding="latin1")  # of array data that Python 2 pickled
        self.storage, self.strict = storage, strict
        self.foreign: dict[str, type[Foreign]] = {}
        functions: dict[str, Callable[..., Any]] = {
            "torch._utils._rebuild_tensor": _tensor,
            "torch._utils._rebuild_tensor_v2": _tensor,
            "torch._utils._rebuild_tensor_v3": _typed_tensor,
            "torch._utils._rebuild_qtensor": _tensor,
            "torch._utils._rebuild_parameter": _first,
            "torch._utils._rebuild_parameter_with_state": _first,
            "torch.Size": _shape,
            "numpy.ndarray": _no_call,
            "numpy.dtype": lambda code="", *_: NumpyDtype(code, strict=strict),
            "numpy.core.multiarray._reconstruct": lambda *_: NumpyArray(strict=strict),
            "numpy.core.multiarray.scalar": _scalar,
            "numpy.core.numeric._frombuffer": lambda data, dtype, shape, order: NumpyArray(
                strict=strict
            ).fill(data, dtype, shape, fortran=order == "F"),
            "_codecs.encode": _encode,
        }
        if load_bytes:
            functions["torch.storage._load_from_bytes"] = load_bytes
        self.known: dict[str, Any] = {name: Function(name, make) for name, make in functions.items()}
        rebuild = [self.known[f"torch._utils._rebuild_{n}"] for n in ("tensor_v2", "tensor_v3", "parameter")]
        self.known["torch._tensor._rebuild_from_type_v2"] = Function(
            "_rebuild_from_type_v2", _from_type(rebuild)
        )
        self.known |= {"collections.OrderedDict": Mapping, "collections.defaultdict": DefaultDict}
        self.known |= {f"torch.{name}": Dtype(name) for name in SIZES}
        self.known |= {f"torch.{name}": Dtype(kind) for name, kind in _STORAGES.items()}
        self.known |= {f"torch.storage.{name}": Dtype(kind) for name, kind in _STORAGES.items()}

    def find_class(self, module: str, name: str) -> Any:
        """Return the stand-in of a global."""
        full = f"{module.replace('numpy._core', 'numpy.core')}.{name}"  # the name in NumPy 2
        if full in self.known:
            return self.known[full]
        if self.strict:
            raise UserError(f"it uses {label(full)}; only arrays and tensors are read from a .pkl")
        if full not in self.foreign:
            self.foreign[full] = type("Foreign", (Foreign,), {"name": label(full)})
        return self.foreign[full]

    def persistent_load(self, identity: Any) -> Any:
        """Return the storage that ("storage", type, key, location, number of elements[, view]) names."""
        if not isinstance(identity, tuple) or len(identity) < 2 or self.storage is None:
            raise UserError("it refers to data outside of the pickle: not a weights file, or damaged")
        if identity[0] == "module":  # in pickled networks before PyTorch 1.6: a class and its source code
            return identity[1]
        _, dtype, key, _, count, *view = identity
        if not isinstance(dtype, Dtype):
            return _foreign(dtype)
        if not isinstance(key, str | int) or type(count) is not int or not 0 <= count < 1 << 62:
            raise UserError("it has a storage of a negative size: damaged")
        return self.storage(dtype, key, count, view[0] if view else None)


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> Any:
    """Return a tensor of its storage's dtype. The last of `rest` may mark a lazy negation or conjugation."""
    if not isinstance(storage, Storage):
        return _foreign(storage)
    if any(isinstance(part, dict) and (part.get("neg") or part.get("conj")) for part in rest):
        raise UserError("it has a tensor with a lazy negation or conjugation: save a copy of it (.clone())")
    return Tensor(storage, storage.dtype, offset, _shape(size), _shape(stride))


def _typed_tensor(storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> Any:
    """Return a tensor of a dtype without its own storage class, such as uint16, from a storage of bytes."""
    dtype = rest[2] if len(rest) > 2 else None
    if not isinstance(storage, Storage) or not isinstance(dtype, Dtype):
        return _foreign(dtype)
    return Tensor(storage, str(dtype), offset, _shape(size), _shape(stride))


def _from_type(rebuild: list[Function]) -> Callable[..., Any]:
    """Return a function for tensors of a subclass, such as torchvision's, and for parameters with attributes."""

    def make(function: Any, kind: Any, arguments: Any, *_: Any) -> Any:
        return function(*arguments) if any(function is known for known in rebuild) else _foreign(kind)

    return make


def _foreign(value: Any) -> Foreign:
    """Return a stand-in for something made of an object, or of a class, that is not loaded."""
    if isinstance(value, type) and issubclass(value, Foreign):
        return value()
    if isinstance(value, Foreign):
        return value
    raise UserError("it makes a tensor of something that is no storage: damaged or hostile")


def _first(value: Any, *_: Any) -> Any:
    return value


def _shape(items: Any = (), *_: Any) -> tuple[Any, ...]:
    if not isinstance(items, tuple | list) or len(items) > MAX_DIMENSIONS:
        raise UserError("it has a tensor with too many dimensions: damaged")
    return tuple(items)


def _scalar(dtype: Any, data: Any = b"") -> Any:
    if not isinstance(dtype, NumpyDtype) or not dtype.code or not isinstance(data, bytes | str):
        return Foreign()
    raw = data.encode("latin1") if isinstance(data, str) else data
    return struct.unpack(("><"[not dtype.swapped]) + _FORMATS[dtype.code], raw)[0]


def _encode(text: Any, encoding: Any = "latin1", *_: Any) -> bytes:
    if encoding not in ("latin1", "latin-1") or not isinstance(text, str):
        raise UserError(f"it uses the text encoding {label(encoding, 20)}")
    return text.encode("latin1")


def _no_call(*_: Any) -> None:
    raise UserError("it calls numpy.ndarray: damaged or hostile")
