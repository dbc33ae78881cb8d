"""What `--augment` may say; copies of training rows, whose labels and tags stay right."""

import numpy as np
import pytest
from conftest import tagged_rows, topic_rows
from datasets import ClassLabel, Dataset, Features, List, Value

from ptft_recipes import augmentation
from ptft_recipes.augmentation import AugmentationArguments, augment_rows, parse_augment
from ptft_recipes.errors import InputError
from ptft_recipes.tag_schemes import (
    BILOU,
    IOB1,
    IOB2,
    complete_labels,
    count_illegal,
    lenient_entities,
    strict_entities,
    write_tags,
)

ALL = ["random_deletion=0.2", "random_swap=0.2", "random_insertion=0.2", "synonym_replacement=0.3", "typos=0.5"]


@pytest.fixture(scope="module")
def synonyms(tmp_path_factory):
    file = tmp_path_factory.mktemp("synonyms") / "synonyms.txt"
    file.write_text("new,recent\nold,ancient\nbig,large\nsmall,little\ngoal,aim\nteam,crew\nstock,share\nlab,room\n")
    return f"synonyms={file}"


def texts(count=60, pairs=False):
    rows = topic_rows(count, seed=0)
    columns = {"id": [f"row {i}" for i in range(count)], "text": [row["text"] for row in rows]}
    columns |= {"other": [row["text"][::-1] for row in rows]} if pairs else {}
    return Dataset.from_dict(columns | {"labels": [i % 3 for i in range(count)]})


def run_of(seed=1, **data):
    return {"seed": seed, "data": {"fingerprint": {"train": "of these rows"}, **data}}


def test_copies_come_after_the_rows_which_stay_as_they_are(synonyms):
    rows, run = texts(), run_of()
    augmented = augment_rows(rows, [*ALL, synonyms, "copies=3"], ["text"], run)
    assert augmented.select(range(60)).to_list() == rows.to_list()
    assert augmented["labels"][:] == rows["labels"][:] * 4
    assert augmented["id"][60:] == [f"row {i}+{copy}" for copy in (1, 2, 3) for i in range(60)]
    assert augmented.features == rows.features
    same = sum(one == other for one, other in zip(rows["text"][:] * 3, augmented["text"][60:], strict=True))
    assert run["data"]["augmentation"] == {"rows": 240, "unchanged_copies": same}
    assert same < 20  # short rows have no word to misspell, or none with a synonym


def test_the_operations_take_turns(synonyms):
    rows = texts(10)
    seen = {}
    for number, name in enumerate(["random_deletion", "random_swap", "typos"]):
        share = next(pair for pair in ALL if pair.startswith(name))
        seen[number] = augment_rows(rows, [share, "copies=3"], ["text"], run_of())["text"][10:]
    mixed = augment_rows(rows, ["random_deletion=0.2", "random_swap=0.2", "typos=0.5", "copies=3"], ["text"], run_of())
    for copy_number in range(3):
        for i in range(10):
            place = 10 * copy_number + i
            assert mixed["text"][10 + place] == seen[(i + copy_number) % 3][place]


def test_what_becomes_of_a_row_depends_on_seed_row_and_copy_alone(synonyms):
    augment = [*ALL, synonyms, "copies=2"]
    whole = augment_rows(texts(60), augment, ["text"], run_of())
    first = augment_rows(texts(60).select(range(20)), augment, ["text"], run_of())
    assert first["text"][20:40] == whole["text"][60:80]
    assert augment_rows(texts(60), augment, ["text"], run_of())["text"][:] == whole["text"][:]
    other = augment_rows(texts(60), augment, ["text"], run_of(seed=2))["text"][:]
    assert sum(one != two for one, two in zip(other[60:], whole["text"][60:], strict=True)) > 60
    assert whole["text"][60:120] != whole["text"][120:]


def test_both_texts_of_a_pair_are_changed():
    rows = texts(30, pairs=True)
    augmented = augment_rows(rows, ["random_swap=0.2"], ["text", "other"], run_of())
    for column in ("text", "other"):
        changed = [a != b for a, b in zip(rows[column][:], augmented[column][30:], strict=True)]
        assert sum(changed) > 25
        pairs = zip(rows[column][:], augmented[column][30:], strict=True)
        assert all(sorted(a.split()) == sorted(b.split()) for a, b in pairs)


def test_nothing_is_copied_when_nothing_asks_for_it():
    rows, run = texts(), run_of()
    for augment in ([], ["mixup=0.2"], ["span_cutoff=0.1", "mixup=0.4"]):
        assert augment_rows(rows, augment, ["text"], run) is rows
    assert run == run_of()


