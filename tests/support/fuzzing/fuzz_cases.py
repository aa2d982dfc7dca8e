"""The inputs of `fuzz.py`, each a function of (seed, index), and what a reader must make of it."""

import argparse
import enum
import io
import pickle
import random
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy
import torch
from safetensors.torch import save as safetensors_bytes

from pretrain.tensor_files.torch_files import MAGIC
from tests.support import layouts
from tests.support.fuzzing import caffe
from tests.support.fuzzing.grown import grown_pickle
from tests.support.fuzzing.hostile import hostile_pickles
from tests.support.vit.layouts import FILES as VITS
from tests.support.vit.layouts import NOT_IN_DETECTORS, vit

ZEROS = 1000  # of the damage to a file: as many tensors as there are, but only by zeros

State = dict[str, torch.Tensor]
Leaf = tuple[Any, Any]  # a dict and the key of a tensor in it


@dataclass
class Case:
    """One input.

    `expected` holds torchvision's names, or timm's for ViTs; None: whatever the file's own numbers are, or nothing.
    """

    layout: str
    mutation: str
    data: bytes
    suffix: str
    harmless: bool
    expected: list[State]
    damage: int = 0  # tensors whose numbers may have changed with the file, in a format without checksums

    def differs(self, found: State) -> str:
        """What is wrong about an accepted network; empty: nothing."""
        if self.layout in VITS:  # these may be missing
            found = {name: tensor for name, tensor in found.items() if name not in NOT_IN_DETECTORS}
        problems = [_difference(found, state, self.damage) for state in self.expected]
        return "" if "" in problems else problems[0]

    def differs_from_detectron2(self, found: dict[str, Any]) -> str:
        states = self.expected
        if self.layout not in VITS:
            named = [layouts.detectron2_names(state) for state in self.expected]
            states = [{name: torch.from_numpy(array) for name, array in state.items()} for state in named]
        problems = [_difference(found, state, self.damage) for state in states]
        return "" if "" in problems else problems[0]


def _difference(found: State, expected: State, damage: int) -> str:
    if found.keys() != expected.keys():
        return f"other names, such as {sorted(found.keys() ^ expected.keys())[:1]}"
    changed = 0
    for name, tensor in expected.items():
        if found[name].dtype != torch.float32 or found[name].shape != tensor.shape:
            return f"{name} has another type or shape"
        if not torch.equal(found[name], tensor):
            changed += 1
            if damage == ZEROS and found[name][found[name] != tensor].count_nonzero() > 2:
                return f"{name} has other values, which are not zero"
    return f"{changed} tensors have other values" if changed > damage else ""


@cache
def networks(name: str) -> tuple[State, State]:
    if name == "vit":
        return vit(1), vit(2)
    width = 0.125 if name == "resnet18" else 0.0625
    return layouts.network(1, name, width), layouts.network(2, name, width)


def _detectron2(q: State, _: State) -> Any:
    return {"model": layouts.detectron2_names(q), "__author__": "MOCO", "matching_heuristics": True}


def _converted(q: State, _: State) -> Any:
    settings = {
        "INPUT.FORMAT": "RGB", "MODEL.PIXEL_MEAN": [1.0, 2.0, 3.0], "MODEL.PIXEL_STD": [1.0, 2.0, 3.0],
        "MODEL.RESNETS.STRIDE_IN_1X1": False,
    }  # fmt: skip
    record = {"source": "moco", "branch": "module.encoder_q", "proof": {"res2": 1e-9}}
    return _detectron2(q, q) | {"preprocessing": settings, "record": record}


def _caffe2(q: State, _: State) -> Any:
    return {"blobs": layouts.caffe2_names(q)}


def _caffe(q: State, _: State) -> Any:
    return caffe.from_torchvision(q)


ARRAYS: dict[str, Callable[[State, State], Any]] = {
    "detectron2": _detectron2, "converted": _converted, "caffe2": _caffe2, "caffe": _caffe,
}  # fmt: skip
FILES = layouts.FILES | VITS
LAYOUTS = [*FILES, *ARRAYS, *ARRAYS]  # these have one network and few wrappers


