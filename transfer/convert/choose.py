"""Decide by a table which network of a file is meant."""

import re
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path

from pretrain.common.errors import UserError
from transfer.convert.layouts import LAYOUTS, Layout
from transfer.convert.tensor_names import Candidate, Tensors, clean, places, same


def choose(
    path: Path,
    tensors: Tensors,
    candidates: list[Candidate],
    *,
    source: str,
    branch: str,
    layouts: Mapping[str, Layout] = LAYOUTS,
    what: str = "ResNet",
) -> tuple[str, Candidate, str]:
    """Return the kind, the network, and what that network is.

    Args:
        source, branch: as in `read_source`.
        layouts: the table to decide by.
        what: a network of the table, for messages.
    Raises:
        UserError: no rule chooses one of several networks, or the only one is the wrong one.
    """
    pool = _named(path, candidates, branch) if branch else candidates
    for kind in layouts if source == "auto" else (source,):
        layout = layouts[kind]
        if source == "auto" and not (layout.guess and _evident(layout, tensors)):
            continue
        # With --branch, the file is of this kind if any of its networks matches; the wanted one is given.
        if branch:
            if any(matches(layout, layout.wanted, c) for c in candidates):
                return kind, pool[0], "as --branch says"
            continue
        wanted = [c for c in candidates if matches(layout, layout.wanted, c)]
        if not wanted:
            continue
        others = [c for c in candidates if c not in wanted and not matches(layout, layout.over, c)]
        choices = [wanted[0], *(c for c in (*wanted[1:], *others) if not same(tensors, wanted[0], c))]
        if len(choices) > 1:
            raise UserError(
                f"{path}: ambiguous: it holds {kind} networks at {places(choices)}; choose one with --branch, "
                f"such as --branch {_quoted(choices[0])}"
            )
        return kind, wanted[0], layout.why if len(candidates) > 1 else "the only network"
    if branch:
        return "unknown", pool[0], "as --branch says"
    distinct = [candidates[0], *(c for c in candidates[1:] if not same(tensors, candidates[0], c))]
    if source == "auto" and len(distinct) == 1:
        if kind := _passed_over(candidates[0], layouts):
            raise UserError(
                f"{path}: its only {what}, at {candidates[0]}, is not the one to take from {kind} files: give the "
                f"whole file, or take this one with --branch {_quoted(candidates[0])}"
            )
        return "unknown", candidates[0], "the only network"
    wanted_text = f"--source {source}" if source != "auto" else "a known layout"
    raise UserError(
        f"{path}: ambiguous: its {what}s, at {places(candidates)}, are not where {wanted_text} has them; "
        f"choose one with --branch, such as --branch {_quoted(candidates[0])}"
    )


def _quoted(candidate: Candidate) -> str:
    return shlex.quote(candidate.branch or str(candidate))


def _named(path: Path, candidates: list[Candidate], branch: str) -> list[Candidate]:
    """Return the one network that `--branch` names, by its whole branch, its last parts or any part of it."""
    wanted = clean(branch)
    exact = [c for c in candidates if c.branch == wanted or str(c) == branch]
    matching = exact or [c for c in candidates if f".{c.branch}".endswith(f".{wanted}")]
    matching = matching or [c for c in candidates if wanted in c.branch.split(".")]
    if len(matching) != 1:
        raise UserError(
            f"{path}: --branch {branch}: it must name one of the file's networks, which are at {places(candidates)}"
        )
    return matching


def matches(layout: Layout, pattern: str, candidate: Candidate) -> bool:
    """Return whether a network is at a place that `pattern`, of an entry of the table, describes."""
    if layout.dialect and candidate.dialect.name != layout.dialect:
        return False
    return bool(re.fullmatch(pattern, candidate.branch)) if pattern or not layout.over else False


def _passed_over(candidate: Candidate, layouts: Mapping[str, Layout]) -> str:
    """Return the kind of file in which a network with this name is never the one to take, or an empty string."""
    if candidate.branch == "backbone":  # not taken only if lightly's `query_backbone` is there too
        return ""
    return next((k for k, v in layouts.items() if v.over and matches(v, v.over, candidate)), "")


def _evident(layout: Layout, names: Iterable[str]) -> bool:
    if not layout.evidence:
        return True
    return any(re.search(layout.evidence, name if layout.as_written else clean(name)) for name in names)
