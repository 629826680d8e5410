"""Model files: all that is needed, nothing that runs, and a clear word where one is wrong."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from small import health, model, noisy, stop_at

from shine_em.checkpoint import Choice, Model, input_hash
from shine_em.correction import FEATURES, Correction, blank_correction
from shine_em.denoising import Denoiser
from shine_em.errors import ShineError
from shine_em.job import Interrupted, denoise
from shine_em.movie import LazyFrames, Movie
from shine_em.patches import Normalisation


def header(path: Path) -> dict[str, Any]:
    """Read a safetensors header as any other program would."""
    raw = path.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    return json.loads(raw[8 : 8 + size])


@pytest.mark.parametrize("kind", ["lean", "paper"])
@pytest.mark.parametrize("blinded", [(), (1,)])
def test_a_saved_model_predicts_bit_for_bit_the_same(
    tmp_path: Path, kind: str, blinded: tuple[int, ...]
) -> None:
    trained = replace(
        model(kind, frames=7, blinded=blinded, holes=[(1, 3), (3, 5)]),
        normalisation=Normalisation(1 / 3, np.pi, -np.inf, 4000.1),
        offset=0.1,
        noise={"sigma": 4.5},
        provenance={"seed": 3, "input_hash": "ab"},
        views=2,
        correction=Correction(torch.randn(FEATURES, 2), (-2.0, 0.5)),
        choice=Choice(((1, 3), (3, 5)), 1, with_filter=False, correct=True),
    )
    loaded = Model.load(trained.save(tmp_path / "m.safetensors"))
    raw = noisy(9, 24, 24)
    one, two = (
        [out for _, _, out in Denoiser(m).stream(Movie.from_array(raw), health(raw.shape))]
        for m in (trained, loaded)
    )
    np.testing.assert_array_equal(one, two)
    same = (
        "normalisation", "holes", "offset", "noise", "provenance", "config", "hole", "views",
        "choice",
    )  # fmt: skip
    for name in same:
        assert getattr(loaded, name) == getattr(trained, name)
    assert loaded.blinded_lags == blinded
    assert loaded.state.settings == trained.state.settings


def test_everything_but_the_weights_is_json_in_the_header(tmp_path: Path) -> None:
    trained = replace(model(), noise={"sigma": 4.5}, provenance={"seed": 3})
    path = trained.save(tmp_path / "m.safetensors")
    words = json.loads(header(path)["__metadata__"]["shine"])
    assert words["format"] == 1
    assert words["network"]["kind"] == "lean"
    assert words["settings"]["hole"] == [3, 3]
    assert words["normalisation"] == {
        "location": 20.0, "scale": 6.0, "floor": None, "ceiling": None,
    }  # fmt: skip
    assert words["noise"] == {"sigma": 4.5}
    assert words["provenance"] == {"seed": 3}
    weights = load_file(path)  # any safetensors reader can open it
    assert {k.removeprefix("best:") for k in weights} == set(trained.state.best)


def test_a_model_file_has_the_rights_of_any_new_file(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        path = model().save(tmp_path / "m.safetensors")
        (tmp_path / "other").write_text("")
    finally:
        os.umask(before)
    assert path.stat().st_mode == (tmp_path / "other").stat().st_mode


def test_an_existing_file_is_kept_unless_asked(tmp_path: Path) -> None:
    path = model(seed=1).save(tmp_path / "m.safetensors")
    before = path.read_bytes()
    with pytest.raises(ShineError, match=r"m\.safetensors exists.*--overwrite"):
        model(seed=2).save(path)
    assert path.read_bytes() == before
    model(seed=2).save(path, overwrite=True)
    assert path.read_bytes() != before
    assert [p.name for p in tmp_path.iterdir()] == ["m.safetensors"]


def test_nothing_is_left_where_a_model_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(ShineError, match="cannot be written"):
        model().save(tmp_path / "absent" / "m.safetensors")
    (tmp_path / "folder.safetensors").mkdir()
    with pytest.raises(ShineError, match="cannot be written"):
        model().save(tmp_path / "folder.safetensors", overwrite=True)
    assert [p.name for p in tmp_path.iterdir()] == ["folder.safetensors"]


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def cut_in_header(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:300])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def missing(path: Path) -> None:
    path.unlink()


def foreign(path: Path) -> None:
    save_file({"weight": torch.zeros(3)}, path)


def pickled(path: Path) -> None:
    torch.save({"state_dict": {"weight": torch.zeros(3)}}, path)


def image(path: Path) -> None:
    path.write_bytes(b"II*\0" + bytes(5000))


def altered(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    """Return what rewrites the JSON header of a model file."""

    def rewrite(path: Path) -> None:
        words = json.loads(header(path)["__metadata__"]["shine"])
        change(words)
        save_file(load_file(path), path, {"shine": json.dumps(words)})

    return rewrite


def not_json(path: Path) -> None:
    save_file(load_file(path), path, {"shine": "{"})


def not_an_object(path: Path) -> None:
    save_file(load_file(path), path, {"shine": "[1, 2]"})


def without_correction_weights(path: Path) -> None:
    replace(model(), correction=blank_correction()).save(path, overwrite=True)
    words, weights = header(path)["__metadata__"], load_file(path)
    weights.pop("correction:weights")
    save_file(weights, path, words)


def one_weight_less(path: Path) -> None:
    words, weights = header(path)["__metadata__"], load_file(path)
    weights.pop("best:last.weight")
    save_file(weights, path, words)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (missing, "no such model file"),
        (empty, "not a readable model"),
        (truncated, "not a readable model"),
        (cut_in_header, "not a readable model"),
        (pickled, "not a readable model"),
        (image, "not a readable model"),
        (foreign, "not a model of shine"),
        (not_json, "header is damaged"),
        (not_an_object, "header is damaged"),
        (one_weight_less, "do not fit the network"),
        (without_correction_weights, "header is damaged"),
        (altered(lambda h: h.update(format=99)), "newer shine-em"),
        (altered(lambda h: h.update(format="two")), "header is damaged"),
        (altered(lambda h: h["network"].update(channels=8)), "do not fit the network"),
        (altered(lambda h: h["network"].update(kind="other")), "Unknown network"),
        (altered(lambda h: h["network"].update(surprise=1)), "header is damaged"),
        (altered(lambda h: h["normalisation"].update(scale=0)), "header is damaged"),
        (altered(lambda h: h["normalisation"].update(scale="x")), "header is damaged"),
        (altered(lambda h: h.update(holes=[])), "header is damaged"),
        (altered(lambda h: h.update(holes=[[4, 4]])), "odd"),
        (altered(lambda h: h.pop("training")), "header is damaged"),
        (altered(lambda h: h.update(settings=None)), "header is damaged"),
    ],
)
def test_what_is_no_sound_model_is_refused_in_plain_words(
    tmp_path: Path, damage: Callable[[Path], None], words: str
) -> None:
    path = model().save(tmp_path / "m.safetensors")
    damage(path)
    with pytest.raises(ShineError, match=words) as caught:
        Model.load(path)
    assert str(path) in str(caught.value)
    assert str(caught.value).count("\n") < 2


def test_loading_never_runs_what_a_pickle_says(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "sprung",))

    path = tmp_path / "m.pt"
    path.write_bytes(pickle.dumps(Trap()))
    with pytest.raises(ShineError, match=r"m\.pt"):
        Model.load(path)
    assert not (tmp_path / "sprung").exists()


def test_input_hash_knows_pixels_shape_and_type() -> None:
    raw = noisy(3, 8, 10)
    movie = Movie.from_array(raw)
    assert input_hash(movie) == input_hash(Movie.from_array(raw.copy(order="F"), name="other"))
    lazy = Movie(LazyFrames(lambda i: raw[i], raw.shape, raw.dtype))
    assert input_hash(movie) == input_hash(lazy)
    changed = raw.copy()
    changed[2, 7, 9] += 1
    different = [changed, raw.reshape(3, 10, 8), raw.astype(np.int32), raw[:2], raw[::-1]]
    hashes = {input_hash(Movie.from_array(a)) for a in (raw, *different)}
    assert len(hashes) == 6


def test_names_as_long_as_the_disk_allows(tmp_path: Path) -> None:
    path = tmp_path / ("n" * 243 + ".safetensors")
    assert model().save(path) == path
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("lost", ["current", "average", "optimiser", "current:last", "optimiser:"])
def test_what_training_goes_on_from_must_be_there(tmp_path: Path, lost: str) -> None:
    with pytest.raises(Interrupted) as stopped:
        denoise(noisy(3, 24, 24), steps=4, progress=stop_at("training", 2))
    path = stopped.value.model.save(tmp_path / "m.safetensors")
    assert Model.load(path, resuming=True).state.step == 2
    words, weights = header(path)["__metadata__"], load_file(path)
    if lost == "optimiser:":  # of another network
        weights["optimiser:other/step"] = weights["current:last.weight"].clone()
    else:
        weights = {k: v for k, v in weights.items() if not k.startswith(lost)}
    save_file(weights, path, words)
    with pytest.raises(ShineError, match=r"m\.safetensors: holds no training that could go on"):
        Model.load(path, resuming=True)
    assert Model.load(path).state.step == 2
