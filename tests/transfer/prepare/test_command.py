"""What `tools/prepare_data.py` understands and refuses."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from pretrain.common.errors import UserError
from tests.support.scripts import run_script
from transfer.prepare import command
from transfer.prepare.command import SETS, main


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Path, object]]:
    """What would be built and checked: (module and function, root, arguments)."""
    found: list[tuple[str, Path, object]] = []

    def module(name: str) -> SimpleNamespace:
        def build(root: Path, args: object) -> None:
            found.append((f"{name}.build", root, args))

        def check(root: Path, args: object) -> str:
            found.append((f"{name}.check", root, args))
            return "whole"

        return SimpleNamespace(build=build, check=check)

    monkeypatch.setattr(command, "import_module", module)
    return found


OWN = {"custom": ["--json", "a.json", "--images", "photos"]}


@pytest.mark.parametrize("name", [*SETS, "voc_masks"])
def test_every_set_can_be_built_and_checked(
    name: str, calls: list[tuple[str, Path, object]], capsys: pytest.CaptureFixture[str]
) -> None:
    module = f"transfer.prepare.sets.{SETS[name.replace('_', '-')][0]}"
    assert main("", [name, "--root", "somewhere", *OWN.get(name, [])]) == 0
    assert main("", [name, "--check", *OWN.get(name, [])]) == 0
    assert [call[:2] for call in calls] == [
        (f"{module}.build", Path("somewhere")),
        (f"{module}.check", Path("datasets")),
    ]
    assert capsys.readouterr().out == "whole\n"


def test_arguments_of_custom(calls: list[tuple[str, Path, object]]) -> None:
    line = "custom --json a.json --images b --fraction 0.1 --shots 5 --seed 3 --repair --output c.json"
    main("", line.split())
    args = vars(calls[0][2])
    expected = {
        "json": Path("a.json"), "images": Path("b"), "fraction": 0.1, "shots": 5, "seed": 3, "repair": True,
        "output": Path("c.json"),
    }  # fmt: skip
    assert args | expected == args


@pytest.mark.parametrize(
    "line",
    [
        "", "imagenet22k", "voc --fraction 0.1", "custom --json a.json", "lvis --version v2", "voc --workers 0",
        "custom --json a.json --images b --fraction 0", "custom --json a.json --images b --fraction ten",
        "custom --json a.json --images b --shots -1",
    ],
)  # fmt: skip
def test_nonsense_is_refused(line: str, calls: list[object]) -> None:
    with pytest.raises(UserError, match="--help lists everything"):
        main("", line.split())
    assert not calls


def test_a_root_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file"):
        main("", ["voc", "--root", str(tmp_path / "file")])


def test_help_shows_examples() -> None:
    said = run_script("tools/prepare_data.py", "--help")
    assert said.returncode == 0 and "python tools/prepare_data.py voc-masks --archives" in said.stdout
    for name in (*SETS, "demo"):
        assert name in said.stdout