def expected(layout: str, query: State) -> State:
    """What a reader must find, from the query network as it was saved."""
    plain = {n: t.float() for n, t in query.items() if not n.endswith("num_batches_tracked")}
    if layout in VITS:
        return {name: tensor for name, tensor in plain.items() if name not in NOT_IN_DETECTORS}
    if layout == "caffe2":  # merged: statistics that change nothing
        plain |= {n: torch.zeros_like(t) for n, t in plain.items() if n.endswith("running_mean")}
        plain |= {n: torch.ones_like(t) - 1e-5 for n, t in plain.items() if n.endswith("running_var")}
    return plain


def build(layout: str, query: State, key: State) -> Any:
    maker = ARRAYS.get(layout) or FILES[layout][1]
    return _copied(maker(query, key))


def _copied(node: Any) -> Any:
    """Return the contents with copied containers and the same tensors."""
    if isinstance(node, dict):
        made = type(node)()
        for key, value in node.items():
            made[key] = _copied(value)
        return made
    return [_copied(part) for part in node] if isinstance(node, list) else node


def make_case(seed: int, index: int, sentinel: Path, *, grown: bool = False) -> Case:
    """Input number `index`. `grown`: only grown pickles."""
    rng = random.Random(f"{seed} {index}")
    layout = LAYOUTS[index % len(LAYOUTS)]
    network = "vit" if layout in VITS else "resnet50" if index % 25 == 0 else "resnet18"
    query, key = networks(network)
    part = rng.random()
    if grown:
        return Case(layout, "grown", _grown(rng), ".pth", False, [expected(layout, query)])
    if part < 0.35:
        name = rng.choice(list(HARMLESS))
        return _harmless(layout, name, query, key, rng)
    wanted = expected(layout, query)
    if part < 0.65:
        name = rng.choice(list(STRUCTURE))
        contents = build(layout, query, key)
        contents = STRUCTURE[name](contents, rng)
        data, suffix = _saved(layout, contents, rng)
        return Case(layout, name, data, suffix, False, [wanted])
    data, suffix = _base(layout, network, rng.choice(_formats(layout)))
    if part < 0.72:
        return Case(layout, "grown", _grown(rng), suffix, False, [wanted])
    if part < 0.87:
        name = rng.choice(list(BYTES))
        damage = {"zeros": ZEROS, "bit flips": 8}.get(name, 2) if data[:2] != b"PK" else 0
        damage *= 2 if layout == "caffe" and name != "zeros" else 1  # a scale factor is for two tensors
        return Case(layout, name, BYTES[name](data, rng), suffix, False, [wanted], damage)
    attacks = hostile_pickles(str(sentinel))
    name = rng.choice(list(attacks))
    data = _injected(data, attacks[name], rng)
    return Case(layout, f"hostile: {name}", data, suffix, False, [wanted])


# --- formats ---


def _formats(layout: str) -> list[str]:
    if layout == "caffe":
        return ["caffe"]
    return ["pickle"] if layout in ARRAYS else ["zip", "zip", "legacy", "safetensors"]


def _saved(layout: str, contents: Any, rng: random.Random, *, form: str = "") -> tuple[bytes, str]:
    form = form or rng.choice(_formats(layout))
    if form == "caffe":
        return caffe.caffemodel(contents, old=rng.random() < 0.3), ".caffemodel"
    if form == "pickle":
        return pickle.dumps(contents, protocol=rng.choice([2, 3, 4, 5])), ".pkl"
    if form == "safetensors":
        flat: State = {}
        _flatten("", contents, flat, 0)
        if not flat or sum(tensor.numel() for tensor in flat.values()) > 10_000_000:
            return _saved(layout, contents, rng, form="zip")
        # safetensors wants tensors without shared memory
        plain = {
            n: t.detach().clone().contiguous()
            for n, t in flat.items()
            if t.layout == torch.strided and not t.is_quantized
        }
        try:
            return safetensors_bytes(plain), ".safetensors"
        except (KeyError, ValueError, RuntimeError):
            form = "zip"
    buffer = io.BytesIO()
    torch.save(contents, buffer, _use_new_zipfile_serialization=form == "zip")
    return buffer.getvalue(), ".pth"


def _flatten(name: str, node: Any, out: State, depth: int) -> None:
    if isinstance(node, torch.Tensor):
        out[name] = node
    elif isinstance(node, dict | list | tuple) and depth < 40 and len(out) < 5000:
        items = node.items() if isinstance(node, dict) else enumerate(node)
        for key, value in items:
            _flatten(f"{name}.{key}" if name else str(key), value, out, depth + 1)


