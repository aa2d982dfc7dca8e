"""`tools/convert_to_d2.py` from the user's side: no file of theirs is overwritten, and no flag is ignored silently."""

import argparse
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.checkpoints import plain_file, small_network
from tests.support.scripts import run_script
from transfer.convert.program import command
from transfer.convert.weights_file import read_weights

SMALL = small_network().state_dict()
TOOL = "tools/convert_to_d2.py"


def refusal(*arguments: object) -> str:
    result = run_script(TOOL, *map(str, arguments))
    assert result.returncode == 2 and result.stderr.count("\n") == 1, result.stderr
    return result.stderr


def test_two_checkpoints_of_a_glob_are_not_input_and_output(tmp_path: Path) -> None:
    first, second = (plain_file(tmp_path / name, SMALL) for name in ("a.pth", "b.pth"))
    before = second.read_bytes()
    assert "b.pth exists and was not written by this converter" in refusal(first, second)
    assert "b.pth exists" in refusal(first, second, "--to", "timm")
    assert second.read_bytes() == before
    assert run_script(TOOL, str(first), str(second), "--no-verify", "--overwrite").returncode == 0
    assert second.read_bytes() != before
    # The output was written by this converter, so it may be replaced.
    assert run_script(TOOL, str(first), str(second), "--no-verify").returncode == 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--format", "pth"],
            "--format has no effect with INPUT OUTPUT; the extension of OUTPUT decides the format",
        ),
        (["--to", "timm", "--keep", "fpn"], "--keep has no effect with --to"),
        (["--output-dir", "x", "--record", "r.json"], "--record has no effect with --output-dir"),
        (["--inspect", "--to", "moco"], "--to has no effect with --inspect"),
        (
            ["--pixel-std", "1,0,1"],
            "--pixel-std 1,0,1: give three numbers above 0 in the network's channel order",
        ),
        (["--mean", "1,2"], "--pixel-mean 1,2: give three numbers in the network's channel order"),
        (["--mean", "1,2,nan"], "--pixel-mean 1,2,nan: give three numbers"),
        (["--mean", "1,2,inf"], "--pixel-mean 1,2,inf: give three numbers"),
        (["--mean", "1,2,\x1b[2J"], "--pixel-mean 1,2,\\x1b[2J: give three numbers"),
        (
            ["--mean", "123.7,116.3,103.5", "--std", "58,57,57", "--scale", "1"],
            "--pixel-mean 123.7,116.3,103.5: out of place for pixels in 0..1, which --scale 1 says: each number must "
            "be between 0 and 1; leave out --scale 1 if they are for pixels in 0..255",
        ),
        (["--std", "58,57,57", "--scale", "1"], "--pixel-std 58,57,57: out of place for pixels in 0..1"),
        (
            ["--mean=-1,0,0"],
            "out of place for pixels in 0..255, the default of --scale: each number must be between 0 and",
        ),
        (["--mean", "1,2,300"], "--pixel-mean 1,2,300: out of place for pixels in 0..255"),
        (
            ["--mean", "0.485,0.456,0.406"],
            "looks like values for pixels in 0..1: if the network saw these, add --scale 1",
        ),
        (
            ["--std", "0.2,0.2,0.2"],
            "looks like values for pixels in 0..1: if the network saw these, add --scale 1",
        ),
        (["--scale", "1"], "--scale 1 has no effect without --pixel-mean and --pixel-std"),
        (["--scale", "2"], "argument --scale: invalid choice: '2'"),
        (["--bgr", "--channel-order", "RGB"], "argument --channel-order: not allowed with argument --bgr"),
    ],
)
def test_flags_without_effect_or_sense_are_refused(tmp_path: Path, flags: list[str], message: str) -> None:
    path = tmp_path / "a.pth"
    path.touch()  # the flags are looked at before what it holds
    assert message in refusal(path, tmp_path / "b.pth", *flags)


def test_the_record_is_a_file_of_its_own(tmp_path: Path) -> None:
    path = plain_file(tmp_path / "a.pth", SMALL)
    assert "the name must end in .json" in refusal(path, tmp_path / "a.pkl", "--record", tmp_path / "a.pkl")
    assert list(tmp_path.iterdir()) == [path]


