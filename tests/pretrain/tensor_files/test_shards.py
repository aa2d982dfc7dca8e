"""Checkpoints in several files: the parts together give what the whole file gives, and a missing part is named."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pretrain.common.errors import UserError
from pretrain.common.files import file_digest
from pretrain.tensor_files.shards import combined_digest, is_sharded, read_checkpoint

TENSORS = {f"layer{n}.weight": torch.full((2, n), float(n)) for n in range(1, 7)}
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
INDEX = "model.safetensors.index.json"


def _safetensors(folder: Path) -> tuple[str, str, str]:
    folder.mkdir(exist_ok=True)
    names = list(TENSORS)
    for file, part in ((FIRST, names[:4]), (SECOND, names[4:])):
        save_file({name: TENSORS[name] for name in part}, folder / file)
    places = {name: FIRST if name in names[:4] else SECOND for name in names}
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": 168}, "weight_map": places}))
    return FIRST, SECOND, INDEX


def _bin(folder: Path) -> tuple[str, str, str]:
    folder.mkdir(exist_ok=True)
    files = ("pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin")
    parts = (list(TENSORS)[:1], list(TENSORS)[1:])
    for file, part in zip(files, parts, strict=True):
        torch.save({name: TENSORS[name] for name in part}, folder / file)
    places = {name: file for file, part in zip(files, parts, strict=True) for name in part}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": places}))
    return *files, "pytorch_model.bin.index.json"


def _check_whole(path: Path) -> None:
    loaded = read_checkpoint(path)
    assert loaded.tensors.keys() == TENSORS.keys()
    assert all(torch.equal(loaded.tensors[name], tensor) for name, tensor in TENSORS.items())
    assert len(loaded.parts) == 2


@pytest.mark.parametrize("write", [_safetensors, _bin])
@pytest.mark.parametrize("indexed", [True, False])
def test_any_part_the_index_and_the_folder_give_the_whole(
    tmp_path: Path, write: Callable[[Path], tuple[str, str, str]], indexed: bool
) -> None:
    first, second, index = write(tmp_path / "a")
    if not indexed:
        (tmp_path / "a" / index).unlink()
    for name in (first, second, *([index] if indexed else []), "."):
        _check_whole(tmp_path / "a" / name)
    assert is_sharded(tmp_path / "a" / first)


def test_both_formats_in_one_folder(tmp_path: Path) -> None:
    """As on the Hugging Face Hub; transformers reads the safetensors files then."""
    _bin(tmp_path)
    _safetensors(tmp_path)
    assert read_checkpoint(tmp_path).format == "safetensors"


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as error:
        read_checkpoint(path)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("indexed", [True, False])
def test_a_missing_part_is_named(tmp_path: Path, indexed: bool) -> None:
    _safetensors(tmp_path)
    if not indexed:
        (tmp_path / INDEX).unlink()
    (tmp_path / SECOND).unlink()
    expected = f"{FIRST}: is part 1 of 2 of a checkpoint, but {SECOND} is missing"
    assert expected in refusal(tmp_path / FIRST)
    assert f"{SECOND} is missing" in refusal(tmp_path)
    assert refusal(tmp_path / SECOND).endswith(f"{SECOND}: no such checkpoint file")
    if indexed:
        assert f"{INDEX}: is the index of 2 parts of a checkpoint, but {SECOND}" in refusal(tmp_path / INDEX)
    (tmp_path / "only").mkdir()
    shutil.copy(tmp_path / FIRST, tmp_path / "only" / SECOND)
    assert f"{SECOND}: is part 2 of 2 of a checkpoint, but {FIRST} is missing" in refusal(tmp_path / "only")


def test_files_that_do_not_belong_together(tmp_path: Path) -> None:
    _safetensors(tmp_path)
    save_file({"other.weight": torch.zeros(1)}, tmp_path / SECOND)
    assert f"places layer5.weight in {SECOND}, which does not hold it" in refusal(tmp_path / FIRST)
    shutil.copy(tmp_path / FIRST, tmp_path / SECOND)
    assert f"{FIRST} and {SECOND} both hold layer" in refusal(tmp_path / INDEX)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"weight_map": {"a": "../../etc/passwd"}}', "names files outside of its folder"),
        ('{"weight_map": {"a": "/dev/zero"}}', "names files outside of its folder"),
        ('{"weight_map": {"a": 3}}', "damaged"),
        ('{"weight_map": {}}', "damaged"),
        ('{"weights": 1}', "is not the index of a checkpoint"),
        ("[" * 100_000, "is not the index of a checkpoint"),
        ("\0\xff", "is not the index of a checkpoint"),
    ],
)
def test_a_damaged_index_is_refused(tmp_path: Path, content: str, words: str) -> None:
    (tmp_path / INDEX).write_text(content, encoding="latin1")
    assert words in refusal(tmp_path / INDEX)


def test_an_index_may_not_lead_to_a_device(tmp_path: Path) -> None:
    (tmp_path / INDEX).write_text('{"weight_map": {"a": "zero"}}')
    (tmp_path / "zero").symlink_to("/dev/zero")
    assert "is not a regular file" in refusal(tmp_path / INDEX)


def test_a_single_file_and_its_folder(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "model.safetensors")
    save_file(TENSORS, tmp_path / "x-00001-of-00001.safetensors")
    for path in (tmp_path / "model.safetensors", tmp_path, tmp_path / "x-00001-of-00001.safetensors"):
        assert read_checkpoint(path).tensors.keys() == TENSORS.keys()
    assert not is_sharded(tmp_path / "x-00001-of-00001.safetensors")
    assert combined_digest([tmp_path / "model.safetensors"]) == file_digest(tmp_path / "model.safetensors")


def test_folders_without_a_checkpoint_say_what_they_hold(tmp_path: Path) -> None:
    assert "is a folder without a model.safetensors" in refusal(tmp_path)
    (tmp_path / "zero_to_fp32.py").touch()
    assert "DeepSpeed" in refusal(tmp_path)
    (tmp_path / ".metadata").touch()
    (tmp_path / "__0_0.distcp").touch()
    assert "dcp_to_torch" in refusal(tmp_path)
    for name in ("a-00001-of-00002.bin", "b-00001-of-00002.bin"):
        (tmp_path / name).touch()
    assert "several checkpoints: name one of a-00001-of-00002.bin, b-" in refusal(tmp_path)


def test_the_digest_depends_on_every_part(tmp_path: Path) -> None:
    first, second, _ = _safetensors(tmp_path)
    before = combined_digest([tmp_path / first, tmp_path / second])
    save_file({"layer5.weight": torch.ones(1)}, tmp_path / second)
    assert combined_digest([tmp_path / first, tmp_path / second]) != before