@cache
def _base(layout: str, network: str, form: str) -> tuple[bytes, str]:
    torch.manual_seed(0)
    return _saved(layout, build(layout, *networks(network)), random.Random(0), form=form)


# --- harmless variants ---


class Mode(enum.Enum):
    """Return an object that real files hold besides their weights."""

    ONE = 1


class AttributeDict(dict):
    """As Lightning's: a dict with attributes."""


def _harmless(layout: str, name: str, query: State, key: State, rng: random.Random) -> Case:
    if name.startswith("dtype"):
        kind = getattr(torch, name.split()[1])
        query, key = (
            {n: t.to(kind) if t.is_floating_point() else t for n, t in s.items()} for s in (query, key)
        )
        if layout in ARRAYS and kind == torch.bfloat16:  # which numpy does not have
            query, key = ({n: t.half() if t.dtype == kind else t for n, t in s.items()} for s in (query, key))
    contents = HARMLESS[name](build(layout, query, key), rng, layout)
    data, suffix = _saved(layout, contents, rng)
    return Case(layout, name, data, suffix, True, [expected(layout, query)])


def _same(contents: Any, rng: random.Random, layout: str) -> Any:
    return contents


def _reordered(contents: Any, rng: random.Random, layout: str) -> Any:
    if isinstance(contents, dict):
        items = [(k, _reordered(v, rng, layout)) for k, v in contents.items()]
        rng.shuffle(items)
        contents.clear()
        contents.update(items)
    return contents


def _extra(contents: Any, rng: random.Random, layout: str) -> Any:
    array = layout in ARRAYS
    inner = {"caffe2": "blobs", "detectron2": "model", "converted": "model"}
    target = contents[inner[layout]] if layout in inner else contents
    for number in range(rng.randint(1, 4)):
        tensor = torch.rand(rng.choice([(), (3,), (2, 5), (1, 2, 3, 4)]))
        target[f"extra_buffer{number}"] = tensor.numpy() if array else tensor
    if not array:
        target["optimizer"] = {
            "state": {0: {"exp_avg": torch.zeros(3), "step": 7}},
            "param_groups": [{"lr": 0.1}],
        }
        target["epoch"] = rng.choice([0, 7, 1.5, None, "last"])
    return contents


def _objects(contents: Any, rng: random.Random, layout: str) -> Any:
    if layout in ARRAYS:
        contents["note"] = {"text": "ü\n", "list": [1, 2.5, None, True, (1, 2)], "big": 1 << 70}
        return contents if layout != "caffe2" else {"blobs": contents["blobs"], "note": contents["note"]}
    contents["hyper_parameters"] = AttributeDict(lr=0.1, args=argparse.Namespace(a=1, b=Mode.ONE))
    contents["callbacks"] = {
        Mode: Mode.ONE,
        "path": Path("/x"),
        "f": numpy.mean,
        "t": torch.relu,
        "s": {1, 2},
    }
    contents["when"] = [
        slice(1, 2),
        complex(1, 2),
        numpy.float64(3),
        numpy.array(["a", None], dtype=object),
        range(3),
    ]
    contents["rng"] = [
        random.Random(0).getstate(),
        numpy.random.RandomState(0).get_state(),
        torch.get_rng_state(),
    ]
    contents["device"] = [
        torch.device("cpu"),
        torch.float16,
        torch.Size([1, 2]),
        bytearray(b"x"),
        frozenset([3]),
    ]
    return contents


def _tensors(contents: Any, rng: random.Random, layout: str) -> Any:
    """The same numbers in tensors of other making."""
    if layout in ARRAYS:
        for holder, key in _leaves(contents):
            holder[key] = (
                numpy.asfortranarray(holder[key]) if rng.random() < 0.5 else holder[key].astype(">f4")
            )
        return contents
    for holder, key in _leaves(contents):
        tensor = holder[key]
        how = rng.randrange(5)
        if how == 0 and tensor.is_floating_point():
            holder[key] = torch.nn.Parameter(tensor, requires_grad=rng.random() < 0.5)
        elif how == 1 and tensor.ndim > 1:
            holder[key] = tensor.transpose(0, 1).contiguous().transpose(0, 1)
        elif how == 2 and tensor.ndim == 4:
            holder[key] = tensor.contiguous(memory_format=torch.channels_last)
        elif how == 3 and tensor.numel():
            holder[key] = torch.cat([tensor.reshape(-1), tensor.reshape(-1)])[tensor.numel() :].view(
                tensor.shape
            )
    return contents


