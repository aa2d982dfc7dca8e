"""Check the docs: pages are in the site; links, commands, flags, configs and values of settings are right."""

import contextlib
import functools
import io
import re
import runpy
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from pretrain import __version__
from pretrain import config as pretrain_config
from pretrain.common.configs import flatten, merge
from tests.support.scripts import ROOT
from transfer.config.load import read_config
from transfer.linear import config as linear_config
from transfer.reproduce.plan import tables

DOCS = ROOT / "docs"
ROOT_PAGES = [ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md")]
PAGES = [*sorted(DOCS.glob("*.md")), *ROOT_PAGES]
each_page = pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
CONFIG = re.compile(r"\b(?:configs/)?(?:pretrain|transfer|linear)/\w+\.yaml")


book = functools.cache(tables.read)


def text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def prose(path: Path) -> str:
    """Return a page without its code blocks."""
    unfenced = re.sub(r"^```.*?^```", "", text(path), flags=re.M | re.S)
    return re.sub(r"^(?: {4}|\t).*$", "", unfenced, flags=re.M)


def anchors(path: Path) -> set[str]:
    """Return the anchors of a page's headings. Python-Markdown and GitHub make the same ones for our headings."""
    heads = re.findall(r"^#+ (.+)$", prose(path), re.M)
    return {re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", head).strip().lower()) for head in heads}


def nav(node: Any) -> Iterator[str]:
    """Yield the file names in the site's navigation."""
    if isinstance(node, str):
        yield node
        return
    for part in node.values() if isinstance(node, dict) else node:
        yield from nav(part)


def test_every_tool_is_in_the_changelog() -> None:
    named = set(re.findall(r"tools/\w+\.py", text(ROOT / "CHANGELOG.md")))
    assert named == {f"tools/{path.name}" for path in (ROOT / "tools").glob("*.py")}
    assert f"## {__version__}" in text(ROOT / "CHANGELOG.md")


def test_the_citation_names_this_version_and_both_papers() -> None:
    """The keys that version 1.2.0 of the Citation File Format requires."""
    cited = yaml.safe_load(text(ROOT / "CITATION.cff"))
    assert cited.keys() >= {"cff-version", "message", "title", "authors"}
    assert (cited["cff-version"], str(cited["version"])) == ("1.2.0", __version__)
    assert all({"type", "title", "authors"} <= paper.keys() for paper in cited["references"])
    numbers = [re.findall(r"[\d.]+$", paper["url"]) for paper in cited["references"]]
    assert numbers == [["1911.05722"], ["2003.04297"]]
    assert all(number in text(ROOT / "README.md") for (number,) in numbers)


def test_every_page_is_in_the_site_once() -> None:
    listed = list(nav(yaml.safe_load(text(ROOT / "mkdocs.yml"))["nav"]))
    assert sorted(listed) == sorted(path.name for path in DOCS.glob("*.md"))


@each_page
def test_links_lead_somewhere(path: Path) -> None:
    wrong = []
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(path)):
        name, _, anchor = link.partition("#")
        target = path.parent / name if name else path
        if "://" in link:
            continue
        if not target.exists() or (anchor and anchor not in anchors(target)):
            wrong.append(link)
        if path.parent == DOCS and target.resolve().parent != DOCS:
            wrong.append(f"{link}: not in the site")
    assert wrong == []


@functools.cache
def help_of(tool: str, command: str = "") -> str:
    """Return what `python tools/X.py [COMMAND] --help` prints. Run in this process, which has the imports already."""
    before, printed = (list(sys.argv), list(sys.path)), io.StringIO()
    sys.argv = [tool, *filter(None, [command]), "--help"]
    try:
        with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
            runpy.run_path(str(ROOT / tool), run_name="__main__")
    finally:
        sys.argv[:], sys.path[:] = before
    return printed.getvalue()


def commands(path: Path) -> Iterator[str]:
    """Yield the command lines of our tools, from code blocks (continued lines are joined) and from inline code."""
    joined = text(path).replace("\\\n", " ")
    for line in joined.splitlines():
        if re.match(r"(?: {4}|\$ )", line) and "tools/" in line:
            yield line.split(" #")[0]
    yield from re.findall(r"`([^`\n]*tools/\w+\.py[^`\n]*)`", joined)


def flags_of(tool: str, command: str) -> set[str]:
    """Return the flags in the list of options, without those in the examples."""
    options = re.findall(r"^ +(-.*)$", help_of(tool, command), re.M)
    return {flag for line in options for flag in re.findall(r"--[\w-]+", line.split("  ")[0])}


def needed_flags(tool: str, command: str) -> set[str]:
    """Return the required flags: those that the usage line shows outside brackets."""
    usage = help_of(tool, command).split("\n\n")[0]
    while usage != (usage := re.sub(r"\[[^][]*\]", "", usage)):
        pass
    usage = re.sub(r"\([^()]*\)", "", usage)  # (--run RUN | --config CONFIG): either will do
    return set(re.findall(r"--[\w-]+", usage))


def wrong_parts(line: str) -> list[str]:
    """Return what is wrong in a command line: unknown tool, flags or configs, and missing required flags."""
    words = shlex.split(re.sub(r"\[(--[^]]*)\]", r"\1", line))  # [--check] is optional
    place = next((n for n, word in enumerate(words) if re.fullmatch(r"tools/\w+\.py", word)), None)
    if place is None:
        return []
    tool, rest = words[place], words[place + 1 :]
    if not (ROOT / tool).is_file():
        return [tool]
    own = rest[:1] if rest[:1] and re.search(rf"^    {re.escape(rest[0])}\b", help_of(tool), re.M) else []
    flags = {word.split("=")[0] for word in rest if re.match(r"--\w", word)}
    needed = needed_flags(tool, "".join(own)) if flags and "--help" not in flags else set()
    flags = (flags - flags_of(tool, "".join(own))) | (needed - flags)
    configs = [
        name
        for name in CONFIG.findall(line)
        if not (ROOT / "configs" / name.removeprefix("configs/")).is_file()
    ]
    return [f"{tool} {part}" for part in [*sorted(flags), *configs]]


@each_page
def test_commands_name_what_exists(path: Path) -> None:
    assert [part for line in commands(path) for part in wrong_parts(line)] == []


def test_a_wrong_flag_or_tool_would_be_found() -> None:
    assert wrong_parts("python tools/train_net.py --config a.yaml --gpus 8") == ["tools/train_net.py --gpus"]
    assert wrong_parts("python tools/prepare_data.py custom --json a --images b --fix") == [
        "tools/prepare_data.py --fix"
    ]
    assert wrong_parts("python tools/prepare_data.py voc --json a") == ["tools/prepare_data.py --json"]
    assert wrong_parts("python tools/visualize.py predictions --run a") == ["tools/visualize.py --output"]
    assert wrong_parts("python tools/train.py --config a.yaml") == ["tools/train.py"]
    assert wrong_parts("python tools/pretrain.py --config pretrain/moco_v9.yaml") != []


@each_page
def test_files_that_are_named_exist(path: Path) -> None:
    configs = [f"configs/{name.removeprefix('configs/')}" for name in CONFIG.findall(text(path))]
    files = re.findall(r"`((?:tools|tests|pretrain|transfer|configs)/[\w/]+\.(?:py|sbatch))", text(path))
    # the developer guide uses NAME as a placeholder
    named = [name for name in [*configs, *files] if "/NAME." not in name]
    assert [name for name in named if not (ROOT / name).is_file()] == []


@each_page
def test_make_targets_and_tables_exist(path: Path) -> None:
    targets = set(re.findall(r"^([a-z0-9-]+):", text(ROOT / "Makefile"), re.M))
    named = set(re.findall(r"(?:`|^    )make ([a-z0-9-]+)", text(path), re.M))
    asked = set(re.findall(r"reproduce\.py[^`\n]*--table (\w+)", text(path)))
    assert named <= targets and asked <= set(book().tables)


def test_developer_guide_names_each_module() -> None:
    """The tables of folders name each module of `pretrain/` and `transfer/` once, in the row of its folder."""
    named = [
        f"{row[0].strip('`')}{module}"
        for header, rows in tables_in(text(DOCS / "developer.md"))
        for row in rows
        if header[0] == "folder"
        for module in re.findall(r"`(\w+)`", row[-1])
    ]
    modules = [path for package in ("pretrain", "transfer") for path in (ROOT / package).rglob("*.py")]
    there = [str(path.relative_to(ROOT).with_suffix("")) for path in modules if path.stem != "__init__"]
    assert sorted(named) == sorted(there)


@functools.cache
def effective(name: str) -> dict[str, Any]:
    """Return all settings of a config by their full keys."""
    path = next((ROOT / "configs").rglob(f"{name}.yaml"))
    if path.parent.name == "pretrain":
        cfg = pretrain_config.load(str(path))
    elif path.parent.name == "transfer":
        cfg = read_config(str(path))
    else:
        cfg = linear_config.defaults()
        merge(cfg, path, ())
    return flatten(cfg)


def tables_in(page: str) -> Iterator[tuple[list[str], list[list[str]]]]:
    """Yield the header and the rows of each table."""
    for block in re.findall(r"(?:^\|.*\n)+", page, re.M):
        lines = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in block.splitlines()]
        yield lines[0], lines[2:]


