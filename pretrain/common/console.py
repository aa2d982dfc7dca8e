"""Printing on the main process only, and durations in readable form."""

from pretrain.common import distributed
from pretrain.common.errors import for_terminal
from pretrain.installed import as_typed


def say(line: str = "") -> None:
    """Print one line on the main process only, flushed at once so that a log file can be followed.

    Characters that steer a terminal are escaped: names of files and classes come from strangers.
    """
    if distributed.is_main():
        print(for_terminal(as_typed(line)), flush=True)


def duration(seconds: float) -> str:
    """Format seconds: `3723` -> `1:02:03`, `62` -> `1:02`. Negative and non-finite values become `?`."""
    if not 0 <= seconds < float("inf"):
        return "?"
    hours, rest = divmod(round(seconds), 3600)
    minutes, seconds = divmod(rest, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
