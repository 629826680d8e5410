"""Files that appear whole or not at all: made beside their places, then renamed."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from .errors import ShineError

__all__ = ["draft_of", "is_taken", "refuse_existing", "write_together", "write_whole"]


def is_taken(path: Path) -> bool:
    """Return whether something has this name, be it a link to a file that is no more.

    Raises
    ------
    ShineError
        If nothing can have this name, as one that is too long for the disk.
    """
    try:
        path.lstat()
    except FileNotFoundError:
        return False
    except OSError as error:
        raise ShineError(f"{path}: cannot be written ({error.strerror}).") from None
    return True


def refuse_existing(*paths: Path) -> None:
    """Raise `ShineError` where a file that is to be written would replace another."""
    for path in paths:
        if is_taken(path):
            raise ShineError(f"{path} exists. Choose another name, or add --overwrite.")


def draft_of(path: Path) -> Path:
    """Return a free temporary name beside ``path``, with its suffix.

    A name may be as long as the disk allows: its draft's must be no longer.
    """
    return path.with_name(f".{path.stem[:40]}.{secrets.token_hex(4)}.partial{path.suffix}")


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
    drafts = {path: draft_of(path) for path in files}
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
