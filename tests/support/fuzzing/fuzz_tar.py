"""Tars that are built wrong on purpose, against the index of a shard and against unpacking.

python tests/support/fuzzing/fuzz_tar.py --inputs 100000 --seed 0

Each input is a function of (seed, index): headers with right checksums and wrong contents, chained long names and pax
headers, sparse maps, odd sizes, bad UTF-8, zero bytes; plain or compressed; whole, truncated or changed in a byte.
Only a one-line `UserError` may be raised, no input may take more than 20 s, a refused tar leaves no file behind, and
what is harmless must be unpacked as it was packed.
"""

import argparse
import bz2
import gzip
import lzma
import random
import resource
import shutil
import signal
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[3])  # not tests/support/fuzzing/

from pretrain.common.errors import UserError  # noqa: E402
from pretrain.data import tar_index  # noqa: E402
from transfer.prepare.sets.download import unpack  # noqa: E402

LIMIT = 20  # seconds for one input
LONGEST = 1000  # characters of a message
MEMORY = 2 << 30  # bytes of address space above what the libraries take
PACKERS = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": partial(lzma.compress, preset=0)}
TYPES = b"0000055127SxgLKXDMVN\0Z"
SPARSE = ("map", "size", "name", "major", "minor", "realsize", "offset", "numbytes")
KEYS = ["path", "size", "linkpath", "mtime", "uid", "hdrcharset", *(f"GNU.sparse.{key}" for key in SPARSE)]


@dataclass
class Case:
    """One tar. `files` is what a harmless one holds, name -> content; None: it may be refused."""

    data: bytes
    suffix: str
    files: dict[str, bytes] | None


def make_case(seed: int, index: int) -> Case:
    rng = random.Random(f"{seed} {index}")
    suffix = rng.choice(["", "", *PACKERS])
    if rng.random() < 0.1:
        files = {f"a/{i}{'ü' * rng.randrange(120)}.jpg": rng.randbytes(rng.randrange(2000)) for i in range(5)}
        blocks = [
            entry(pax({"path": name}) + header(b"0", len(data), b"x"), data) for name, data in files.items()
        ]
        return Case(PACKERS[suffix](b"".join(blocks) + bytes(1024)), suffix, files)
    data = b"".join(_member(rng) for _ in range(rng.choice([1, 1, 2, 3, 5]))) + bytes(
        rng.choice([0, 512, 1024, 1024, 5000])
    )
    data = PACKERS[suffix](_damaged(rng, data) if rng.random() < 0.15 else data)
    return Case(_damaged(rng, data) if rng.random() < 0.15 else data, suffix, None)


def entry(headers: bytes, data: bytes) -> bytes:
    return headers + data + bytes(-len(data) % 512)


def header(kind: bytes, size: int | bytes, name: bytes, *, tail: bytes = b"") -> bytes:
    """A block with the right checksum; `size` in octal, or the field itself; `tail` from byte 386 on."""
    field = b"%011o\0" % size if isinstance(size, int) else size
    block = (
        name[:100].ljust(100, b"\0")
        + b"0000644\0"
        + b"0000000\0" * 2
        + field
        + b"00000000000\0"
        + b" " * 8
        + kind
    )
    block = block.ljust(257, b"\0") + b"ustar\x0000"
    block = (block.ljust(386, b"\0") + tail)[:512].ljust(512, b"\0")
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]


def pax(records: dict[str, str | bytes], kind: bytes = b"x") -> bytes:
    lines = b""
    for key, value in records.items():
        rest = b" " + key.encode() + b"=" + (value.encode() if isinstance(value, str) else value) + b"\n"
        length = len(rest) + len(str(len(rest)))
        lines += b"%d" % (length + (len(str(length)) > len(str(len(rest))))) + rest
    return entry(header(kind, len(lines), b"pax"), lines)


def _member(rng: random.Random) -> bytes:
    headers = b"".join(
        _extension(rng) for _ in range(rng.choice([0, 0, 0, 1, 1, 1, 2, 3, rng.choice([20, 300])]))
    )
    kind = b"0" if rng.random() < 0.85 else bytes([rng.choice(TYPES)])
    data = rng.randbytes(rng.randrange(1500))
    size = len(data) if rng.random() < 0.9 else _size(rng)
    tail = (
        b"".join(_octal(rng) for _ in range(8)) + rng.choice([b"\0", b"\1"]) + _octal(rng)
        if kind == b"S"
        else b""
    )
    extended = (b"".join(_octal(rng) for _ in range(42)) + b"\1").ljust(512, b"\1") * rng.choice(
        [0, 1, 5, 400]
    )
    return headers + header(kind, size, _name(rng), tail=tail) + entry(extended if tail else b"", data)


