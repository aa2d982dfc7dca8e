"""Pickles of numpy arrays, as detectron2 keeps weights: read by an unpickler that knows nothing else."""

import math
import pickle
import pickletools
import re
from collections import OrderedDict
from pathlib import Path
from typing import IO, Any

import numpy

from pretrain.errors import UserError

MAX_OBJECTS = 2_000_000  # memo entries: the largest real files have some 10,000


def read_pickle(path: Path) -> Any:
    """A pickle of dicts, lists, texts, numbers and numpy arrays, which become tensors' `Array`s.

    Raises `UserError` for anything else in it.
    """
    try:
        with open(path, "rb") as file:
            scan(file)
            file.seek(0)
            return _Unpickler(file, encoding="latin1").load()  # latin1: arrays pickled by Python 2
    except UserError as error:
        raise UserError(f"{path}: refused: {error}") from None
    except Exception as error:  # pickle and numpy raise a dozen classes on damaged data
        reason = " ".join(str(error).split())[:160]
        raise UserError(f"{path}: not a readable weights file (truncated?): {reason}") from None


def scan(file: IO[bytes]) -> None:
    """Walk the opcodes without executing them: memo indices would be allocated as they are claimed."""
    for opcode, argument, _ in pickletools.genops(file):
        if "PUT" in opcode.name and argument is not None and int(argument) > MAX_OBJECTS:
            raise UserError(f"it claims {argument} objects: damaged or hostile")
        if opcode.name in ("EXT1", "EXT2", "EXT4"):
            raise UserError(f"it uses the pickle opcode {opcode.name}, which no file of weights needs")


class _Dtype:
    """A number type; only its kind, size and byte order count."""

    def __init__(self, name: Any, *_: Any) -> None:
        match = re.fullmatch(r"[<>|=]?([fiub])(1|2|4|8)", str(name))
        if not match:
            raise UserError(f"it holds an array of type {str(name)[:20]!r}; only arrays of numbers are read")
        self.name, self.order = match[0].lstrip("<>|="), "<"

    def __setstate__(self, state: Any) -> None:
        self.order = ">" if state[1] == ">" else "<"

    def numpy(self) -> numpy.dtype:
        return numpy.dtype(self.order + self.name)


class Array:
    """A numpy array of a pickle; `value` is set once its claimed size has proved to be that of its data."""

    value: numpy.ndarray

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, data = state
        raw = data.encode("latin1") if isinstance(data, str) else data
        self.value = _filled(raw, dtype, shape, fortran=fortran)


def _filled(raw: Any, dtype: _Dtype, shape: tuple[int, ...], *, fortran: bool) -> numpy.ndarray:
    kind = dtype.numpy()
    if any(not isinstance(n, int) or n < 0 for n in shape) or math.prod(shape) * kind.itemsize != len(raw):
        raise UserError(f"it holds an array of shape {shape} with {len(raw)} bytes: damaged")
    array = numpy.frombuffer(raw, kind).reshape(shape, order="F" if fortran else "C")
    return array.astype(kind.newbyteorder("="))  # a copy that can be written to


def _reconstruct(_: Any, shape: Any, __: Any) -> Array:
    if tuple(shape) != (0,):
        raise UserError(f"it asks for an array of shape {shape} without data: damaged or hostile")
    return Array()


def _from_buffer(raw: Any, dtype: _Dtype, shape: Any, order: str) -> Array:
    array = Array()
    array.value = _filled(raw, dtype, tuple(shape), fortran=order == "F")
    return array


def _scalar(dtype: _Dtype, raw: Any) -> Any:
    return _filled(raw.encode("latin1") if isinstance(raw, str) else raw, dtype, (), fortran=False).item()


def _encode(text: str, encoding: str) -> bytes:
    if encoding not in ("latin1", "latin-1"):
        raise UserError(f"it asks for text in {str(encoding)[:20]!r}")
    return text.encode("latin1")


class _NoType:
    """Stands for `numpy.ndarray` as an argument; making one by a call is refused."""

    def __init__(self, *_: Any) -> None:
        raise UserError("it calls numpy.ndarray: damaged or hostile")


KNOWN: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy.core.multiarray", "scalar"): _scalar,
    ("numpy.core.numeric", "_frombuffer"): _from_buffer,
    ("numpy", "ndarray"): _NoType,
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _encode,
    ("collections", "OrderedDict"): OrderedDict,
}


class _Unpickler(pickle.Unpickler):
    """Answers numpy's constructors by the functions above, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        known = KNOWN.get((module.replace("numpy._core", "numpy.core"), name))  # as numpy 2 writes it
        if known is None:
            raise UserError(f"the file asks for {module}.{name}; only numpy arrays are read from a .pkl")
        return known