def as_scheme(tags, scheme, names):
    return write_tags(strict_entities(tags, IOB2), len(tags), scheme, names)


def tagged(scheme):
    """Rows of legal tags, and the labels of the scheme; of BILOU as it is also written, BIOES."""
    rows = tagged_rows(50, seed=0)
    plain = complete_labels({tag for row in rows for tag in row["tags"]}, IOB2)
    kinds = sorted({name[2:] for name in plain} - {""})
    letters = "BIES" if scheme == BILOU else "BI"
    names = ["O", *(f"{letter}-{kind}" for kind in kinds for letter in letters)]
    features = Features({
        "id": Value("string"), "tokens": List(Value("string")), "labels": List(ClassLabel(names=names)),
    })  # fmt: skip
    labels = [[names.index(tag) for tag in as_scheme(row["tags"], scheme, names)] for row in rows]
    columns = {"id": [str(i) for i in range(50)], "tokens": [row["tokens"] for row in rows], "labels": labels}
    return Dataset.from_dict(columns, features=features), names


@pytest.mark.parametrize("scheme", [IOB1, IOB2, BILOU])
def test_tags_follow_their_words_and_stay_legal(scheme, synonyms):
    rows, names = tagged(scheme)
    deleted = 0
    for share in ALL:
        needs = [synonyms] if share[:2] in ("ra", "sy") and "random_d" not in share and "swap" not in share else []
        run = run_of(label_names=names, scheme=scheme)
        augmented = augment_rows(rows, [share, *needs, "copies=3"], ["tokens"], run)
        assert len(augmented) == 200
        assert run["data"]["augmentation"]["unchanged_copies"] < 75
        for i in range(50, 200):
            before, after = rows[i % 50], augmented[i]
            tags = [[names[label] for label in row["labels"]] for row in (before, after)]
            assert len(after["labels"]) == len(after["tokens"]) > 0
            assert count_illegal(tags[1], scheme) == 0
            entities = [
                sorted(
                    (entity.type, sorted(row["tokens"][entity.start : entity.end])) for entity in lenient_entities(of)
                )
                for row, of in zip((before, after), tags, strict=True)
            ]
            if "deletion" in share:  # what is left of an entity is one of that type
                whole = [(kind, words) for kind, words in entities[0]]
                assert all(any(kind == k and {*words} <= {*w} for k, w in whole) for kind, words in entities[1])
                deleted += len(entities[1]) < len(entities[0])
            elif "swap" in share or "insertion" in share:
                assert entities[1] == entities[0]
            else:
                assert [kind for kind, _ in entities[1]] == [kind for kind, _ in entities[0]]
                assert after["labels"] == before["labels"]
    assert deleted > 10


def test_illegal_tags_do_not_become_more():
    names = ["O", "B-X", "I-X", "B-Y", "I-Y"]
    generator = np.random.default_rng(0)
    labels = [generator.integers(5, size=12).tolist() for _ in range(100)]
    words = [[f"word{chr(97 + i)}" for i in range(12)]] * 100
    features = Features({
        "id": Value("string"), "tokens": List(Value("string")), "labels": List(ClassLabel(names=names)),
    })  # fmt: skip
    rows = Dataset.from_dict({"id": ["x"] * 100, "tokens": words, "labels": labels}, features=features)
    before = sum(count_illegal([names[label] for label in row], IOB2) for row in labels)
    assert before > 100
    for share in ("random_deletion=0.2", "random_swap=0.3", "typos=0.5"):
        run = run_of(label_names=names, scheme=IOB2)
        copies = augment_rows(rows, [share], ["tokens"], run)["labels"][100:]
        assert sum(count_illegal([names[label] for label in row], IOB2) for row in copies) <= before


def test_plain_tags_move_with_their_words():
    names = ["NOUN", "VERB", "X"]
    features = Features({
        "id": Value("string"), "tokens": List(Value("string")), "labels": List(ClassLabel(names=names)),
    })  # fmt: skip
    words = [[f"{name.lower()}{chr(97 + i)}" for i in range(4) for name in names] for _ in range(20)]
    columns = {"id": ["x"] * 20, "tokens": words, "labels": [[0, 1, 2] * 4] * 20}
    rows = Dataset.from_dict(columns, features=features)
    augment = ["random_deletion=0.3", "random_swap=0.3", "copies=2"]
    augmented = augment_rows(rows, augment, ["tokens"], run_of(label_names=names, scheme="plain"))
    seen = [
        (word, names[label]) for row in augmented for word, label in zip(row["tokens"], row["labels"], strict=True)
    ]
    assert all(word[:-1] == name.lower() for word, name in seen)
    assert augmented["tokens"][20:] != words * 2


