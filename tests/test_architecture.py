"""Which folder may import which: the arrows between the packages, as a table, and what else keeps them apart."""

import ast
import sys
from pathlib import Path

import pytest

from tests.support.scripts import ROOT

# A folder may import itself, the folders named here and the modules named here; nothing else of ours.
# Read from the ground floor up: no line names a folder of a later line.
ARROWS = {
    "pretrain.installed": "",
    "pretrain.yaml_text": "",
    "pretrain.common": "pretrain.installed pretrain.yaml_text",
    "pretrain.tensor_files": "pretrain.common pretrain.yaml_text",
    "pretrain.data": "pretrain.common",
    "pretrain.model": "pretrain.common",
    "pretrain.config_checks": "pretrain.common pretrain.data pretrain.model",
    "pretrain.config": "pretrain.common pretrain.config_checks pretrain.data",
    "pretrain.train": "pretrain.common pretrain.config pretrain.data pretrain.model pretrain.tensor_files",
    "pretrain.benchmark": "pretrain.common pretrain.config pretrain.data pretrain.model pretrain.train",
    "transfer.d2_compat": "",
    "transfer.config": "transfer.d2_compat",
    "transfer.d2_import_hook": "transfer.config.keys",
    "transfer.results": "transfer.d2_compat",
    "transfer.intervals": "",
    "transfer.convert": "",
    "transfer.data.coco": "",
    "transfer.data": "transfer.d2_compat transfer.data.coco",
    "transfer.detector_files": "transfer.config transfer.data",
    "transfer.metrics": "transfer.data",
    "transfer.models": "transfer.convert",
    "transfer.convert.vit": "transfer.convert transfer.models",
    "transfer.convert.program": "transfer.convert transfer.convert.vit",
    "transfer.visualize": (
        "transfer.config transfer.data transfer.detector_files transfer.models pretrain.config pretrain.data"
    ),
    "transfer.predict": "transfer.data transfer.detector_files transfer.models transfer.visualize",
    "transfer.train": (
        "transfer.config transfer.d2_compat transfer.data transfer.detector_files transfer.metrics transfer.models "
        "transfer.results transfer.visualize"
    ),
    "transfer.benchmark": (
        "transfer.config transfer.metrics transfer.results transfer.train pretrain.benchmark"
    ),
    "transfer.report": "transfer.visualize",
    "transfer.prepare.sets": "transfer.data pretrain.data.tar_index",
    "transfer.prepare.demo": "pretrain.data.tar_index",
    "transfer.prepare": (
        "transfer.config.keys transfer.data.coco.box_formats transfer.prepare.demo transfer.prepare.sets"
    ),
    "transfer.linear": (
        "transfer.convert transfer.results pretrain.data pretrain.train.knn_monitor"
    ),
    "transfer.demo": (
        "transfer.config transfer.convert transfer.data transfer.prepare.demo transfer.prepare.sets.open_nsfw "
        "transfer.intervals transfer.predict transfer.report transfer.results transfer.visualize pretrain.config "
        "pretrain.data.views_sheet"
    ),
    "transfer.reproduce.jobs": "transfer.convert transfer.prepare.sets",
    "transfer.reproduce.plan": (
        "transfer.config transfer.convert transfer.data transfer.linear transfer.prepare.sets.open_nsfw "
        "transfer.results transfer.reproduce.jobs pretrain.config pretrain.benchmark.fake_photos"
    ),
    "transfer.reproduce.results": (
        "transfer.intervals transfer.linear transfer.results transfer.reproduce.jobs transfer.reproduce.plan"
    ),
    "transfer.reproduce.page": (
        "transfer.intervals transfer.prepare.demo transfer.report transfer.reproduce.jobs transfer.reproduce.plan "
        "transfer.reproduce.results"
    ),
    "transfer.reproduce": (
        "transfer.config.keys transfer.report transfer.reproduce.jobs transfer.reproduce.plan "
        "transfer.reproduce.results transfer.reproduce.page"
    ),
    "transfer.compare": (
        "transfer.config transfer.convert transfer.data transfer.models transfer.train transfer.reproduce "
        "transfer.reproduce.jobs transfer.reproduce.plan "
        "transfer.reproduce.results.text_tables pretrain.model.memory"
    ),
    "transfer.install_detectron2": "",
    "transfer.programs": (
        "transfer.benchmark "
        "transfer.compare transfer.config.keys transfer.convert transfer.demo transfer.linear transfer.predict "
        "transfer.prepare transfer.reproduce transfer.reproduce.results transfer.train transfer.visualize "
        "pretrain.benchmark "
        "pretrain.config pretrain.train"
    ),
}  # fmt: skip
# What everything in transfer/ may use of pre-training.
SHARED = (
    "pretrain.__version__ pretrain.installed pretrain.yaml_text pretrain.common pretrain.tensor_files "
    "pretrain.model.encoders pretrain.model.norm pretrain.model.precision pretrain.model.vit pretrain.data.decode "
    "pretrain.data.folders"
)
MOST_MODULES = 12  # in a folder
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


