"""Words of a sentence left out, moved, inserted or replaced, each told where it comes from, so that tags can follow.

An operation takes the words of a sentence; per word the number of its entity, 0 outside of any; and a generator that
decides what changes. No operation tears an entity apart: its words stay neighbours.
"""

import hashlib
import re
from pathlib import Path

import numpy as np

from ptft_recipes.errors import InputError, one_line
from ptft_recipes.perturbations import add_typos, kept_words
from ptft_recipes.safe_files import check_file

Edit = list[tuple[str, int]]  # the new words, each with the number of the word that it was, or whose tag it gets


def changes(words: list, share: float) -> int:
    """Return how many words to change: at least one, as in the code of EDA."""
    return max(1, int(share * len(words)))


def core(word: str) -> str:
    """Return a word without the punctuation around it.

    >>> core("(models,"), core("--")
    ('models', '')
    """
    return word.strip("".join({mark for mark in word if not mark.isalnum()}))


def replace_core(word: str, new: str) -> str:
    """Return another word with the punctuation, and the capital, of this one.

    >>> replace_core("(Models,", "networks")
    '(Networks,'
    """
    old = core(word)
    capital = old[:1].isupper() and (len(old) == 1 or not old.isupper())
    return word.replace(old, new[:1].upper() + new[1:] if capital else new, 1)


def random_deletion(words: list[str], entities: list[int], generator: np.random.Generator, share: float) -> Edit:
    """Leave each word out with the probability `share`, but never all.

    Source: Wei and Zou, EDA (2019), section 2, as are swap, insertion and synonym replacement below.
    """
    return [(words[i], i) for i in kept_words(len(words), generator, share)]


def random_swap(words: list[str], entities: list[int], generator: np.random.Generator, share: float) -> Edit:
    """Let a share of the words change places with another: within an entity, or both outside of any.

    Source: that entities stay whole, Dai and Adel, An Analysis of Simple Data Augmentation for Named Entity
    Recognition (2020), section 3, shuffle within segments.
    """
    edit = [(word, i) for i, word in enumerate(words)]
    members: dict[int, list[int]] = {}
    for i, entity in enumerate(entities):
        members.setdefault(entity, []).append(i)
    for _ in range(changes(words, share)):
        places = members[entities[int(generator.integers(len(words)))]]
        if len(places) > 1:
            one, other = (places[i] for i in generator.choice(len(places), 2, replace=False))
            edit[one], edit[other] = edit[other], edit[one]
    return edit


def synonym_replacement(
    words: list[str], entities: list[int], generator: np.random.Generator, share: float, synonyms: dict[str, list[str]]
) -> Edit:
    """Put a synonym in the place of a share of the words, of those that have one."""
    edit = [(word, i) for i, word in enumerate(words)]
    known = [i for i, word in enumerate(words) if core(word).lower() in synonyms]
    for i in generator.permutation(known)[: changes(words, share)].astype(int).tolist():
        edit[i] = replace_core(words[i], str(generator.choice(synonyms[core(words[i]).lower()]))), i
    return edit


def random_insertion(
    words: list[str], entities: list[int], generator: np.random.Generator, share: float, synonyms: dict[str, list[str]]
) -> Edit:
    """Insert synonyms of words outside of entities, with the tags of these, anywhere but within an entity."""
    edit = [(word, i) for i, word in enumerate(words)]
    known = [i for i, word in enumerate(words) if core(word).lower() in synonyms and not entities[i]]
    for _ in range(changes(words, share) if known else 0):
        source = int(generator.choice(known))
        synonym = str(generator.choice(synonyms[core(words[source]).lower()]))
        place = int(generator.integers(len(edit) + 1))
        while 0 < place < len(edit) and 0 != entities[edit[place - 1][1]] == entities[edit[place][1]]:
            place = int(generator.integers(len(edit) + 1))
        edit.insert(place, (synonym, source))
    return edit


def typos(words: list[str], entities: list[int], generator: np.random.Generator, share: float) -> Edit:
    """Misspell a share of the words of four letters or more, as `perturbations.add_typos` does."""
    return [(add_typos(word, generator, share), i) for i, word in enumerate(words)]


OPERATIONS = {
    function.__name__: function
    for function in (random_deletion, random_swap, random_insertion, synonym_replacement, typos)
}


def read_synonyms(path: str | Path, single_words: bool = False) -> tuple[dict[str, list[str]], str]:
    """Read a file with a set of synonyms in each line, separated by commas, as Solr and Elasticsearch have it.

    Args:
        path: Of the file; what follows `#` is a comment.
        single_words: Leave out what consists of several words, which one tag could not be for.

    Returns:
        Per word, in lower case, what may stand for it; and a digest of the file.

    Raises:
        InputError: It cannot be read, a line is no set of words, or no single word has a synonym.
    """
    check_file(path)
    try:
        content = Path(path).read_bytes()
        lines = content.decode("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: {one_line(error)}") from None
    synonyms: dict[str, list[str]] = {}
    for number, line in enumerate(lines, 1):
        words = [" ".join(word.split()) for word in re.sub("#.*", "", line).split(",")]
        if words == [""]:
            continue
        if len(words) < 2 or "" in words or "=>" in line:
            raise InputError(f"{path}:{number}: {line.strip()!r:.60}: expected words separated by commas")
        for word in words:
            others = [other for other in words if other != word and not (single_words and " " in other)]
            if " " not in word and others:
                synonyms.setdefault(word.lower(), []).extend(others)
    if not synonyms:
        raise InputError(f"{path}: no single word has a synonym there")
    return synonyms, hashlib.sha256(content).hexdigest()[:16]
