"""Untrusted files: none runs code, hangs or crashes the reader, and files that PyTorch writes are read."""

import argparse
import contextlib
import enum
import io
import json
import os
import pickle
import struct
import tarfile
import zipfile
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision import tv_tensors

from pretrain.common.errors import UserError
from pretrain.tensor_files import checkpoint
from pretrain.tensor_files.read_any import read_file
from tests.support.checkpoints import State
from tests.support.fuzzing.hostile import bombs, call, hostile_pickles, name, text
from tests.support.layouts import detectron2_names, network, transformers_names
from transfer.convert.recognise import read_source
from transfer.convert.weights_file import read_weights

QUERY = network(1, "resnet18")
PLAIN = {n: t for n, t in QUERY.items() if not n.endswith("num_batches_tracked")}
ATTACKS = hostile_pickles("harmed")


def assert_query(path: Path) -> None:
    found = read_source(path).backbone
    assert found.keys() == PLAIN.keys()
    assert all(torch.equal(found[key], PLAIN[key]) for key in PLAIN)


def refusal(path: Path, read: Callable[[Path], Any] = read_file) -> str:
    with pytest.raises(UserError) as error:
        read(path)
    assert str(error.value).isprintable()  # one line, without control characters
    return str(error.value)


def zip_with(path: Path, change: Callable[[bytes], bytes], contents: Any = QUERY, **options: Any) -> Path:
    """Write a file with `torch.save`, with its pickle changed by `change`."""
    buffer = io.BytesIO()
    torch.save(contents, buffer)
    with zipfile.ZipFile(buffer) as old, zipfile.ZipFile(path, "w", **options) as new:
        for part in old.namelist():
            data = old.read(part)
            new.writestr(part, change(data) if part.endswith("data.pkl") else data)
    return path


# --- attacks ---


@pytest.mark.parametrize("attack", ATTACKS)
def test_hostile_pickles_do_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, attack: str) -> None:
    """In a torch file a hostile global becomes an inert object or is refused; in a pickle of arrays it is refused."""
    monkeypatch.chdir(tmp_path)
    pickled = pickle.dumps({"model": detectron2_names(QUERY), "__author__": "x"}, protocol=2)
    (tmp_path / "a.pkl").write_bytes(pickled[:2] + ATTACKS[attack] + b"0" + pickled[2:])
    zip_with(tmp_path / "a.pth", lambda data: data[:2] + ATTACKS[attack] + b"0" + data[2:])
    for path in (tmp_path / "a.pkl", tmp_path / "a.pth"):
        try:
            found = read_source(path).backbone
        except UserError as error:
            assert str(error).isprintable()
        else:
            assert path.suffix == ".pth" or attack in bombs()
            assert all(torch.equal(found[key], PLAIN[key]) for key in PLAIN)
        with contextlib.suppress(UserError):
            read_weights(path)
    assert not (tmp_path / "harmed").exists()


def test_the_classes_of_an_attack_are_named(tmp_path: Path) -> None:
    attack = call(name("os", "system"), text("touch harmed"))
    zip_with(tmp_path / "a.pth", lambda data: data[:2] + attack + b"0" + data[2:])
    assert read_source(tmp_path / "a.pth").opaque == ("os.system",)


def test_one_file_does_not_change_how_the_next_is_read(tmp_path: Path) -> None:
    """The opcode `BUILD` sets attributes of the object on the stack, which could be one of our functions or classes."""
    for attack in ("BUILD of a function", "BUILD of a class", "setitem of a module"):
        zip_with(tmp_path / "a.pth", lambda data, attack=attack: data[:2] + ATTACKS[attack] + b"0" + data[2:])
        refusal(tmp_path / "a.pth")
        assert_query(zip_with(tmp_path / "b.pth", lambda data: data))


