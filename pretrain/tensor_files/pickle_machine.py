"""Our own pickle interpreter: it builds plain data and calls nothing that a file names.

Python's unpickler calls whatever its `find_class` returns, lets a file set attributes of it, allocates memory for any
memo index, and hashes nested tuples without a limit, which crashes the interpreter. Here a global is one of our
`Constructor`s or an inert `Opaque`, and all sizes are bounded by the size of the file.
"""

import codecs
import struct
from collections.abc import Callable
from typing import Any

from pretrain.common import errors
from pretrain.common.errors import UserError

MAX_STEPS = 3_000_000  # opcodes; the largest real files have about 100,000
MAX_INTEGER = 256  # bytes
MAX_KEYS = 10_000  # keys of a dict that are not strings: hashes of numbers can be made to collide
MAX_KEY_PARTS = 64  # parts of a tuple used as a key


class Constructor:
    """The replacement of a function or class that a file names: `make(*arguments)` is called instead."""

    __slots__ = ("make", "name")

    def __init__(self, make: Callable[..., Any], name: str = "") -> None:
        self.make, self.name = make, name


class Buildable:
    """An object whose state a pickle sets after creating it."""

    def build(self, state: Any) -> None:
        """Set the state. Raises an exception if it is damaged."""
        raise NotImplementedError


class Opaque(dict):
    """The replacement of an object whose class is not loaded. It keeps the entries of a dict subclass."""

    __slots__ = ("name",)

    def __init__(self, name: str = "") -> None:
        super().__init__()
        self.name = name

    def __hash__(self) -> int:  # type: ignore[override]
        return id(self)


def label(value: Any, limit: int = errors.SHOWN) -> str:
    """Return a key or name from a file as `pretrain.common.errors.label` does, and a class in the file by its name."""
    if isinstance(value, tuple):
        value = tuple(map(_name, value[:8]))
    return errors.label(_name(value), limit)


def _name(value: Any) -> Any:
    return value.name if isinstance(value, Constructor | Opaque) else value