def plain(value: Any) -> Any:
    return [plain(part) for part in value] if isinstance(value, list | tuple) else value


def test_protocol_has_the_values_of_the_configs() -> None:
    compared, name = 0, re.compile(r"`(\w+)`")
    for header, rows in tables_in(text(DOCS / "protocol.md")):
        for row in rows:
            for head, cell in zip(header, row, strict=True):
                if header[0] == "setting" and (config := name.fullmatch(head)):
                    key, source = row[0].strip("`"), config[1]
                elif header[0] == "config" and re.fullmatch(r"`[A-Z_.]+`", head):
                    key, source = head.strip("`"), row[0].strip("`")
                else:
                    continue
                assert plain(effective(source)[key]) == yaml.safe_load(cell), (source, key)
                compared += 1
    assert compared > 250


def hours(parts: list[float | None]) -> tuple[float, bool]:
    """Return the sum of the known hours, and whether any is unknown."""
    return sum(part or 0 for part in parts), None in parts


def shown(total: float, unknown: bool) -> str:
    if not total:
        return "?" if unknown else "0"
    return f"{total:.0f}{' + ?' if unknown else ''}"


def test_costs_are_those_of_the_tables() -> None:
    [found] = [rows for header, rows in tables_in(text(DOCS / "reproducing.md")) if header[0] == "table"]
    expected = []
    for table in book().tables.values():
        rows = [row for row in table.rows if not (row.init.needs or row.init.cited)]
        if table.cost or not all(column.config for column in table.columns):
            continue
        trained = [row.init for row in rows if row.init.pretrain]
        pretraining = hours([book().hours[init.pretrain] for init in trained])
        rest = hours([book().hours[init.pretrain] for init in trained if not init.released])
        each = [[book().hours[row.config or column.config] for column in table.columns] for row in rows]
        trial = hours([part for parts in each for part in parts])
        chains = [
            (book().hours[row.init.pretrain] if row.init.pretrain else 0, max(part or 0 for part in parts))
            for row, parts in zip(rows, each, strict=True)
        ]
        whole = (pretraining[0] + table.trials * trial[0], pretraining[1] or trial[1])
        fetched = (rest[0] + table.trials * trial[0], rest[1] or trial[1])
        longest = (max((first or 0) + last for first, last in chains), pretraining[1] or trial[1])
        expected.append([
            f"`{table.name}`", str(table.trials), shown(*pretraining), shown(*trial), shown(*whole),
            shown(*fetched), f"{shown(fetched[0] * 8 / 24, fetched[1])} days", shown(*longest),
        ])  # fmt: skip
    assert found == expected