def test_compressed_and_overlapping_zips_are_refused(tmp_path: Path) -> None:
    bomb = {"zeros": torch.zeros(10_000_000)}
    path = zip_with(tmp_path / "a.pth", lambda d: d, bomb, compression=zipfile.ZIP_DEFLATED)
    assert "compressed" in refusal(path)
    assert "compressed" in refusal(path, checkpoint.load)
    torch.save(QUERY, tmp_path / "b.pth")
    data = bytearray((tmp_path / "b.pth").read_bytes())
    at = data.index(b"PK\x01\x02")
    assert data[at + 20 : at + 24] == data[at + 24 : at + 28]  # packed and unpacked size
    data[at + 20 : at + 28] = struct.pack("<2I", len(data), len(data))
    (tmp_path / "b.pth").write_bytes(data)
    assert "overlap" in refusal(tmp_path / "b.pth")


def test_a_wrong_checksum_is_refused(tmp_path: Path) -> None:
    torch.save(QUERY, tmp_path / "a.pth")
    data = bytearray((tmp_path / "a.pth").read_bytes())
    at = data.index(QUERY["layer4.0.conv1.weight"].numpy().tobytes()[:64])
    data[at] ^= 1
    (tmp_path / "a.pth").write_bytes(data)
    assert "checksum" in refusal(tmp_path / "a.pth")


@pytest.mark.parametrize("shape", [(1 << 40,), (1 << 20, 1 << 20), (500, 500)])
def test_views_that_claim_more_than_the_file_holds_are_refused(
    tmp_path: Path, shape: tuple[int, ...]
) -> None:
    """Strides of zero make a tensor of any size from one number."""
    torch.save({**QUERY, "x": torch.zeros(1).expand(shape)}, tmp_path / "a.pth")
    if shape == (500, 500):  # bfloat16 and shared storage may take a few times the file size
        read_file(tmp_path / "a.pth")
    else:
        assert "larger than the file" in refusal(tmp_path / "a.pth")


def test_endless_and_multiplied_containers_are_refused(tmp_path: Path) -> None:
    endless: dict[str, Any] = {"x": torch.zeros(1)}
    endless["self"] = endless
    torch.save(endless, tmp_path / "a.pth")
    assert "nested without end" in refusal(tmp_path / "a.pth")
    doubled: list[Any] = [1]
    for _ in range(30):
        doubled = [doubled, doubled]
    torch.save({"x": doubled}, tmp_path / "b.pth")
    assert "nested without end" in refusal(tmp_path / "b.pth")


@pytest.mark.parametrize("key", ["a\nb", "\x1b[31mred", "\ud800", "x" * 100_000, 3, None, (1, "x"), b"y"])
def test_strange_keys_reach_no_terminal(tmp_path: Path, key: Any) -> None:
    torch.save({"state": {**PLAIN, key: torch.zeros(1)}, key: {"x": 1}}, tmp_path / "a.pth")
    assert_query(tmp_path / "a.pth")
    assert all(word.isprintable() and len(word) < 1000 for word in read_source(tmp_path / "a.pth").dropped)
    torch.save({key: torch.zeros(1)}, tmp_path / "b.pth")
    refusal(tmp_path / "b.pth", read_source)


def test_a_long_key_with_many_children_is_refused(tmp_path: Path) -> None:
    inner: Any = {str(i): torch.zeros(1) for i in range(100)}
    for _ in range(5):
        inner = {"k" * 500: inner}
    torch.save(inner, tmp_path / "a.pth")
    assert "400 characters" in refusal(tmp_path / "a.pth")


@pytest.mark.parametrize(
    ("header", "length"),
    [
        (b"{" + b'"a":' * 10, 1 << 60),
        (b'{"a":' * 3000, None),
        (b"[" * 3000, None),
        (b"{}" + b" " * 40, 1 << 30),
    ],
)
def test_hostile_safetensors_headers_are_refused(tmp_path: Path, header: bytes, length: int | None) -> None:
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", length or len(header)) + header + bytes(64))
    refusal(tmp_path / "a.safetensors")