def _prefixed(prefix: str) -> Callable[[Any, random.Random, str], Any]:
    def rename(contents: Any, rng: random.Random, layout: str) -> Any:
        if layout in ARRAYS:
            return contents
        return _renamed(contents, prefix)

    return rename


def _renamed(node: Any, prefix: str) -> Any:
    if not isinstance(node, dict):
        return node
    own = any(isinstance(value, torch.Tensor) for value in node.values())
    return {
        f"{prefix}{key}" if own and isinstance(value, torch.Tensor) else key: _renamed(value, prefix)
        for key, value in node.items()
    }


def _wrapped(contents: Any, rng: random.Random, layout: str) -> Any:
    return contents if layout in ARRAYS else {rng.choice(["state_dict", "model_state_dict"]): contents}


def _ordered(contents: Any, rng: random.Random, layout: str) -> Any:
    if not isinstance(contents, dict):
        return contents
    made = OrderedDict((key, _ordered(value, rng, layout)) for key, value in contents.items())
    if layout not in ARRAYS:
        made._metadata = OrderedDict({"": {"version": 1}})  # type: ignore[attr-defined]
    return made


HARMLESS: dict[str, Callable[[Any, random.Random, str], Any]] = {
    "as it is": _same, "reordered": _reordered, "extra entries": _extra, "other objects": _objects,
    "other tensors": _tensors, "module.": _prefixed("module."), "_orig_mod.": _prefixed("_orig_mod."),
    "in state_dict": _wrapped, "OrderedDict": _ordered,
    "dtype float16": _same, "dtype bfloat16": _same, "dtype float64": _same,
}  # fmt: skip


# --- damaged structure ---


def _leaves(node: Any) -> list[Leaf]:
    found: list[Leaf] = []
    if isinstance(node, dict):
        for key, value in node.items():
            if isinstance(value, torch.Tensor | numpy.ndarray):
                found.append((node, key))
            else:
                found += _leaves(value)
    return found


def _one(change: Callable[[dict[Any, Any], Any, random.Random], None]) -> Callable[[Any, random.Random], Any]:
    def mutate(contents: Any, rng: random.Random) -> Any:
        leaves = _leaves(contents)
        for holder, key in rng.sample(leaves, rng.choice([1, 1, 1, 2, 5])):
            change(holder, key, rng)
        return contents

    return mutate


def _drop(holder: dict[Any, Any], key: Any, rng: random.Random) -> None:
    del holder[key]


def _other_name(key: str, holder: dict[Any, Any], rng: random.Random) -> Any:
    new = rng.choice(
        [
            key + "x", "copy." + key, key.replace("layer1", "layer5"), key.replace("0", "9", 1), key.upper(), "",
            key.replace(".", "\n"), "\x1b[31m" + key, "x" * 5000, 7, (1, key), b"bytes", None,
            key.replace("weight", "w"), key.replace("encoder", "decoder"), key[1:], key + ".weight", "\ud800" + key,
        ]
    )  # fmt: skip
    return key + "'" if new in holder else new


def _rename(holder: dict[Any, Any], key: Any, rng: random.Random) -> None:
    value = holder.pop(key)
    holder[_other_name(key, holder, rng)] = value


def _duplicate(holder: dict[Any, Any], key: Any, rng: random.Random) -> None:
    holder[_other_name(key, holder, rng)] = holder[key]


def _retype(holder: dict[Any, Any], key: Any, rng: random.Random) -> None:
    value = holder[key]
    if isinstance(value, numpy.ndarray):
        kinds = [numpy.int8, numpy.complex64, numpy.bool_, "U4", object, "M8[s]"]
        holder[key] = numpy.zeros(value.shape, rng.choice(kinds))
        return
    kinds = [
        "int8",
        "int64",
        "bool",
        "complex64",
        "uint16",
        "float8_e5m2",
        "sparse",
        "quantised",
        "meta",
        "text",
        "list",
    ]
    kind = rng.choice(kinds)
    if kind == "sparse":
        holder[key] = value.to_sparse()
    elif kind == "quantised":
        holder[key] = torch.quantize_per_tensor(value.float(), 0.1, 0, torch.qint8)
    elif kind == "meta":
        holder[key] = value.to("meta")
    elif kind in ("text", "list"):
        holder[key] = "weights" if kind == "text" else value.reshape(-1)[:9].tolist()
    else:
        holder[key] = torch.zeros(value.shape, dtype=getattr(torch, kind))


