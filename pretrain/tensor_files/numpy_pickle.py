"""NumPy arrays inside pickles, as in detectron2's weights: built from bytes without calling what a file names."""

import math
import re
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy

from pretrain.common.errors import UserError
from pretrain.tensor_files.pickle_machine import Buildable, Constructor, Machine, label

MAX_PAIRS = 100_000  # in an OrderedDict that is stored as a list


def read_pickle(path: Path, data: bytes, more: Mapping[tuple[str, str], Constructor] | None = None) -> Any:
    """Read a pickle of dicts, lists, strings, numbers and NumPy arrays, which become `Array`s.

    Args:
        more: the replacements of other globals that it may use: (module, name) -> constructor.
    Raises:
        UserError: it holds anything else.
    """
    objects = NumpyObjects(4 * len(data))
    objects.known |= more or {}
    try:
        return Machine(data, objects.resolve).load()
    except UserError as error:
        raise UserError(f"{path}: refused: {error}") from None
    except Exception as error:  # damaged data can raise anything
        reason = label(" ".join(str(error).split()), 160) or type(error).__name__
        raise UserError(f"{path}: not a readable weights file (truncated?): {reason}") from None


class Dtype(Buildable):
    """A number type; only its kind, size and byte order are used."""

    def __init__(self, name: Any, *_: Any) -> None:
        match = re.fullmatch(r"([<>|=]?)([fiub][1248])", str(name)) if isinstance(name, str) else None
        if not match:
            raise UserError(f"it holds an array of type {label(name, 20)!r}; only arrays of numbers are read")
        self.kind, self.order = match[2], match[1]

    def build(self, state: Any) -> None:
        self.order = ">" if state[1] == ">" else "<"

    def numpy(self) -> numpy.dtype:
        return numpy.dtype((">" if self.order == ">" else "<") + self.kind)


class Array(Buildable):
    """A NumPy array of a pickle; `value` is set once its declared size has been checked against its data."""

    def __init__(self, owner: "NumpyObjects") -> None:
        self.owner = owner
        self.value: numpy.ndarray | None = None

    def build(self, state: Any) -> None:
        _, shape, dtype, fortran, data = state
        self.value = self.owner.filled(data, dtype, shape, fortran=bool(fortran))


class NumpyObjects:
    """The replacements of NumPy's constructors for one file.

    Args:
        budget: bytes that all arrays together may have, since the same data can be used for many arrays.
    """

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.known = {
            ("numpy.core.multiarray", "_reconstruct"): Constructor(self.reconstruct),
            ("numpy.core.multiarray", "scalar"): Constructor(self.scalar),
            ("numpy.core.numeric", "_frombuffer"): Constructor(self.from_buffer),
            ("numpy", "ndarray"): Constructor(_no_call, "numpy.ndarray"),
            ("numpy", "dtype"): Constructor(Dtype),
            ("_codecs", "encode"): Constructor(self.encode),
            ("collections", "OrderedDict"): Constructor(ordered),
        }

    def resolve(self, module: str, name: str) -> Any:
        """Return the replacement of a global. Raises `UserError` if it does not belong to NumPy arrays."""
        known = self.find(module, name)
        if known is None:
            raise UserError(
                f"it uses {label(f'{module}.{name}')}; only arrays and tensors are read from a .pkl"
            )
        return known

    def find(self, module: str, name: str) -> Constructor | None:
        return self.known.get((module.replace("numpy._core", "numpy.core"), name))  # the name in NumPy 2

    def spend(self, size: int) -> None:
        self.budget -= size
        if self.budget < 0:
            raise UserError("its arrays are larger than the file: hostile")

    def filled(self, data: Any, dtype: Any, shape: Any, *, fortran: bool) -> numpy.ndarray:
        if not isinstance(dtype, Dtype) or not isinstance(shape, tuple) or not isinstance(data, bytes | str):
            raise UserError("it holds an array that does not consist of numbers")
        self.spend(len(data))
        raw = data.encode("latin1") if isinstance(data, str) else data
        kind = dtype.numpy()
        if len(shape) > 16 or any(type(n) is not int or n < 0 for n in shape):
            raise UserError("it holds an array with a negative size: damaged")
        if math.prod(shape) * kind.itemsize != len(raw):
            raise UserError(
                f"it holds an array of shape {label(str(shape), 60)} with {len(raw)} bytes: damaged"
            )
        array = numpy.frombuffer(raw, kind).reshape(shape, order="F" if fortran else "C")
        return array.astype(kind.newbyteorder("="))  # a writable copy

    def reconstruct(self, _: Any, shape: Any, __: Any) -> Array:
        if shape != (0,):
            raise UserError("it creates an array without data: damaged or hostile")
        return Array(self)

    def from_buffer(self, raw: Any, dtype: Any, shape: Any, order: Any) -> Array:
        array = Array(self)
        array.value = self.filled(raw, dtype, shape, fortran=order == "F")
        return array

    def scalar(self, dtype: Any, raw: Any) -> Any:
        return self.filled(raw, dtype, (), fortran=False).item()

    def encode(self, text: Any, encoding: Any = "latin1", *_: Any) -> bytes:
        if encoding not in ("latin1", "latin-1") or not isinstance(text, str):
            raise UserError(f"it uses the text encoding {label(encoding, 20)}")
        self.spend(len(text))
        return text.encode("latin1")


def _no_call(*_: Any) -> None:
    raise UserError("it calls numpy.ndarray: damaged or hostile")


def ordered(pairs: Any = (), *_: Any) -> Any:
    """Return an `OrderedDict`, whose entries Python 2 pickled as a list of pairs."""
    if not isinstance(pairs, list | tuple) or len(pairs) > MAX_PAIRS:
        raise UserError("it holds an OrderedDict in an unknown form: damaged or hostile")
    made: OrderedDict[str, Any] = OrderedDict()
    for pair in pairs:
        if not isinstance(pair, list | tuple) or len(pair) != 2 or not isinstance(pair[0], str):
            raise UserError("it holds an OrderedDict in an unknown form: damaged or hostile")
        made[pair[0]] = pair[1]
    return made
