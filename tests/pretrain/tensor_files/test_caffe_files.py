"""Caffe models are read as their bytes say; damaged and hostile ones are one line."""

from pathlib import Path

import numpy
import pytest
import torch

from pretrain.common.errors import UserError
from pretrain.tensor_files.read_any import read_file
from tests.support.fuzzing.caffe import blob, field, layer, varint

ONES = numpy.ones(3, "f4")
FACTOR = numpy.array([4], "f4")


def written(path: Path, *layers: bytes, start: bytes = field(1, "net")) -> Path:
    path = path / "a.caffemodel"
    path.write_bytes(start + b"".join(layers))
    return path


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as error:
        read_file(path)
    message = str(error.value)
    assert message.startswith(f"{path}: ") and message.isprintable() and len(message) < 400 + len(str(path))
    return message


@pytest.mark.parametrize("old", [False, True])
def test_parts_have_the_names_that_pytorch_has(tmp_path: Path, old: bool) -> None:
    kernel = numpy.arange(2 * 3 * 5 * 5, dtype="f4").reshape(2, 3, 5, 5)
    mean, variance = numpy.array([1, -2, 3], "f4"), numpy.array([8, 4, 0], "f4")
    path = written(
        tmp_path,
        layer("data", "Input"),
        layer("c", "Convolution", blob(kernel, old=old), blob(ONES[:2], old=old), stride=2),
        layer("n/1", "BatchNorm", *(blob(part, old=old) for part in (mean, variance, FACTOR)), eps=1e-5),
        layer("s", "Scale", blob(ONES, old=old), blob(2 * ONES, old=old)),
        layer("p", "PReLU", blob(ONES, old=old)),
    )
    loaded = read_file(path)
    assert loaded.format == "caffe" and loaded.other["c"]["stride"] == 2
    expected = {
        "c.weight": kernel, "c.bias": ONES[:2], "n/1.running_mean": mean / 4, "n/1.running_var": variance / 4,
        "s.weight": ONES, "s.bias": 2 * ONES,
    }  # fmt: skip
    assert list(loaded.tensors) == [*expected, "p.0"]
    for name, array in expected.items():
        assert torch.equal(loaded.tensors[name], torch.from_numpy(array))


def test_data_in_pieces_are_joined(tmp_path: Path) -> None:
    """A repeated field may come in several packed pieces."""
    pieces = field(5, numpy.array([1, 2], "f4").tobytes()) + field(5, numpy.array([3], "f4").tobytes())
    path = written(tmp_path, layer("s", "Scale", field(7, field(1, 3)) + pieces))
    assert read_file(path).tensors["s.weight"].tolist() == [1, 2, 3]


STATISTICS = [blob(ONES), blob(ONES)]


DAMAGED = {
    "huge": (layer("c", "Convolution", blob(ONES, dims=[1 << 40, 1 << 40])), "a blob of shape [1099511627776"),
    "negative": (layer("c", "Convolution", blob(ONES, dims=[-1, -3])), "has a blob of shape [-1, -3] with 3 numbers"),
    "larger": (layer("c", "Convolution", blob(ONES, dims=[4])), "has a blob of shape [4] with 3 numbers"),
    "deep": (layer("c", "Convolution", blob(ONES, dims=[1] * 99 + [3])), "has a blob of shape [1, 1, 1"),
    "no floats": (layer("c", "Convolution", blob(ONES.astype("i4"))), "has a blob of shape [3] with 0 numbers"),
    "two of a name": (layer("c", "Convolution", blob(ONES)) * 2, "two layers named c"),
    "three blobs": (layer("c", "Scale", *[blob(ONES)] * 3), "layer c has 3 blobs, and a Scale at most 2"),
    "many blobs": (layer("c", "\x1b[2J", *[blob(ONES)] * 101), "layer c has 101 blobs, and a \\x1b[2J at most 100"),
    "no factor": (layer("b", "BatchNorm", *STATISTICS), "layer b has 2 blobs instead of mean, variance"),
    "factor 0": (layer("b", "BatchNorm", *STATISTICS, blob(0 * FACTOR)), "layer b has 0 as its scale factor"),
    "factor -4": (layer("b", "BatchNorm", *STATISTICS, blob(-FACTOR)), "layer b has -4 as its scale factor"),
    "factor NaN": (layer("b", "BatchNorm", *STATISTICS, blob(numpy.nan * FACTOR)), "b has nan as its scale factor"),
    "factors": (layer("b", "BatchNorm", *STATISTICS, blob(ONES)), "layer b has 3 numbers as its scale factor"),
    "eps": (layer("b", "BatchNorm", *STATISTICS, blob(FACTOR), eps=1e-3), "layer b has an eps of 0.001"),
    "name": (layer("\x1b[31m\n" + "x" * 5000, "BatchNorm", blob(ONES)), "has 1 blobs instead of"),
    "first format": (field(2, field(4, "convolution1")), "Caffe's first format (V1): upgrade it"),
    "many layers": (layer("r", "ReLU") * 20_001, "has 20001 layers"),
    "endless": (varint(100 << 3 | 2) + varint(1 << 60), "not a readable Caffe model"),
    "truncated": (layer("c", "Convolution", blob(ONES))[:-5], "not a readable Caffe model"),
    "no varint": (field(100, field(7, field(7, field(1, b"\x88" * 9)))), "not a readable Caffe model"),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGED)
def test_what_is_damaged_is_one_line(tmp_path: Path, name: str) -> None:
    damaged, words = DAMAGED[name]
    assert words in refusal(written(tmp_path, damaged))


def test_many_small_things_do_not_fill_the_memory(tmp_path: Path) -> None:
    """Three bytes of the file make a message of a hundred."""
    refusal(written(tmp_path, field(100, b"") * 1_000_000))
    refusal(written(tmp_path, field(100, field(7, b"") * 1_000_000)))


def test_each_truncation_is_one_line(tmp_path: Path) -> None:
    whole = layer("c", "Convolution", blob(ONES), stride=2) + layer(
        "b", "BatchNorm", *STATISTICS, blob(FACTOR)
    )
    first = len(field(1, "net") + layer("c", "Convolution", blob(ONES), stride=2))
    for length in range(9, len(whole), 17):
        path = written(tmp_path, whole[:length])
        if path.stat().st_size == first:
            continue
        refusal(path)


def test_another_extension_is_no_caffe_model(tmp_path: Path) -> None:
    path = written(tmp_path, layer("c", "Convolution", blob(ONES))).rename(tmp_path / "a.pth")
    assert "or a Caffe model (*.caffemodel)" in refusal(path)


def test_a_text_with_the_extension_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.caffemodel"
    path.write_text("version https://git-lfs.github.com/spec/v1\n")
    assert "Git LFS pointer" in refusal(path)


def test_without_protobuf_the_message_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, layer("c", "Convolution", blob(ONES)))
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert "pip install protobuf" in refusal(path)