def _reshape(holder: dict[Any, Any], key: Any, rng: random.Random) -> None:
    value = holder[key]
    flat = value.reshape(-1)
    shapes = [flat, value[None], flat[: flat.shape[0] // 2], flat[:0], value[..., None]]
    if isinstance(value, torch.Tensor):
        shapes += [flat[:1].expand(100_000), torch.empty(1 << 40, 0), flat[:1].expand(1 << 33)]
    holder[key] = rng.choice(shapes)


def _spoil(holder: dict[Any, Any], key: Any, rng: random.Random) -> None:
    value = holder[key]
    copy = value.clone() if isinstance(value, torch.Tensor) else value.copy()
    if copy.dtype not in (torch.int64,):
        copy.reshape(-1)[0] = rng.choice([float("nan"), float("inf")])
    holder[key] = copy


def _replace_container(contents: Any, rng: random.Random) -> Any:
    boxes = [(node, key) for node, key in _boxes(contents)]
    junk = rng.choice(
        [None, 3, "text", [], {}, [1, 2], {"a": {"b": {}}}, (), True, float("nan"), "\x1b[2J\n"]
    )
    if not boxes or rng.random() < 0.2:
        return junk
    node, key = rng.choice(boxes)
    node[key] = junk
    return contents


def _boxes(node: Any) -> list[Leaf]:
    found: list[Leaf] = []
    if isinstance(node, dict):
        for key, value in node.items():
            if not isinstance(value, torch.Tensor | numpy.ndarray):
                found.append((node, key))
                found += _boxes(value)
    return found


def _nest(contents: Any, rng: random.Random) -> Any:
    target = contents
    for _ in range(rng.choice([1, 2, 10, 31, 40, 100])):
        target = rng.choice([lambda t: [t], lambda t: {"a": t}, lambda t: (t,), lambda t: {"model": t}])(
            target
        )
    if rng.random() < 0.3 and isinstance(contents, dict):
        contents["self"] = contents
        return contents
    return target


def _doubled(contents: Any, rng: random.Random) -> Any:
    """One container in the file many times over."""
    node: Any = {"x": torch.zeros(2).numpy() if _has_arrays(contents) else torch.zeros(2)}
    for _ in range(rng.choice([3, 3, 9, 9, 9, 12, 28]) if rng.random() < 0.3 else 3):
        node = [node, node] if rng.random() < 0.7 else {"a": node, "b": node}
    if isinstance(contents, dict):
        contents["doubled"] = node
    return contents


def _has_arrays(contents: Any) -> bool:
    return any(isinstance(holder[key], numpy.ndarray) for holder, key in _leaves(contents))


def _records(contents: Any, rng: random.Random) -> Any:
    """Entries that our own readers look at."""
    junk: list[Any] = [None, {}, [], "x", 1 << 2000, {"a": 1}, float("nan"), {"INPUT.FORMAT": 3}, "INPUT: [", "&a [*a]",
                       {"INPUT.FORMAT": "RGB", "MODEL.PIXEL_MEAN": ["nan", 1, 2], "MODEL.PIXEL_STD": [1],
                        "MODEL.RESNETS.STRIDE_IN_1X1": 0}, {"source": "\x1b[31m\n", "proof": {"res2": "big"}},
                       {"proof": [1, 2]}, "[" * 5000]  # fmt: skip
    if isinstance(contents, dict):
        for key in rng.sample(["preprocessing", "record", "config", "epoch", "iterations_per_epoch", "__author__",
                               "matching_heuristics"], 3):  # fmt: skip
            contents[key] = rng.choice(junk)
    return contents


STRUCTURE: dict[str, Callable[[Any, random.Random], Any]] = {
    "drop": _one(_drop), "rename": _one(_rename), "duplicate": _one(_duplicate), "retype": _one(_retype),
    "reshape": _one(_reshape), "NaN": _one(_spoil), "container": _replace_container, "nest": _nest,
    "doubled": _doubled, "records": _records,
}  # fmt: skip


# --- damaged bytes ---


def _flip(data: bytes, rng: random.Random) -> bytes:
    damaged = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 2, 8])):
        damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
    return bytes(damaged)


