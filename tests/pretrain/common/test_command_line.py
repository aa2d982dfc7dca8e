"""Mistakes on the command line, and `--resume [FROM]` before KEY VALUE pairs."""

import argparse
from pathlib import Path

import pytest

from pretrain.common import command_line
from pretrain.common.errors import UserError


def parse(*words: str) -> tuple[object, list[str]]:
    parser = argparse.ArgumentParser()
    command_line.add_resume(parser, "last.pth")
    parser.add_argument("--weights")
    command_line.add_overrides(parser)
    args = parser.parse_intermixed_args(command_line.mark_resume(list(words)))
    return args.resume, args.overrides


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("a.pth", "b.pth.tar", "backup", "out/state"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


@pytest.mark.parametrize("flag", ["--resume", "--resum", "--res"])
def test_the_word_after_the_flag(here: Path, flag: str) -> None:
    assert parse("SEED", "3") == (False, ["SEED", "3"])
    assert parse("SEED", "3", flag) == (True, ["SEED", "3"])
    assert parse(flag, "SEED", "3") == (True, ["SEED", "3"])
    assert parse("A", "1", flag, "B", "x/y.pth", "C", "2") == (True, ["A", "1", "B", "x/y.pth", "C", "2"])
    assert parse(flag, "--weights", "a.pth", "SEED", "3") == (True, ["SEED", "3"])
    for name in ("a.pth", "b.pth.tar", "backup", "out/state", str(here / "a.pth")):
        assert parse("A", "1", flag, name, "B", "2") == (Path(name), ["A", "1", "B", "2"])
        assert parse(f"{flag}={name}", "B", "2") == (Path(name), ["B", "2"])
    assert parse(flag, "backup2", "3") == (True, ["backup2", "3"])  # the config refuses it as a key


@pytest.mark.parametrize("name", ["none.pth", "none.tar", "out/none", "/none", "x\x1b[2J/y"])
def test_a_file_that_is_missing(here: Path, name: str) -> None:
    with pytest.raises(
        UserError, match=r"^--resume \S+: no such file; name a checkpoint, or leave it out"
    ) as error:
        parse("--resume", name, "A", "1")
    assert str(error.value).isprintable()
    with pytest.raises(UserError, match="--resume out/: is not a file"):
        parse("--resume", "out/")


def test_given_twice(here: Path) -> None:
    """Programs that start a tool add the flag at the end; it must not win over FROM unnoticed."""
    assert parse("--resume", "A", "1", "--resume") == (True, ["A", "1"])
    assert parse("--resume", "a.pth", "--resume", "a.pth") == (Path("a.pth"), [])
    for more in (["--resume"], ["--resume", "backup"]):
        with pytest.raises(UserError, match="--resume is given twice"):
            parse("--resume", "a.pth", "A", "1", *more)


def test_a_flag_of_another_command_is_said_to_be_one() -> None:
    parser = command_line.Parser(prog="tool.py")
    parser.add_argument("--config")
    commands = parser.add_subparsers()
    commands.add_parser("voc-masks", aliases=["voc_masks"]).add_argument("--archives")
    commands.add_parser("voc").add_argument("--archives")
    commands.add_parser("custom").add_argument("--fraction")
    for words, message in (
        (["voc", "--fraction", "2"], "voc has no flag --fraction: custom has it; tool.py --help"),
        (["voc_masks", "--frac=2"], "voc_masks has no flag --frac: custom has it; tool.py --help"),
        (
            ["custom", "--archives", "x"],
            "custom has no flag --archives: voc-masks, voc have it; tool.py --help",
        ),
    ):
        with pytest.raises(UserError, match=f"^{message}"):
            parser.parse_args(words)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--confg", "x"], "--confg: no such flag; did you mean --config?"),
        (["--nothing", "--config", "x"], "--nothing: no such flag; "),
        (["--sizee=3", "--config", "x"], "--sizee: no such flag; did you mean --size?"),
        (["--config", "x", "--size", "y"], "argument --size: invalid int value: 'y'"),
        (["--conf", "x", "run", "--trails"], "--trails: no such flag; did you mean --trials?"),
        (["--config", "x", "\x1b[2J"], "invalid choice"),
        ([], "the following arguments are required: --config"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_flag(words: list[str], message: str) -> None:
    parser = command_line.Parser(prog="tool.py")
    parser.add_argument("--config", required=True)
    parser.add_argument("--size", type=int)
    parser.add_subparsers().add_parser("run").add_argument("--trials")
    with pytest.raises(UserError) as error:
        parser.parse_args(words)
    assert message in str(error.value) and "--help lists everything" in str(error.value)
    assert str(error.value).isprintable()
