"""Random pickles that are grown opcode by opcode, so that most of them run to their end.

They hold themselves, double their memoised objects, call every function that a reader knows with whatever lies in the
memo, and set the state of anything.
"""

import random
import struct

from tests.support.fuzzing.hostile import name, text

GLOBALS = [
    *[("torch._utils", f"_rebuild_{n}") for n in ("tensor", "tensor_v2", "tensor_v3", "qtensor", "parameter",
                                                  "parameter_with_state", "sparse_tensor")],
    ("torch._tensor", "_rebuild_from_type_v2"), ("torch.storage", "_load_from_bytes"), ("torch", "Size"),
    ("torch", "FloatStorage"), ("torch", "QInt8Storage"), ("torch.storage", "UntypedStorage"), ("torch", "float16"),
    ("torch", "quint8"), ("torch", "uint16"), ("torch", "complex64"), ("numpy", "ndarray"), ("numpy", "dtype"),
    ("numpy.core.multiarray", "_reconstruct"), ("numpy._core.multiarray", "scalar"),
    ("numpy._core.numeric", "_frombuffer"), ("_codecs", "encode"), ("collections", "OrderedDict"),
    ("collections", "defaultdict"), ("os", "system"), ("a", "B"), ("builtins", "getattr"),
    ("copyreg", "_reconstructor"),
]  # fmt: skip
WORDS = [
    "latin1",
    "model",
    "state_dict",
    "f4",
    "O8",
    ">u2",
    "storage",
    "0",
    "1",
    "cpu",
    "",
    "\x1b[31m",
    "\ud800",
    "x" * 300,
]
NUMBERS = [0, 1, 2, 3, 7, 255, 65535, (1 << 31) - 1]
FLAT = (b"N", b"\x88", b")", b"]", b"}", b"\x8f", b"G" + struct.pack(">d", float("nan")))
CLOSE = (b"t", b"l", b"e", b"u", b"\x90", b"\x91", b"d", b"o")  # those that take all since the last mark


class Grower:
    """One pickle. `depth` is what lies on the stack since the last mark; it may be wrong, and the pickle be damaged."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.out = bytearray(b"\x80\x02(")
        self.memo = 0
        self.depth = 0
        self.marks: list[int] = []

    def put(self) -> None:
        if self.depth and self.memo < 250:
            self.out += b"q" + bytes([self.memo])
            self.memo += 1

    def push(self) -> None:
        rng = self.rng
        kind = rng.randrange(7)
        if kind == 0 or (kind < 3 and not self.memo):
            self.out += rng.choice(FLAT)
        elif kind < 3:
            self.out += b"h" + bytes([rng.randrange(self.memo)])
        elif kind == 3:
            self.out += b"J" + struct.pack("<i", rng.choice(NUMBERS))
        elif kind == 4:
            self.out += text(rng.choice(WORDS))
        elif kind == 5:
            self.out += name(*rng.choice(GLOBALS))
        else:
            data = rng.randbytes(rng.choice([0, 4, 8, 64]))
            self.out += b"C" + bytes([len(data)]) + data
        self.depth += 1

    def combine(self) -> None:
        rng = self.rng
        kind = rng.randrange(10)
        if kind < 2 and self.depth >= 2:  # append or set state: often an object to itself
            self.out += rng.choice([b"a", b"b"])
            self.depth -= 1
        elif kind == 2 and self.depth >= 3:
            self.out += b"s"
            self.depth -= 2
        elif kind == 3 and self.depth >= 2:
            self.out += b"\x86"
            self.depth -= 1
        elif kind == 4 and self.depth >= 1:
            self.out += b"\x85"
        elif kind == 5 and self.depth >= 2:
            self.out += rng.choice([b"\x85R", b"\x81"])
            self.depth -= self.out[-1:] == b"\x81"
        elif kind == 6 and self.depth >= 1:
            self.out += rng.choice([b"2", b"0"])
            self.depth += 1 if self.out[-1:] == b"2" else -1
        elif kind == 7 and self.depth >= 1 and rng.random() < 0.2:
            self.out += b"Q"
        elif kind == 8:
            self.marks.append(self.depth)
            self.out += b"("
            self.depth = 0
        elif self.marks:
            close = rng.choice(CLOSE)
            self.out += close
            self.depth = self.marks.pop() + (0 if close in (b"e", b"u", b"\x90") else 1)

    def idiom(self) -> None:
        """A call as PyTorch and NumPy write it, a list that holds itself, or objects doubled again and again."""
        rng = self.rng
        kind = rng.randrange(4)
        first = self.memo
        if kind == 0 and first < 180:
            self.out += b"]q" + bytes([first])
            for i in range(first, first + rng.choice([2, 30, 60])):
                self.out += b"0](h" + bytes([i]) + b"h" + bytes([i]) + b"eq" + bytes([i + 1])
                self.memo = i + 2
        elif kind == 1 and first < 250:
            self.out += rng.choice([b"]q%bh%ba", b"}q%bNh%bs", b"}q%bh%bNs"]) % (
                bytes([first]),
                bytes([first]),
            )
            self.memo += 1
        elif kind == 2:
            dtype = name("torch", rng.choice(["FloatStorage", "ByteStorage", "quint8", "BFloat16Storage"]))
            numbers = [bytes([rng.choice([0, 1, 2, 4, 16])]) for _ in range(5)]
            self.out += name("torch._utils", rng.choice(["_rebuild_tensor_v2", "_rebuild_qtensor"])) + b"(("
            self.out += (
                text("storage") + dtype + text("0") + text("cpu") + b"K" + numbers[0] + b"tQK" + numbers[1]
            )
            self.out += b"K" + numbers[2] + b"\x85K" + numbers[3] + b"\x85\x89)tR"
        else:
            self.out += (
                name("numpy.core.multiarray", "_reconstruct") + name("numpy", "ndarray") + b"K\0\x85C\1b\x87R"
            )
            self.out += b"(K\1K" + bytes([rng.randrange(4)]) + b"\x85" + name("numpy", "dtype")
            self.out += text(rng.choice(["f4", "u1", "O8"])) + b"\x85R\x89C\4abcdtb"
        self.depth += 1

    def grown(self) -> bytes:
        for _ in range(self.rng.choice([5, 20, 60, 150])):
            step = self.rng.random()
            if step < 0.4:
                self.push()
            elif step < 0.75:
                self.combine()
            elif step < 0.88:
                self.put()
            else:
                self.idiom()
        return bytes(self.out) + b"t" * (1 + len(self.marks)) + b"."


def grown_pickle(rng: random.Random) -> bytes:
    """Return a random pickle."""
    return Grower(rng).grown()
