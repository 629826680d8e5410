"""Files that appear whole or not at all."""

from pathlib import Path

import pytest

from shine_em.benchmark_worker import write_json
from shine_em.drafts import write_together, write_whole
from shine_em.errors import ShineError


def full_disk(draft: Path) -> None:
    draft.write_text("half of")
    raise OSError(28, "No space left on device")


def test_a_failure_leaves_what_was_there_and_names_the_file(tmp_path: Path) -> None:
    old, new = tmp_path / "old.txt", tmp_path / "new.txt"
    old.write_text("mine")
    for files in ({old: full_disk}, {new: lambda p: p.write_text("whole"), old: full_disk}):
        with pytest.raises(ShineError, match=r"old\.txt: cannot be written \(No space left"):
            write_together(files)
        assert [p.name for p in tmp_path.iterdir()] == ["old.txt"]
        assert old.read_text() == "mine"


def test_a_name_as_long_as_the_disk_allows(tmp_path: Path) -> None:
    long = [tmp_path / ("a" * 249 + f"{k}.txt") for k in range(2)]
    write_together({path: lambda draft: draft.write_text("whole") for path in long})
    assert [p.read_text() for p in long] == ["whole"] * 2
    with pytest.raises(ShineError, match="too long"):
        write_whole(tmp_path / ("a" * 300), lambda draft: draft.write_text("x"))


def test_errors_name_the_file_and_not_its_draft(tmp_path: Path) -> None:
    def refuses(draft: Path) -> None:
        raise ShineError(f"{draft}: too large.")

    with pytest.raises(ShineError) as caught:
        write_whole(tmp_path / "movie.tif", refuses)
    assert str(caught.value) == f"{tmp_path / 'movie.tif'}: too large."
    with pytest.raises(ShineError, match=r"numbers\.json: cannot be written"):
        write_json(tmp_path / "no such folder" / "numbers.json", [1])


def test_the_last_file_stands_for_the_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    first, last = tmp_path / "truth", tmp_path / "noisy"
    write_together({p: lambda draft: draft.write_text("1") for p in (first, last)})

    def stopped(draft: Path, path: Path) -> None:
        replace(draft, path)
        raise KeyboardInterrupt

    replace = os.replace
    monkeypatch.setattr(os, "replace", stopped)
    with pytest.raises(KeyboardInterrupt):
        write_together({p: lambda draft: draft.write_text("2") for p in (first, last)})
    assert [p.name for p in tmp_path.iterdir()] == ["truth"]