def test_flags_may_stand_anywhere(tmp_path: Path) -> None:
    path = plain_file(tmp_path / "a.pth", SMALL)
    assert run_script(TOOL, str(path), "--no-verify", str(tmp_path / "a.pkl")).returncode == 0


def test_inspect_goes_on_after_a_damaged_file(tmp_path: Path) -> None:
    (tmp_path / "a.pth").write_bytes(b"PK nothing")
    plain_file(tmp_path / "b.pth", SMALL)
    torch.save({"x": 1}, tmp_path / "c.pth")
    result = run_script(TOOL, "--inspect", str(tmp_path / "*.pth"))
    assert result.returncode == 2 and "1 of 3 files could not be read" in result.stderr
    assert "verdict   cannot be read" in result.stdout and "depth     ResNet-50" in result.stdout
    assert "verdict   cannot be converted" in result.stdout


def test_names_of_files_and_tensors_do_not_steer_the_terminal(tmp_path: Path) -> None:
    odd = {"layer1.0.odd\x1b[2J.weight": torch.zeros(3), "head\x1b]0;x.weight": torch.zeros(2, 2)}
    plain_file(tmp_path / "a\x1b[2J.pth", SMALL | odd)
    plain_file(tmp_path / "b\x1b[2J.pth", SMALL | {"head\x1b]0;x.weight": torch.zeros(2, 2)})
    (tmp_path / "c\x1b[2J.pth").write_text("nothing")
    result = run_script(TOOL, "--inspect", str(tmp_path / "*.pth"))
    printed = result.stdout + result.stderr
    assert all(line.isprintable() for line in printed.split("\n"))
    for name in (r"a\x1b[2J.pth", r"b\x1b[2J.pth", r"c\x1b[2J.pth", r"layer1.0.odd\x1b[2J", r"head\x1b]0;x"):
        assert name in printed


def test_a_file_as_output_folder(tmp_path: Path) -> None:
    path = plain_file(tmp_path / "a.pth", SMALL)
    assert f"--output-dir {path} is a file" in refusal(path, "--output-dir", path)


def test_flags_state_the_input(tmp_path: Path) -> None:
    flags = ["--channel-order", "BGR", "--pixel-mean", "[1,2,3]", "--pixel-std", "4,5,6", "--stride-in-1x1"]
    source = plain_file(tmp_path / "a.pth", SMALL)
    result = run_script(TOOL, str(source), str(tmp_path / "a.pkl"), "--no-verify", *flags)
    assert result.returncode == 0, result.stderr
    expected = "input     BGR, mean 1, 2, 3, std 4, 5, 6; stride in the 1x1 convolution\n          "
    assert (
        expected + "--channel-order, --pixel-mean, --pixel-std, --stride-in-1x1 as given\n" in result.stdout
    )
    settings = read_weights(tmp_path / "a.pkl")["preprocessing"]
    assert settings["MODEL.PIXEL_MEAN"] == [1, 2, 3] and settings["MODEL.RESNETS.STRIDE_IN_1X1"] is True


def given(*flags: str) -> dict[str, Any]:
    names = ("channel_order", "pixel_mean", "pixel_std", "stride_in_1x1", "scale")
    values = dict(zip(flags[::2], flags[1::2], strict=True))
    return command._given(argparse.Namespace(**{name: values.get(name) for name in names}))


def test_statistics_are_in_the_units_that_are_stated() -> None:
    small = ("pixel_mean", "0.4,0.5,0.6", "pixel_std", "0.2,0.25,0.3")
    in_unit = given(*small, "scale", "1")
    assert in_unit["mean"] == pytest.approx((102, 127.5, 153)) and in_unit["std"] == pytest.approx(
        (51, 63.75, 76.5)
    )
    assert given(*small, "scale", "255") == {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.25, 0.3)}
    raw = ("pixel_mean", "0,0,0", "pixel_std", "1,1,1")
    assert given(*raw, "scale", "1") == {"mean": (0, 0, 0), "std": (255, 255, 255)}
    assert given(*raw) == {"mean": (0, 0, 0), "std": (1, 1, 1)}
    assert given("pixel_std", "256,256,256") == {"std": (256, 256, 256)}
    assert given("channel_order", "BGR") == {"format": "BGR"}