class Machine:
    """An interpreter for the opcodes of one pickle after another.

    Args:
        data: the file's bytes.
        resolve: function (module, name) -> replacement of that global: a `Constructor` or plain data.
        persistent: function identity -> object, for torch's storages.
        position: offset of the first opcode.
    """

    def __init__(
        self,
        data: bytes | bytearray,
        resolve: Callable[[str, str], Any],
        *,
        persistent: Callable[[Any], Any] | None = None,
        position: int = 0,
    ) -> None:
        self.data, self.position = data, position
        self.resolve, self.persistent = resolve, persistent
        self.steps = self.keys = 0
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def load(self) -> Any:
        """Return the object of the next pickle.

        Raises:
            UserError: the pickle does something that no weights file does. Damaged data can raise any exception.
        """
        self.stack, self.marks, self.memo = [], [], {}
        data = self.data
        while True:
            code = data[self.position]
            self.position += 1
            if code == 0x2E:  # STOP
                return self.stack.pop()
            operation = _OPERATIONS.get(code)
            if operation is None:
                raise UserError(f"it uses the pickle opcode {code:#x}, which no weights file needs")
            operation(self)
            self.steps += 1
            if self.steps > MAX_STEPS:
                raise UserError(f"it holds more than {MAX_STEPS} objects: damaged or hostile")

    def take(self, count: int) -> bytes:
        """Return the next `count` bytes."""
        end = self.position + count
        if count < 0 or end > len(self.data):
            raise EOFError("it ends in the middle of an object")
        part = self.data[self.position : end]
        self.position = end
        return bytes(part)

    def byte(self) -> int:
        self.position += 1
        return self.data[self.position - 1]

    def unsigned(self, size: int) -> int:
        return int.from_bytes(self.take(size), "little")

    def number(self, form: str) -> Any:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def line(self, limit: int = 1 << 16) -> bytes:
        end = self.data.find(b"\n", self.position, self.position + limit)
        if end < 0:
            raise EOFError("it ends in the middle of a line")
        part = bytes(self.data[self.position : end])
        self.position = end + 1
        return part

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def mark(self) -> None:
        self.marks.append(self.stack)
        self.stack = []

    def items(self) -> list[Any]:
        """Return what was pushed since the last mark, and remove it."""
        found, self.stack = self.stack, self.marks.pop()
        return found

    def call(self, function: Any, arguments: Any) -> Any:
        if not isinstance(arguments, tuple):
            raise UserError("it calls something without a tuple of arguments: damaged or hostile")
        if isinstance(function, Opaque):  # a method of an unknown class
            return function
        if not isinstance(function, Constructor):
            raise UserError(f"it calls a {type(function).__name__}: damaged or hostile")
        return function.make(*arguments)

    def reduce(self) -> None:
        arguments = self.stack.pop()
        self.stack[-1] = self.call(self.stack[-1], arguments)

    def new_with_keywords(self) -> None:
        self.stack.pop()
        self.reduce()

    def instance(self) -> None:
        module, name = self.line().decode(), self.line().decode()
        arguments = tuple(self.items())
        self.push(self.call(self.resolve(module, name), arguments))

    def old_object(self) -> None:
        function, *arguments = self.items()
        self.push(self.call(function, tuple(arguments)))

    def build(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, Buildable):
            target.build(state)
        # Attributes of a dict, such as `_metadata`, and of a parameter are not needed.
        elif not isinstance(target, dict) and type(target).__module__ != "torch":
            raise UserError(f"it sets the state of a {type(target).__name__}: damaged or hostile")

    def named(self) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        if not (isinstance(name, str) and isinstance(module, str)):
            raise UserError("it refers to a global without a name: damaged or hostile")
        self.push(self.resolve(module, name))

    def identified(self, identity: Any) -> None:
        if self.persistent is None:
            raise UserError("it refers to data outside of the pickle: not a weights file")
        self.push(self.persistent(identity))

    def append(self, values: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, list):
            target.extend(values)
        elif not isinstance(target, Opaque):
            raise UserError(f"it appends to a {type(target).__name__}: damaged or hostile")

    def append_one(self) -> None:
        value = self.stack.pop()
        self.append([value])

    def set_items(self, target: Any, pairs: list[Any]) -> None:
        if not isinstance(target, dict) or len(pairs) % 2:
            raise UserError(f"it sets entries of a {type(target).__name__}: damaged or hostile")
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            if type(key) is not str:
                self.check_key(key, target)
            target[key] = value

    def check_key(self, key: Any, target: dict[Any, Any]) -> None:
        """Limit keys that are not strings, since hashing a tuple is recursive and takes time for all of its parts."""
        parts = [key]
        for _ in range(MAX_KEY_PARTS):
            if not parts:
                break
            part = parts.pop()
            if isinstance(part, tuple):
                parts += part[: MAX_KEY_PARTS + 1]
        self.keys += 1
        if parts or len(target) > MAX_KEYS or self.keys > 10 * MAX_KEYS:
            raise UserError("it has too many keys that are not strings: damaged or hostile")

    def set_one(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self.set_items(self.stack[-1], [key, value])

    def set_many(self) -> None:
        pairs = self.items()
        self.set_items(self.stack[-1], pairs)

    def whole_dict(self) -> None:
        made: dict[Any, Any] = {}
        self.set_items(made, self.items())
        self.push(made)

    def tuple_of(self, count: int) -> None:
        if len(self.stack) < count:
            raise IndexError("it takes more objects than there are")
        made = tuple(self.stack[-count:])
        del self.stack[-count:]
        self.push(made)

    def store(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    def integer(self, size: int) -> None:
        if not 0 <= size <= MAX_INTEGER:
            raise UserError(f"it holds an integer of {size} bytes: damaged or hostile")
        self.push(int.from_bytes(self.take(size), "little", signed=True))

    def integer_line(self) -> None:
        text = self.line(4 * MAX_INTEGER).rstrip(b"L")
        self.push(text == b"01" if text in (b"00", b"01") else int(text))  # False and True in protocol 0

    def quoted(self) -> None:
        text = self.line(len(self.data)).strip()
        if len(text) < 2 or text[:1] != text[-1:] or text[:1] not in b"\"'":
            raise ValueError("a string without quotes")
        self.push(codecs.escape_decode(text[1:-1])[0].decode("latin1"))

    def text(self, size: int) -> None:
        self.push(self.take(size).decode("utf-8", "surrogatepass"))

    def old_text(self, size: int) -> None:
        self.push(self.take(size).decode("latin1"))  # data of arrays in Python 2 pickles

    def pop(self) -> None:
        if self.stack:
            self.stack.pop()
        else:
            self.items()


_Operation = Callable[[Machine], Any]
_OPERATIONS: dict[int, _Operation] = {
    ord(code): operation
    for code, operation in {
        "\x80": lambda m: m.take(1),  # PROTO
        "\x95": lambda m: m.take(8),  # FRAME
        "(": Machine.mark,
        "0": Machine.pop,
        "1": Machine.items,  # POP_MARK
        "2": lambda m: m.push(m.stack[-1]),  # DUP
        "N": lambda m: m.push(None),
        "\x88": lambda m: m.push(True),
        "\x89": lambda m: m.push(False),
        "I": Machine.integer_line,
        "L": Machine.integer_line,
        "J": lambda m: m.push(m.number("<i")),
        "K": lambda m: m.push(m.byte()),
        "M": lambda m: m.push(m.number("<H")),
        "\x8a": lambda m: m.integer(m.byte()),
        "\x8b": lambda m: m.integer(m.number("<i")),
        "F": lambda m: m.push(float(m.line(256))),
        "G": lambda m: m.push(m.number(">d")),
        "S": Machine.quoted,
        "T": lambda m: m.old_text(m.number("<i")),
        "U": lambda m: m.old_text(m.byte()),
        "V": lambda m: m.push(m.line(len(m.data)).decode("raw-unicode-escape")),
        "X": lambda m: m.text(m.unsigned(4)),
        "\x8c": lambda m: m.text(m.byte()),
        "\x8d": lambda m: m.text(m.unsigned(8)),
        "B": lambda m: m.push(m.take(m.unsigned(4))),
        "C": lambda m: m.push(m.take(m.byte())),
        "\x8e": lambda m: m.push(m.take(m.unsigned(8))),
        "\x96": lambda m: m.push(m.take(m.unsigned(8))),  # a bytearray
        "]": lambda m: m.push([]),
        "a": Machine.append_one,
        "e": lambda m: m.append(m.items()),
        "l": lambda m: m.push(m.items()),
        ")": lambda m: m.push(()),
        "t": lambda m: m.push(tuple(m.items())),
        "\x85": lambda m: m.tuple_of(1),
        "\x86": lambda m: m.tuple_of(2),
        "\x87": lambda m: m.tuple_of(3),
        "}": lambda m: m.push({}),
        "d": Machine.whole_dict,
        "s": Machine.set_one,
        "u": Machine.set_many,
        "\x8f": lambda m: m.push([]),  # a set: a list serves as well
        "\x90": lambda m: m.append(m.items()),
        "\x91": lambda m: m.push(m.items()),  # a frozenset
        "p": lambda m: m.store(int(m.line(32))),
        "q": lambda m: m.store(m.byte()),
        "r": lambda m: m.store(m.unsigned(4)),
        "\x94": lambda m: m.store(len(m.memo)),
        "g": lambda m: m.push(m.memo[int(m.line(32))]),
        "h": lambda m: m.push(m.memo[m.byte()]),
        "j": lambda m: m.push(m.memo[m.unsigned(4)]),
        "c": lambda m: m.push(m.resolve(m.line().decode(), m.line().decode())),
        "\x93": Machine.named,
        "R": Machine.reduce,
        "\x81": Machine.reduce,  # NEWOBJ
        "\x92": Machine.new_with_keywords,
        "i": Machine.instance,
        "o": Machine.old_object,
        "b": Machine.build,
        "P": lambda m: m.identified(m.line().decode("ascii")),
        "Q": lambda m: m.identified(m.stack.pop()),
    }.items()
}