@pytest.mark.parametrize("shape", [[1 << 62, 1 << 62], [-1], [5]])
def test_safetensors_that_claim_other_sizes_are_refused(tmp_path: Path, shape: list[int]) -> None:
    header = json.dumps({"x": {"dtype": "F32", "shape": shape, "data_offsets": [0, 4]}}).encode()
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
    refusal(tmp_path / "a.safetensors")


def test_a_strange_card_beside_the_file_is_passed_over(tmp_path: Path) -> None:
    save_file(PLAIN, tmp_path / "a.safetensors")
    card = tmp_path / "config.json"
    for content in (
        "[" * 100_000,
        '{"mean": [NaN, 1, 2], "std": [1, 1, 1]}',
        '{"mean": [1], "std": [1]}',
        "{}",
        "3",
    ):
        card.write_text(content)
        assert_query(tmp_path / "a.safetensors")
    card.unlink()
    os.mkfifo(card)  # a pipe without a writer
    assert_query(tmp_path / "a.safetensors")


# --- not a regular file, or not weights ---


def test_pipes_devices_folders_and_dangling_links_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.pth")
    (tmp_path / "folder.pth").mkdir()
    (tmp_path / "link.pth").symlink_to(tmp_path / "nothing")
    (tmp_path / "zero.pth").symlink_to("/dev/zero")
    (tmp_path / "loop.pth").symlink_to(tmp_path / "loop.pth")
    for file in ("pipe.pth", "folder.pth", "link.pth", "zero.pth", "loop.pth"):
        for read in (read_file, read_source, read_weights, checkpoint.load):
            refusal(tmp_path / file, read)
    assert "not a regular file" in refusal(Path("/dev/zero"))
    assert "not a regular file" in refusal(tmp_path / "pipe.pth")


def test_a_link_to_a_file_is_followed(tmp_path: Path) -> None:
    torch.save(QUERY, tmp_path / "a.pth")
    (tmp_path / "b.pth").symlink_to(tmp_path / "a.pth")
    assert_query(tmp_path / "b.pth")


def test_a_file_that_grows_while_it_is_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save(QUERY, tmp_path / "a.pth")
    from pretrain.tensor_files import read_any

    def slow(path: Path, *arguments: Any) -> Any:
        with open(path, "ab") as file:
            file.write(b"more")
        return {}, ()

    monkeypatch.setattr(read_any.box, "read", slow)
    assert "changed while it was read" in refusal(tmp_path / "a.pth")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"<!DOCTYPE html><html><body>404</body></html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "pointer"),
        (b"", "0 bytes"),
        (b"\0" * 100, "is not a weights file: it does not begin like"),
        (b"# A project\n\nIt does things.\n", "is a text file, not weights"),
        ("é".encode() * 400, "is a text file, not weights"),
    ],
)
def test_what_downloads_give_instead_is_named(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "a.pth").write_bytes(content)
    assert words in refusal(tmp_path / "a.pth")


# --- what torch.save writes ---


def legacy(contents: Any, path: Path) -> Path:
    torch.save(contents, path, _use_new_zipfile_serialization=False)
    return path


class Colour(enum.Enum):
    RED = 1


class AttributeDict(dict):
    """Like Lightning's."""

    def __getattr__(self, key: str) -> Any:
        return self[key]


class Ordered(OrderedDict):
    """A subclass, as in the state dicts of old frameworks."""


class Hook:
    """Like the hooks in mmcv's `meta`."""

    def __init__(self) -> None:
        self.interval = 10


def beside() -> dict[str, Any]:
    return {
        "args": argparse.Namespace(lr=0.03, nested=argparse.Namespace(x=Colour.RED)),
        "hyper_parameters": AttributeDict(lr=1, inner=AttributeDict(x=Hook())),
        "meta": {
            "hook_msgs": {"last": Hook()},
            "env": "text",
            "f": numpy.mean,
            "t": torch.relu,
            "type": Hook,
        },
        "callbacks": {Hook: {"best": torch.tensor(1.0)}, Colour.RED: 1, (1, ("a", 2)): 3},
        "counts": defaultdict(list, a=[1]),
        "object array": numpy.array(["a", None], dtype=object),
        "numbers": [
            numpy.float64(1),
            numpy.bool_(True),
            numpy.arange(3),
            complex(1, 2),
            1 << 200,
            float("inf"),
        ],
        "rng": [torch.get_rng_state(), numpy.random.get_state()],
        "others": [
            Path("/x"),
            slice(1),
            range(3),
            {1, 2},
            frozenset([1]),
            bytearray(b"x"),
            torch.device("cuda:0"),
        ],
        "dtypes": [torch.float16, torch.Size([1, 2])],
    }