def room_of(path: Path) -> str:
    """The entry of ARROWS that a source file belongs to: its folder, or itself at the top of a package."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if len(parts) > 2 else parts)


def is_within(name: str, allowed: str) -> bool:
    """Whether a dotted name is one of the allowed folders or modules, or inside of one."""
    return any(name == one or name.startswith(one + ".") for one in allowed.split())


@pytest.mark.parametrize("room", ARROWS)
def test_imports_follow_the_arrows(room: str) -> None:
    paths = [path for path in SOURCES if room_of(path) == room]
    assert paths, f"{room}: no such folder or module"
    shared = SHARED if room.startswith("transfer.") else "pretrain.__version__"
    for path in paths:
        ours = of_package(imports(path), "pretrain") | of_package(imports(path), "transfer")
        wrong = {
            name
            for name in ours
            # a folder's own modules, without the folders inside of it
            if not (
                name.startswith(room + ".")
                and not any(is_within(name, r) for r in ARROWS if r.startswith(room + "."))
            )
            and not is_within(name, ARROWS[room])
            and not is_within(name, shared)
        }
        assert not wrong, f"{path.relative_to(ROOT)} may not import {sorted(wrong)}"


def test_arrows_never_point_up() -> None:
    """Each folder is listed after all that it imports, so there is no circle."""
    rooms = list(ARROWS)
    for place, room in enumerate(rooms):
        for target in ARROWS[room].split():
            home = max((other for other in rooms if is_within(target, other)), key=len)
            assert rooms.index(home) < place, f"{room} -> {target}"


def test_every_module_has_a_room() -> None:
    roots = {"pretrain.__init__", "transfer.__init__"}
    rooms = {room_of(path) for path in SOURCES if path.relative_to(ROOT).parts[0] in ("pretrain", "transfer")}
    assert rooms - roots == set(ARROWS)


def test_folders_are_small() -> None:
    programs = ROOT / "tools"
    for folder in {path.parent for path in SOURCES} - {programs}:
        modules = [path.name for path in folder.glob("*.py") if path.name != "__init__.py"]
        assert len(modules) <= MOST_MODULES, f"{folder.relative_to(ROOT)}: {len(modules)} modules"


def test_nothing_imports_tools_and_only_transfer_imports_detectron2() -> None:
    for path in SOURCES:
        names, package = imports(path), path.relative_to(ROOT).parts[0]
        assert not of_package(names, "tools"), (
            f"{path}: tools/ is not a package: detectron2 installs one of that name"
        )
        if package == "pretrain" or (package == "tools" and path.name != "install_detectron2.py"):
            assert not of_package(names, "detectron2"), path


def test_package_roots_import_next_to_nothing() -> None:
    """`import transfer` waits for detectron2 (d2_import_hook), and every tool imports it: it has to be cheap."""
    assert imports(ROOT / "pretrain" / "__init__.py") == {"os"}
    assert imports(ROOT / "transfer" / "__init__.py") == {"transfer.d2_import_hook"}
    assert imports(ROOT / "transfer" / "config" / "__init__.py") == set()
    loaded = imports(ROOT / "transfer/d2_import_hook.py") | imports(ROOT / "transfer/config/keys.py")
    ours = {"transfer.config.keys.add_keys"}
    assert ours <= loaded
    assert {name.split(".")[0] for name in loaded - ours} <= sys.stdlib_module_names


def test_scripts_put_the_root_first() -> None:
    for path in sorted((ROOT / "tools").glob("*.py")):
        lines = ast.unparse(ast.parse(path.read_text(encoding="utf-8")))
        uses_us = of_package(imports(path), "pretrain") | of_package(imports(path), "transfer")
        assert not uses_us or "sys.path[0] = str(Path(__file__).resolve().parents[1])" in lines, path
    assert not (ROOT / "tools" / "__init__.py").exists()
