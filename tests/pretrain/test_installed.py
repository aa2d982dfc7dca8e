"""The programs and their names in an installed package, which has no tools/."""

import importlib.util
import sys

import pytest

from pretrain import installed
from tests.support.scripts import ROOT


@pytest.fixture
def in_site_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installed, "IS_CHECKOUT", False)
    monkeypatch.setattr(
        installed, "_commands", lambda: {"train_net": "moco-train", "pretrain": "moco-pretrain"}
    )


def test_a_checkout_starts_its_scripts_and_says_so() -> None:
    assert installed.IS_CHECKOUT and installed.START_FOLDER == ROOT
    assert installed.runnable(["python", "tools/train_net.py", "--config", "tools/x.py"]) == [
        sys.executable, "tools/train_net.py", "--config", "tools/x.py",
    ]  # fmt: skip
    assert installed.as_typed("run python tools/train_net.py") == "run python tools/train_net.py"


@pytest.mark.parametrize(
    ("launcher", "started"),
    [
        ("python", [sys.executable]),
        (
            "python -m torch.distributed.run --nproc-per-node 2",
            [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"],
        ),
        ("srun torchrun --nnodes 2", ["srun", "torchrun", "--nnodes", "2"]),
    ],
)
def test_an_installed_package_starts_modules(
    launcher: str, started: list[str], in_site_packages: None
) -> None:
    command = [*launcher.split(), "tools/train_net.py", "MODEL.WEIGHTS", "tools/pretrain.py"]
    assert installed.runnable(command) == [
        *started, "-m", "transfer.programs.train_net", "MODEL.WEIGHTS", "tools/pretrain.py",
    ]  # fmt: skip
    fetch = ["python", "-m", "transfer.reproduce.jobs.fetch", "moco_v2"]
    assert installed.runnable(fetch) == [sys.executable, *fetch[1:]]


@pytest.mark.parametrize(
    ("readme", "typed"),
    [
        ("run 'python tools/train_net.py --config a.yaml'", "run 'moco-train --config a.yaml'"),
        ("written by tools/pretrain.py, or not", "written by moco-pretrain, or not"),
        (
            "torchrun --nproc-per-node 8 tools/pretrain.py",
            "torchrun --nproc-per-node 8 --no-python moco-pretrain",
        ),
        ("tools/unknown.py and my/tools/train_net.pyc", "tools/unknown.py and my/tools/train_net.pyc"),
    ],
)
def test_texts_name_the_commands(readme: str, typed: str, in_site_packages: None) -> None:
    assert installed.as_typed(readme) == typed


def test_each_script_is_a_module_too() -> None:
    for script in (ROOT / "tools").glob("*.py"):
        if script.stem != "install_detectron2":
            assert importlib.util.find_spec(f"transfer.programs.{script.stem}"), script
