"""Perturbed text: as much of it as is said, the same for the same seed, never empty."""

import numpy as np
import pytest
from datasets import Dataset

from ptft_recipes.perturbations import PERTURBATIONS, add_typos, capitalize, drop_words, perturb

TEXT = " ".join(["The quick brown foxes jumped over 1234 lazy dogs, naïvely."] * 200)


def generator(seed=0):
    return np.random.default_rng(seed)


def test_a_tenth_of_the_longer_words_is_misspelt_by_one_letter():
    found = add_typos(TEXT, generator())
    pairs = list(zip(TEXT.split(), found.split(), strict=True))
    changed = [(a, b) for a, b in pairs if a != b]
    long = [word for word in TEXT.split() if sum(letter.isalpha() for letter in word) >= 4]
    assert len(changed) / len(long) == pytest.approx(0.1, abs=0.02)
    assert all(a[0] == b[0] and abs(len(a) - len(b)) <= 1 for a, b in changed)
    assert not any(a in ("The", "1234", "lazy"[:3]) for a, _ in changed)
    kinds = [len(b) - len(a) for a, b in changed]
    assert {-1, 0, 1} == set(kinds)
    swapped = [(a, b) for a, b in changed if len(a) == len(b)]
    assert all(sorted(a) == sorted(b) for a, b in swapped)


def test_white_space_and_punctuation_stay():
    text = "Some  text,\n\twith (odd) spacing!\n"
    plain = "".join(letter for letter in text if not letter.isalpha())
    for seed in range(30):
        assert "".join(letter for letter in add_typos(text, generator(seed)) if not letter.isalpha()) == plain


def test_a_tenth_of_the_words_is_left_out_and_never_all():
    kept = drop_words(TEXT, generator()).split()
    assert len(kept) / len(TEXT.split()) == pytest.approx(0.9, abs=0.02)
    assert all(drop_words("one", generator(seed)) == "one" for seed in range(50))


def test_capitals():
    assert capitalize("Straße", generator()) == "STRASSE"


@pytest.mark.parametrize("name", PERTURBATIONS)
def test_what_is_done_to_a_row_depends_on_seed_and_row_alone(name):
    rows = Dataset.from_dict({"text": [TEXT] * 3, "other": ["Stays as it is"] * 3})
    first, again = (perturb(rows, ["text"], name)["text"][:] for _ in range(2))
    assert first == again
    assert first[:2] == perturb(rows.select([0, 1]), ["text"], name)["text"][:]
    assert perturb(rows, ["text"], name)["other"][:] == ["Stays as it is"] * 3
    if name != "capitals":
        assert first[0] != first[1]
        assert perturb(rows, ["text"], name, seed=1)["text"][:] != first


def test_lists_of_words_keep_their_number():
    rows = Dataset.from_dict({"tokens": [TEXT.split(), ["Some", "words"]]})
    found = perturb(rows, ["tokens"], "typos")["tokens"]
    assert [len(words) for words in found] == [len(words) for words in rows["tokens"]]
    assert found[0] != rows["tokens"][0]
