"""The arrows between the packages: pretrain knows nothing of transfer, tools are imported by nobody."""

import ast
import sys
from pathlib import Path

import pytest
from scripts import ROOT

FROM_PRETRAIN = {
    "__version__",
    "encoders",
    "norm",
    "checkpoint",
    "config",
    "dist",
    "errors",
    "console",
    "amp",
    "stop",
    "loggers",
    "files",
    "made_pictures",
    "images",
}
# The linear probe trains on images as pre-training does, by the same code.
FOR_LINEAR = {"data", "decode", "views", "broken", "probe", "step", "rng"}
SOURCES = [
    path
    for folder in ("pretrain", "transfer", "tools", "tests")
    for path in sorted((ROOT / folder).rglob("*.py"))
]


def imports(path: Path) -> set[str]:
    """Dotted names that a file imports, at any depth: `from a import b` counts as a.b."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def of_package(names: set[str], package: str) -> set[str]:
    return {name for name in names if name == package or name.startswith(package + ".")}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_follow_the_arrows(path: Path) -> None:
    names, package = imports(path), path.relative_to(ROOT).parts[0]
    assert not of_package(names, "tools"), "tools/ is no package: detectron2 installs one of that name"
    if package == "pretrain":
        assert not of_package(names, "transfer") and not of_package(names, "detectron2")
    if package == "transfer":
        used = {name.split(".")[1] for name in of_package(names, "pretrain") if "." in name}
        allowed = FROM_PRETRAIN | (FOR_LINEAR if path.name.startswith("linear") else set())
        assert used <= allowed, f"transfer/ may not import {used - allowed}"
    if package == "tools":
        assert not of_package(names, "detectron2") or path.name == "install_detectron2.py"


def test_package_roots_import_next_to_nothing() -> None:
    """`import transfer` waits for detectron2 (transfer.plain), and every tool imports it: it has to be cheap."""
    assert imports(ROOT / "pretrain" / "__init__.py") == set()
    assert imports(ROOT / "transfer" / "__init__.py") == {"transfer.plain"}
    loaded = imports(ROOT / "transfer" / "plain.py") | imports(ROOT / "transfer" / "keys.py")
    ours = {"transfer.config.keys.add_keys"}
    assert ours <= loaded
    assert {name.split(".")[0] for name in loaded - ours} <= sys.stdlib_module_names


def test_scripts_put_the_root_first() -> None:
    for path in sorted((ROOT / "tools").glob("*.py")):
        lines = ast.unparse(ast.parse(path.read_text(encoding="utf-8")))
        uses_us = of_package(imports(path), "pretrain") | of_package(imports(path), "transfer")
        assert not uses_us or "sys.path[0] = str(Path(__file__).resolve().parents[1])" in lines, path
    assert not (ROOT / "tools" / "__init__.py").exists()