@pytest.mark.parametrize("old", [True, False])
@pytest.mark.parametrize("key", beside())
def test_objects_beside_the_weights_do_no_harm(tmp_path: Path, key: str, old: bool) -> None:
    contents = {"state_dict": Ordered(QUERY), key: beside()[key]}
    torch.save(contents, tmp_path / "a.pth", _use_new_zipfile_serialization=not old)
    assert_query(tmp_path / "a.pth")


@pytest.mark.parametrize("old", [True, False])
@pytest.mark.parametrize(
    "make",
    {
        "parameters": lambda t: nn.Parameter(t) if t.is_floating_point() else t,
        "views": lambda t: torch.cat([torch.zeros(5, dtype=t.dtype), t.reshape(-1)])[5:].view(t.shape),
        "not contiguous": lambda t: t.transpose(0, -1).contiguous().transpose(0, -1) if t.ndim > 1 else t,
        "channels last": lambda t: t.contiguous(memory_format=torch.channels_last) if t.ndim == 4 else t,
        "gradients": lambda t: t.clone().requires_grad_() if t.is_floating_point() else t,
        "torchvision's": lambda t: tv_tensors.Mask(t) if t.ndim > 1 else t,
        "hooks": lambda t: _with_attribute(nn.Parameter(t)) if t.is_floating_point() else t,
    }.items(),
    ids=lambda item: item[0],
)
def test_tensors_of_every_making_are_read(tmp_path: Path, make: Any, old: bool) -> None:
    state = {key: make[1](tensor) for key, tensor in QUERY.items()}
    torch.save({"state_dict": state}, tmp_path / "a.pth", _use_new_zipfile_serialization=not old)
    assert_query(tmp_path / "a.pth")


def _with_attribute(parameter: nn.Parameter) -> nn.Parameter:
    parameter.is_mine = True  # type: ignore[attr-defined]
    return parameter


def test_one_storage_of_all_tensors_is_read(tmp_path: Path) -> None:
    flat = torch.cat([t.reshape(-1) for t in PLAIN.values()])
    parts = flat.split([t.numel() for t in PLAIN.values()])
    state = {key: part.view(t.shape) for (key, t), part in zip(PLAIN.items(), parts, strict=True)}
    torch.save(state, tmp_path / "a.pth")
    assert_query(tmp_path / "a.pth")
    assert_query(legacy(state, tmp_path / "b.pth"))


OTHER: State = {
    **{
        str(kind): torch.zeros(2, 3).to(kind)
        for kind in (torch.complex64, torch.bool, torch.int16, torch.uint8)
    },
    "uint16": torch.zeros(2, dtype=torch.uint16),
    "float8": torch.zeros(2).to(torch.float8_e4m3fn),
    "sparse": torch.eye(3).to_sparse(),
    "csr": torch.eye(3).to_sparse_csr(),
    "meta": torch.zeros(3, device="meta"),
    "empty": torch.zeros(0, 5),
    "scalar": torch.tensor(3.0),
}


@pytest.mark.parametrize("key", OTHER)
def test_tensors_of_other_kinds_beside_the_backbone_do_no_harm(tmp_path: Path, key: str) -> None:
    torch.save({**QUERY, "extra": OTHER[key]}, tmp_path / "a.pth")
    assert_query(tmp_path / "a.pth")