def _extension(rng: random.Random) -> bytes:
    kind = bytes([rng.choice(b"xxxgLKX")])
    if kind in b"LK":
        name = _name(rng) * rng.choice([1] * 8 + [50, 2000])
        return entry(header(kind, len(name) if rng.random() < 0.9 else _size(rng), b"././@LongLink"), name)
    if rng.random() < 0.05:
        lines = rng.choice(
            [
                b"9" * rng.choice([300, 60_000, 1 << 20]),
                b"0 a=b\n",
                b"5 =\n",
                b"99999999 path=x\n",
                rng.randbytes(99),
            ]
        )
        return entry(header(kind, rng.choice([len(lines), _size(rng)]), b"pax"), lines)
    return pax({rng.choice(KEYS): _value(rng) for _ in range(rng.randrange(1, 5))}, kind)


def _size(rng: random.Random) -> bytes:
    number = rng.choice([0, 1, 511, 1 << 20, 1 << 33, 1 << 62, 1 << 63, 1 << 87])
    sign = rng.choice([b"\x80", b"\x80", b"\xff"])
    return rng.choice(
        [
            sign + number.to_bytes(11, "big"),
            b"\xff" * 12,
            b"77777777777\0",
            b"-1\0".ljust(12),
            rng.randbytes(12),
        ]
    )


def _octal(rng: random.Random) -> bytes:
    return rng.choice([b"%011o\0" % rng.randrange(1 << 20), _size(rng)])


def _name(rng: random.Random) -> bytes:
    if rng.random() < 0.9:
        return b"a/%d.jpg" % rng.randrange(99)
    return rng.choice([
        b"a.jpg", b"", b".", b"/", b"/etc/a.jpg", b"../a.jpg", b"a/../../b.jpg", b"c:a.jpg", b"a\\b", b"a\0b.jpg",
        b"\xff\xfe.jpg", b"\xed\xa0\x80.jpg", b"\x1b[31m.jpg", b"x" * 300, b"a/" * 40,
    ])  # fmt: skip


def _value(rng: random.Random) -> bytes:
    if rng.random() < 0.4:
        return _name(rng)
    numbers = [
        b"0",
        b"1",
        b"-1",
        b"7",
        b"%d" % (1 << 40),
        b"%d" % (1 << 95),
        b"9" * 5000,
        b"1e999",
        b"nan",
        b"1,2",
        b"1,2,3,4",
    ]
    return rng.choice([*numbers, b"", b"BINARY", b"\xff", b"x" * 70_000])


def _damaged(rng: random.Random, data: bytes) -> bytes:
    place = rng.randrange(max(len(data), 1))
    if rng.random() < 0.5:
        return data[:place]
    return data[:place] + rng.randbytes(1) + data[place + 1 :]


def check(case: Case, folder: Path) -> str:
    """`accepted` or `refused`; anything else is a finding."""
    path = folder / f"input.tar{case.suffix}"
    path.write_bytes(case.data)
    found = [_guarded(lambda: tar_index._scan(str(path), tar_index.ALL))]
    target = folder / "target"
    found.append(_guarded(lambda: unpack(path, target)))
    left = {str(p.relative_to(target)): p.read_bytes() for p in sorted(target.rglob("*")) if not p.is_dir()}
    outside = {p.name for p in folder.iterdir()} - {path.name, "target"}
    if outside or (found[1] == "refused" and left):
        found.append(f"left {sorted(left)[:3]} {sorted(outside)[:3]}")
    if case.files is not None and left != case.files:
        found.append("a harmless tar was not unpacked as it was packed")
    path.unlink()
    shutil.rmtree(target, ignore_errors=True)
    return next((one for one in found if one not in ("accepted", "refused")), found[-1])


def _guarded(action: object) -> str:
    def hang(*_: object) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, hang)
    signal.alarm(LIMIT)
    try:
        action()  # type: ignore[operator]
        return "accepted"
    except UserError as error:
        text = str(error)
        return "refused" if text.isprintable() and len(text) < LONGEST else f"message {text[:LONGEST]!a}"
    except BaseException as error:
        return f"{type(error).__name__}: {str(error)[:200]!a}"
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--inputs", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + MEMORY, mapped + MEMORY))
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        for index in range(args.inputs):
            outcome = check(make_case(args.seed, index), Path(folder))
            counts[outcome if outcome in ("accepted", "refused") else "finding"] += 1
            if outcome not in ("accepted", "refused"):
                print(f"input {index}: {outcome}", flush=True)
    print(dict(counts))
    return int(counts["finding"] > 0)


if __name__ == "__main__":
    sys.exit(main())