def _flip_structure(data: bytes, rng: random.Random) -> bytes:
    """Where pickles, headers and lists of parts lie: at the ends."""
    damaged = bytearray(data)
    start, stop = rng.choice([(0, 64), (0, 4000), (len(data) - 3000, len(data)), (len(data) - 22, len(data))])
    for _ in range(rng.choice([1, 1, 2])):
        damaged[rng.randrange(max(0, start), min(stop, len(data)))] = rng.choice(
            [0, 255, 46, rng.randrange(256)]
        )
    return bytes(damaged)


def _number(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data) - 8)
    value = rng.choice([0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 1 << 40, (1 << 63) - 1, (1 << 64) - 1])
    return data[:at] + struct.pack("<Q", value)[: rng.choice([2, 4, 8])] + data[at + 8 :]


def _truncate(data: bytes, rng: random.Random) -> bytes:
    return data[
        : rng.choice([rng.randrange(64), rng.randrange(len(data)), len(data) - rng.randrange(1, 100)])
    ]


def _zero(data: bytes, rng: random.Random) -> bytes:
    at, length = rng.randrange(len(data)), rng.choice([1, 16, 512, 4096])
    return data[:at] + bytes(len(data[at : at + length])) + data[at + length :]


def _splice(data: bytes, rng: random.Random) -> bytes:
    a, b = sorted(rng.sample(range(len(data)), 2))
    return rng.choice(
        [data[:b] + data[a:], data[:a] + data[b:], data[:a] + rng.randbytes(20) + data[a:], data + data]
    )


BYTES: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "bit flips": _flip, "flips in structure": _flip_structure, "numbers": _number, "truncated": _truncate,
    "zeros": _zero, "spliced": _splice,
}  # fmt: skip


# --- hostile pickles ---


def _grown(rng: random.Random) -> bytes:
    """Return a grown pickle as a file of one of the three formats."""
    pickled = grown_pickle(rng)
    form = rng.randrange(3)
    if form == 0:
        return pickled
    if form == 1:
        head, tail = _legacy_ends()
        return head + pickled + tail
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a/data.pkl", pickled)
        archive.writestr("a/data/0", bytes(64))
    return buffer.getvalue()


@cache
def _legacy_ends() -> tuple[bytes, bytes]:
    """Return what precedes and follows the object in an old file with one storage, named 0, of 16 numbers."""
    head = b"".join(pickle.dumps(part, 2) for part in (MAGIC, 1001, {"little_endian": True}))
    return head, pickle.dumps(["0"], 2) + struct.pack("<q", 16) + bytes(64)


def _injected(data: bytes, attack: bytes, rng: random.Random) -> bytes:
    """The attack's object is made before or after the file's own, or instead of it."""
    if data[:2] == b"PK":
        return _rewritten(data, lambda pickled: _placed(pickled, attack, rng))
    if data[8:9] == b"{":
        return b"\x80\x02" + attack + b"."
    return _placed(data, attack, rng) if data[:4] != b"\x80\x02\x8a\n" else _in_legacy(data, attack, rng)


def _placed(pickled: bytes, attack: bytes, rng: random.Random) -> bytes:
    head, body = (pickled[:2], pickled[2:]) if pickled[:1] == b"\x80" else (b"", pickled)
    where = rng.randrange(3)
    if where == 0:
        return head + attack + b"0" + body
    if where == 1 and body.endswith(b"."):
        return head + body[:-1] + attack + b"0."
    return head + attack + b"."


def _in_legacy(data: bytes, attack: bytes, rng: random.Random) -> bytes:
    """Before one of the first pickles: the magic number, or the object."""
    if rng.random() < 0.5:
        return data[:2] + attack + b"0" + data[2:]
    at = data.index(b"\x80\x02", data.index(b"type_sizes"))
    return data[: at + 2] + attack + b"0" + data[at + 2 :]


def _rewritten(data: bytes, change: Callable[[bytes], bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as new:
        for name in old.namelist():
            content = old.read(name)
            new.writestr(name, change(content) if name.endswith("data.pkl") else content)
    return buffer.getvalue()