@pytest.mark.parametrize("key", ["bool", "complex64", "uint8", "float8_e4m3fn", "sparse", "meta", "qint8"])
def test_tensors_of_other_kinds_in_the_backbone_are_refused_by_name(tmp_path: Path, key: str) -> None:
    where = "layer2.0.conv1.weight"
    if key == "sparse":
        tensor = QUERY[where].to_sparse()
    elif key == "meta":
        tensor = QUERY[where].to("meta")
    elif key == "qint8":
        tensor = torch.quantize_per_tensor(QUERY[where], 0.1, 0, torch.qint8)
    else:
        tensor = torch.zeros(QUERY[where].shape).to(getattr(torch, key))
    torch.save({**QUERY, where: tensor}, tmp_path / "a.pth")
    message = refusal(tmp_path / "a.pth", read_source)
    assert where in message
    if key == "qint8":
        assert "quantised" in message


def test_tensors_of_a_gpu_are_read_without_one(tmp_path: Path) -> None:
    zip_with(
        tmp_path / "a.pth", lambda data: data.replace(b"X\x03\x00\x00\x00cpu", b"X\x06\x00\x00\x00cuda:7")
    )
    assert_query(tmp_path / "a.pth")


def test_zip64_and_additional_members_are_read(tmp_path: Path) -> None:
    """As in files above 4 GB, sizes and offsets are in their 64-bit fields."""
    buffer = io.BytesIO()
    torch.save(QUERY, buffer)
    with zipfile.ZipFile(buffer) as old, zipfile.ZipFile(tmp_path / "a.pth", "w") as new:
        for part in old.namelist():
            with new.open(part, "w", force_zip64=True) as member:
                member.write(old.read(part))
        new.writestr("archive/.extra", "1")
        new.writestr("archive/.other", "64")
    data = (tmp_path / "a.pth").read_bytes()
    assert_query(tmp_path / "a.pth")

    entries, size, offset = struct.unpack("<H2I", data[-12:-2])
    end64 = struct.pack("<4sQ2H2I4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, entries, entries, size, offset)
    locator = struct.pack("<4sIQI", b"PK\x06\x07", 0, len(data) - 22, 1)
    end = struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    (tmp_path / "b.pth").write_bytes(data[:-22] + end64 + locator + end)
    assert_query(tmp_path / "b.pth")


def test_big_endian_and_torchscript_files_are_refused_by_name(tmp_path: Path) -> None:
    torch.save(QUERY, tmp_path / "a.pth")
    with zipfile.ZipFile(tmp_path / "a.pth") as old, zipfile.ZipFile(tmp_path / "b.pth", "w") as new:
        for part in old.namelist():
            new.writestr(part, b"big" if part.endswith("byteorder") else old.read(part))
    assert "big-endian" in refusal(tmp_path / "b.pth")
    with zipfile.ZipFile(tmp_path / "c.pth", "w") as new:
        for part in ("net/data.pkl", "net/constants.pkl", "net/code/__torch__.py"):
            new.writestr(part, b"\x80\x02}.")
    assert "TorchScript" in refusal(tmp_path / "c.pth")


def test_archives_are_refused_by_name(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.pth", "w") as tar:  # as PyTorch 0.1 wrote
        for part in ("sys_info", "pickle", "tensors", "storages"):
            tar.addfile(tarfile.TarInfo(part), io.BytesIO())
    assert "PyTorch 0.1" in refusal(tmp_path / "a.pth")
    numpy.savez(tmp_path / "b.npz", x=numpy.zeros(3))
    assert "data.pkl" in refusal(tmp_path / "b.npz")


def test_a_whole_module_is_refused_by_its_class(tmp_path: Path) -> None:
    for path in (tmp_path / "a.pth", tmp_path / "b.pth"):
        torch.save(nn.Linear(2, 2), path, _use_new_zipfile_serialization=path.name == "a.pth")
        assert "torch.nn.modules.linear.Linear" in refusal(path, read_source)


def test_truncated_old_files_are_refused(tmp_path: Path) -> None:
    data = legacy({"state_dict": QUERY}, tmp_path / "a.pth").read_bytes()
    assert_query(tmp_path / "a.pth")
    for length in (20, 200, len(data) // 2, len(data) - 1):
        (tmp_path / "a.pth").write_bytes(data[:length])
        refusal(tmp_path / "a.pth")


def test_old_files_that_claim_more_than_they_hold_are_refused(tmp_path: Path) -> None:
    data = legacy({"x": torch.zeros(77)}, tmp_path / "a.pth").read_bytes()
    (tmp_path / "a.pth").write_bytes(data.replace(b"cpuq\x06KM", b"cpuq\x06J\xff\xff\xff\x7f") if b"cpuq\x06KM" in data
                                     else data.replace(b"KM", b"J\xff\xff\xff\x7f", 1))  # fmt: skip
    assert "larger than the file" in refusal(tmp_path / "a.pth")


# --- records in the file ---


@pytest.mark.parametrize(
    "record",
    [
        {"preprocessing": {"INPUT.FORMAT": "\x1b[31m"}},
        {"preprocessing": {"INPUT.FORMAT": "RGB", "MODEL.PIXEL_MEAN": [1], "MODEL.PIXEL_STD": [1, 1, 1],
                           "MODEL.RESNETS.STRIDE_IN_1X1": False}},
        {"preprocessing": {"MODEL.PIXEL_MEAN": {}, 3: {}}},
        {"config": "INPUT: [", "iterations_per_epoch": 1},
        {"config": "[" * 50_000, "iterations_per_epoch": 1},
        {"config": "!!python/object/apply:os.system ['touch harmed']", "iterations_per_epoch": 1},
    ],
)  # fmt: skip
def test_damaged_records_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record: dict[str, Any]
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": QUERY, **record}, tmp_path / "a.pth")
    assert "damaged" in refusal(tmp_path / "a.pth", read_source)
    assert not (tmp_path / "harmed").exists()


@pytest.mark.parametrize(
    "record",
    [{"x": numpy.zeros(2)}, {"x": "a\nb"}, {"x": [[[[[[[1]]]]]]]}, {3: 4}, {"x": 1 << 100}, ["list"]],
)
def test_records_of_weights_are_plain_data(tmp_path: Path, record: Any) -> None:
    contents = {"model": detectron2_names(QUERY), "__author__": "x", "record": record}
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(contents))
    assert "`record` is damaged" in refusal(tmp_path / "a.pkl", read_weights)


def test_a_file_without_its_query_network_does_not_give_the_key_network(tmp_path: Path) -> None:
    key = {f"module.encoder_k.{n}": t for n, t in network(2, "resnet18").items()}
    query = {f"module.encoder_q.{n}": t for n, t in QUERY.items()}
    torch.save({"state_dict": key}, tmp_path / "a.pth")
    assert "--branch encoder_k" in refusal(tmp_path / "a.pth", read_source)
    assert read_source(tmp_path / "a.pth", branch="encoder_k").branch == "module.encoder_k"
    del query["module.encoder_q.layer1.0.conv1.weight"]  # the tensor by which a network is found
    torch.save({"state_dict": key | query}, tmp_path / "b.pth")
    assert "without tensor layer1.0.conv1.weight" in refusal(tmp_path / "b.pth", read_source)


@pytest.mark.parametrize(
    "extra",
    [
        "conv1.weight",
        "embedder.embedder.convolution.more.weight",
        "stem.conv1.more.weight",
        "res2.00.conv1.weight",
    ],
)
def test_a_second_tensor_for_one_place_is_never_taken(tmp_path: Path, extra: str) -> None:
    """Otherwise the last of the two would be used silently."""
    named = {n: torch.from_numpy(a) for n, a in detectron2_names(QUERY).items()}
    for number, state in enumerate((named, transformers_names(QUERY))):
        path = tmp_path / f"{number}.pth"
        like = state.get("stem.conv1.weight", state.get("embedder.embedder.convolution.weight"))
        torch.save({**state, extra: torch.zeros_like(like)}, path)
        try:
            assert_query(path)
        except UserError as error:
            assert "two tensors" in str(error) or "has no place" in str(error) or "(stem." in str(error)