def test_a_row_without_a_label_for_what_is_left_of_its_entity_stays_whole():
    names = ["O", "B-X", "L-X"]  # and no U-X
    features = Features({
        "id": Value("string"), "tokens": List(Value("string")), "labels": List(ClassLabel(names=names)),
    })  # fmt: skip
    columns = {"id": ["x"] * 40, "tokens": [["New", "York"]] * 40, "labels": [[1, 2]] * 40}
    rows, run = Dataset.from_dict(columns, features=features), run_of(label_names=names, scheme=BILOU)
    assert augment_rows(rows, ["random_deletion=0.5"], ["tokens"], run)[40:]["labels"] == [[1, 2]] * 40
    assert run["data"]["augmentation"]["unchanged_copies"] == 40


def test_the_fingerprint_of_the_copies_is_of_all_that_they_are_made_by(tmp_path):
    file = tmp_path / "synonyms.txt"

    def fingerprint(seed=1, augment=("synonym_replacement=0.2", f"synonyms={file}"), content="new,recent\n"):
        file.write_text(content)
        run = run_of(seed)
        augment_rows(texts(4), augment, ["text"], run)
        assert run["data"]["fingerprint"].pop("train") == "of these rows"
        return run["data"]["fingerprint"]["copies"]

    base = fingerprint()
    assert fingerprint() == base
    other = ["synonym_replacement=0.3", f"synonyms={file}"]
    assert len({base, fingerprint(seed=2), fingerprint(augment=other), fingerprint(content="new,fresh\n")}) == 4


@pytest.mark.parametrize(
    ("augment", "message"),
    [
        (["typo=0.1"], "--augment typo: .*did you mean 'typos'"),
        (["typos"], "--augment typos: expected name=value"),
        (["typos=many"], "--augment typos=many: typos must be float"),
        (["typos=1.5"], "--augment typos=1.5: must be above 0 and below 1"),
        (["random_swap=0"], "--augment random_swap=0.0: must be above 0"),
        (["mixup=-1"], "--augment mixup=-1.0: must be above 0$"),
        (["copies=2"], "--augment copies: nothing uses it; name one of random_deletion"),
        (["typos=0.1", "copies=0"], "--augment copies=0: must be at least 1"),
        (["random_insertion=0.1"], "--augment random_insertion needs synonyms=..."),
        (["contextual_replacement=0.1"], "--augment contextual_replacement needs masked_lm=..."),
        (["typos=0.1", "synonyms=words.txt"], "--augment synonyms: nothing uses it; name one of random_insertion"),
        (["back_translation=one"], "--augment back_translation=one: expected two names, as in a,b"),
        (["back_translation=a,b", "languages=de"], "--augment languages=de: expected two names"),
    ],
)
def test_what_is_wrong_is_said_before_anything_runs(augment, message):
    with pytest.raises(InputError, match=message):
        AugmentationArguments(augment)


def test_no_tag_can_follow_its_word_through_a_translation():
    rows, names = tagged(IOB2)
    with pytest.raises(InputError, match="--augment back_translation: no tag can follow its word"):
        augment_rows(rows, ["back_translation=a,b"], ["tokens"], run_of(label_names=names, scheme=IOB2))


def test_what_models_write_is_written_once(monkeypatch):
    """The rows of this test are too few for `datasets` to keep anything of its own."""
    calls = []

    class Shout:
        digest = "of the model"

        def __init__(self, name, share):
            self.digest = name

        def __call__(self, sentences, entities, generators):
            calls.append(len(sentences))
            return [[(word.upper(), i) for i, word in enumerate(words)] for words in sentences]

    monkeypatch.setattr(augmentation, "ContextualReplacement", Shout)
    augment = ["contextual_replacement=0.1", "masked_lm=a"]
    for _ in range(2):
        found = augment_rows(texts(12), augment, ["text"], run_of())
        assert found["text"][12:] == [text.upper() for text in texts(12)["text"]]
    assert calls == [12]
    augment_rows(texts(12), ["contextual_replacement=0.1", "masked_lm=b"], ["text"], run_of())
    assert calls == [12, 12]


def test_every_setting_has_its_line():
    given = parse_augment(["typos=0.1", "copies=2"])
    assert given.operations() == ["typos"]
    names = {field.name for field in augmentation.Augmentation.__dataclass_fields__.values()}
    explained = {line.strip().partition(":")[0] for line in augmentation.Augmentation.__doc__.splitlines()}
    assert names <= explained
