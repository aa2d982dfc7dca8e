"""Check that the files, links and make targets in the README exist."""

import re

from tests.support.scripts import ROOT

TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def test_files_and_links_exist() -> None:
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", TEXT) if "://" not in link]
    tools = re.findall(r"tools/\w+\.py", TEXT)
    configs = [f"configs/{name}" for name in re.findall(r"(?:pretrain|transfer)/\w+\.yaml", TEXT)]
    assert links and tools and configs
    assert [name for name in links + tools + configs if not (ROOT / name).exists()] == []


def test_make_targets_exist() -> None:
    named = set(re.findall(r"(?:`|^    )make ([a-z0-9-]+)", TEXT, re.M))
    assert {"demo", "test"} <= named
    there = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
    assert named <= there
