"""The same text as other people write it: with typing errors, in capitals, with words left out."""

import re
from collections.abc import Callable

import numpy as np
from datasets import Dataset

TYPO_RATE, DROP_RATE = 0.1, 0.1  # of the words


def add_typos(text: str, generator: np.random.Generator, rate: float = TYPO_RATE) -> str:
    """Swap two neighbours, leave out or double a letter, in some of the words of four letters or more.

    The first letter stays, as in most typing errors.

    Args:
        text: Or a word.
        generator: Decides which.
        rate: Share of the words.

    Source: Pruthi, Dhingra and Lipton, Combating Adversarial Misspellings (2019), section 3, for the kinds of errors.
    """

    def mistype(match: re.Match) -> str:
        word = match.group()
        if generator.random() >= rate:
            return word
        i, kind = int(generator.integers(1, len(word) - 1)), generator.integers(3)
        return word[:i] + (word[i + 1] + word[i], "", word[i] * 2)[kind] + word[i + (2 if kind == 0 else 1) :]

    return re.sub(r"[^\W\d_]{4,}", mistype, text)


def capitalize(text: str, generator: np.random.Generator) -> str:
    """Write everything in capitals, which a model for lower case does not see."""
    return text.upper()


def drop_words(text: str, generator: np.random.Generator) -> str:
    """Leave out a tenth of the words, but never all."""
    words = text.split()
    return " ".join(words[i] for i in kept_words(len(words), generator))


def kept_words(words: int, generator: np.random.Generator, rate: float = DROP_RATE) -> list[int]:
    """Return the numbers of the words that are left when some are left out; the first, where none would be.

    Args:
        words: How many there are.
        generator: Decides which.
        rate: Probability that a word is left out.
    """
    return np.flatnonzero(generator.random(words) >= rate).tolist() or [0][:words]


PERTURBATIONS: dict[str, Callable[[str, np.random.Generator], str]] = {
    "typos": add_typos,
    "capitals": capitalize,
    "dropped_words": drop_words,
}
KEEPS_WORDS = ("typos", "capitals")  # a tag per word still fits


def perturb(rows: Dataset, columns: list[str], name: str, seed: int = 0) -> Dataset:
    """Return the rows with their text, or their words, perturbed.

    What is done to a row depends on the seed and its number alone.

    Args:
        rows: With columns of text, or of lists of words.
        columns: Of those.
        name: One of `PERTURBATIONS`.
        seed: Of what is changed.
    """
    change = PERTURBATIONS[name]

    def of_row(row: dict, number: int) -> dict:
        generator = np.random.default_rng([seed, number])
        return {
            column: [change(word, generator) for word in row[column]]
            if isinstance(row[column], list)
            else change(row[column], generator)
            for column in columns
        }

    return rows.map(of_row, with_indices=True, load_from_cache_file=False)
