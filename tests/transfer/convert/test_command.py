"""`tools/convert_to_d2.py` from the user's side: no file of theirs is overwritten, and no flag is ignored silently."""

from pathlib import Path

import pytest
import torch

from tests.support.checkpoints import plain_file, small_network
from tests.support.scripts import run_script
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
        (["--pixel-std", "1,0,1"], "--pixel-std 1,0,1: give three numbers above 0 for pixels in 0..255"),
    ],
)
def test_flags_without_effect_or_sense_are_refused(tmp_path: Path, flags: list[str], message: str) -> None:
    assert message in refusal(tmp_path / "a.pth", tmp_path / "b.pth", *flags)


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
