"""Words left out, moved, inserted and replaced: as many as is said, and no entity torn apart."""

import numpy as np
import pytest

from ptft_recipes.errors import InputError
from ptft_recipes.word_edits import (
    OPERATIONS,
    random_deletion,
    random_insertion,
    random_swap,
    read_synonyms,
    replace_core,
    synonym_replacement,
    typos,
)

WORDS = [f"word{chr(97 + i // 26)}{chr(97 + i % 26)}" for i in range(200)]
NOWHERE = [0] * len(WORDS)
SYNONYMS = {word: [f"{word}x", f"{word}y"] for word in WORDS[::2]}


def generator(seed=0):
    return np.random.default_rng(seed)


def test_deletion_leaves_out_its_share_in_order_and_never_all():
    edit = random_deletion(WORDS, NOWHERE, generator(), 0.3)
    assert len(edit) == pytest.approx(140, abs=20)
    assert edit == sorted(edit, key=lambda pair: pair[1])
    assert all(word == WORDS[source] for word, source in edit)
    assert all(random_deletion(["one"], [0], generator(seed), 0.9) == [("one", 0)] for seed in range(20))


def test_swap_moves_pairs_of_words_and_loses_none():
    edit = random_swap(WORDS, NOWHERE, generator(), 0.1)
    assert all(word == WORDS[source] for word, source in edit)
    assert sorted(source for _, source in edit) == list(range(200))
    moved = sum(source != i for i, (_, source) in enumerate(edit))
    assert 30 <= moved <= 40  # 20 pairs, of which a few meet
    assert random_swap(["one"], [0], generator(), 0.5) == [("one", 0)]
    assert random_swap(["one", "two"], [0, 0], generator(), 0.1) == [("two", 1), ("one", 0)]  # one at least


def test_insertion_adds_synonyms_with_their_sources_and_keeps_the_order_of_the_rest():
    edit = random_insertion(WORDS, NOWHERE, generator(), 0.1, SYNONYMS)
    assert len(edit) == 220
    assert [word for word, source in edit if word == WORDS[source]] == WORDS
    new = [(word, source) for word, source in edit if word != WORDS[source]]
    assert all(word in SYNONYMS[WORDS[source]] for word, source in new)
    places = [i for i, (word, source) in enumerate(edit) if word != WORDS[source]]
    assert min(places) < 60  # anywhere
    assert max(places) > 150
    assert random_insertion(["unknown"], [0], generator(), 0.5, SYNONYMS) == [("unknown", 0)]


def test_a_share_of_the_words_is_replaced_by_synonyms_of_those_that_have_one():
    edit = synonym_replacement(WORDS, NOWHERE, generator(), 0.1, SYNONYMS)
    replaced = [i for i, (word, _) in enumerate(edit) if word != WORDS[i]]
    assert len(replaced) == 20
    assert all(edit[i][0] in SYNONYMS[WORDS[i]] for i in replaced)
    assert [source for _, source in edit] == list(range(200))
    assert synonym_replacement(["unknown"], [0], generator(), 0.5, SYNONYMS) == [("unknown", 0)]


def test_synonyms_keep_punctuation_and_capitals():
    edit = synonym_replacement(["(Worda,"], [0], generator(), 0.5, {"worda": ["neural net"]})
    assert edit == [("(Neural net,", 0)]
    assert replace_core("BERT", "model") == "model"
    assert replace_core("A", "one") == "One"


def test_typos_change_letters_of_words_where_they_are():
    edit = typos(WORDS, NOWHERE, generator(), 0.2)
    assert [source for _, source in edit] == list(range(200))
    assert sum(word != WORDS[i] for i, (word, _) in enumerate(edit)) == pytest.approx(40, abs=15)


@pytest.mark.parametrize("name", OPERATIONS)
def test_words_of_an_entity_stay_neighbours_and_only_deletion_loses_any(name):
    kwargs = {"synonyms": SYNONYMS} if name in ("random_insertion", "synonym_replacement") else {}
    seen = 0
    for seed in range(60):
        draw = generator(seed)
        entities: list[int] = []
        while len(entities) < 30:
            entities += [0] * draw.integers(3) + [max(entities, default=0) + 1] * draw.integers(1, 4)
        words = WORDS[: len(entities)]
        edit = OPERATIONS[name](words, entities, draw, 0.3, **kwargs)
        runs = [entities[source] for _, source in edit]
        for number in {*entities} - {0}:
            places = [i for i, of in enumerate(runs) if of == number]
            sources = [edit[i][1] for i in places]
            assert places == list(range(places[0], places[-1] + 1)) if places else name == "random_deletion"
            mine = {i for i, of in enumerate(entities) if of == number}
            assert {*sources} <= mine if name == "random_deletion" else sorted(sources) == sorted(mine)
            seen += 1
    assert seen > 500


def test_a_file_of_synonyms(tmp_path):
    file = tmp_path / "synonyms.txt"
    file.write_text("# of models\nnetwork, net , Neural  Net\n\nfast,quick # and so on\nnetwork,model\n", "utf-8")
    synonyms, digest = read_synonyms(file)
    assert synonyms == {
        "network": ["net", "Neural Net", "model"],
        "net": ["network", "Neural Net"],
        "fast": ["quick"],
        "quick": ["fast"],
        "model": ["network"],
    }
    assert read_synonyms(file, single_words=True)[0]["network"] == ["net", "model"]
    file.write_text("fast,quick\n")
    assert read_synonyms(file)[1] != digest


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a,b\nalone\n", r"synonyms.txt:2: 'alone': expected words separated by commas"),
        (b"a,b\n\na,,b\n", r"synonyms.txt:3: 'a,,b'"),
        (b"a => b,c\n", r"synonyms.txt:1: 'a => b,c'"),
        (b"# nothing\n", "no single word has a synonym"),
        (b"a,\xff\n", "utf-8"),
    ],
)
def test_a_file_that_is_none(tmp_path, content, message):
    (tmp_path / "synonyms.txt").write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_synonyms(tmp_path / "synonyms.txt")
    with pytest.raises(InputError, match="no such file"):
        read_synonyms(tmp_path / "elsewhere.txt")
