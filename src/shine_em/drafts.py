"""Files that appear whole or not at all: made beside their places, then renamed."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from .errors import ShineError

__all__ = ["write_together", "write_whole"]


def write_whole(path: Path, make: Callable[[Path], object]) -> None:
    """Make a file beside ``path`` and rename it into place.

    Parameters
    ----------
    path
        Where the file goes; one that exists is replaced.
    make
        Called with the temporary name, which has the same suffix, to write it.

    Raises
    ------
    ShineError
        If it cannot be written.
    """
    write_together({path: make})


def write_together(files: Mapping[Path, Callable[[Path], object]]) -> None:
    """Make files that belong together beside their places, and rename them once all are made.

    Parameters
    ----------
    files
        As for `write_whole`, in the order in which they appear. An earlier one of the last is
        removed first: where it is there, no file beside it belongs to another set.

    Raises
    ------
    ShineError
        If one cannot be written.
    """
    # A name may be as long as the disk allows: its draft's must be no longer.
    drafts = {
        p: p.with_name(f".{p.stem[:40]}.{os.getpid()}-{k}.partial{p.suffix}")
        for k, p in enumerate(files)
    }
    path = last = list(files)[-1]
    try:
        for path, make in files.items():
            make(drafts[path])
        if len(files) > 1:
            last.unlink(missing_ok=True)
        for path, draft in drafts.items():
            os.replace(draft, path)
    except ShineError as error:  # it knows only the temporary name
        raise ShineError(str(error).replace(str(drafts[path]), str(path))) from error
    except (OSError, ValueError) as error:
        words = getattr(error, "strerror", None) or error
        raise ShineError(f"{path}: cannot be written ({words}).") from None
    finally:
        for draft in drafts.values():
            with suppress(OSError):
                draft.unlink(missing_ok=True)
