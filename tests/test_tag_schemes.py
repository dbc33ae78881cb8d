"""Schemes told apart, illegal tags counted, and entities as seqeval and the CoNLL script read them."""

import itertools

import pytest

from ptft_recipes.tag_schemes import (
    BILOU,
    IOB1,
    IOB2,
    PLAIN,
    complete_labels,
    count_illegal,
    detect_scheme,
    lenient_entities,
    split_tag,
    strict_entities,
)

ENTITIES = [[("X", 0, 1), ("X", 1, 3), ("Y", 3, 4)], [("Y", 1, 4)], [("X", 0, 2), ("Y", 3, 5)], []]


def write(entities, length, scheme):
    """Return the tags that mean these entities: the reference from which every scheme is read back."""
    tags, ends = ["O"] * length, {end: kind for kind, _, end in entities}
    for kind, start, end in entities:
        for i in range(start, end):
            letter = "I"
            if i == start and (scheme != IOB1 or ends.get(start) == kind):
                letter = "B"
            if scheme == BILOU and i == end - 1:
                letter = "U" if i == start else "L"
            tags[i] = f"{letter}-{kind}"
    return tags


def test_the_reference_writes_the_schemes_as_the_papers_have_them():
    assert write(ENTITIES[0], 5, IOB1) == ["I-X", "B-X", "I-X", "I-Y", "O"]
    assert write(ENTITIES[0], 5, IOB2) == ["B-X", "B-X", "I-X", "B-Y", "O"]
    assert write(ENTITIES[0], 5, BILOU) == ["U-X", "B-X", "L-X", "U-Y", "O"]


@pytest.mark.parametrize("scheme", [IOB1, IOB2, BILOU])
def test_a_scheme_is_detected_and_read_back(scheme):
    sequences = [write(entities, 5, scheme) for entities in ENTITIES]
    assert detect_scheme(sequences) == scheme
    for entities, tags in zip(ENTITIES, sequences, strict=True):
        assert strict_entities(tags, scheme) == entities
        assert lenient_entities(tags) == entities
        assert count_illegal(tags, scheme) == 0
    as_bioes = [[tag.replace("L-", "E-").replace("U-", "S-") for tag in tags] for tags in sequences]
    assert detect_scheme(as_bioes) == scheme
    assert [strict_entities(tags, scheme) for tags in as_bioes] == ENTITIES


@pytest.mark.parametrize("scheme", [IOB1, IOB2, BILOU])
def test_every_legal_sequence_means_the_entities_that_wrote_it(scheme):
    seen = 0
    for length in range(1, 6):
        for borders in itertools.product("bio", repeat=length):  # begin, inside, outside, all of one or two types
            for kinds in itertools.product("XY", repeat=borders.count("b")):
                if any(b == "i" and a == "o" for a, b in zip("o" + "".join(borders), borders, strict=False)):
                    continue
                starts = [i for i, b in enumerate(borders) if b == "b"]
                ends = [next((k for k in range(i + 1, length) if borders[k] != "i"), length) for i in starts]
                entities = list(zip(kinds, starts, ends, strict=True))
                tags = write(entities, length, scheme)
                assert strict_entities(tags, scheme) == lenient_entities(tags) == entities
                assert count_illegal(tags, scheme) == 0
                seen += 1
    assert seen == 3 + 11 + 41 + 153 + 571, "a(n) = a(n-1) + 2 (a(0) + ... + a(n-1)) of length n"


@pytest.mark.parametrize(
    ("tags", "scheme"),
    [
        ([["NOUN", "VERB", "X", "."]], PLAIN),
        ([["O", "O"]], PLAIN),
        ([["O", "PER", "PER"]], PLAIN),
        ([["O", "COMMA", "PERIOD"]], PLAIN),
        ([["B-PER", "NOUN"]], PLAIN),
        ([["B", "C", "A"]], PLAIN),
        ([["O", "B", "I"]], IOB2),
        ([["O", "I", "I", "B"]], IOB1),
        ([["I-PER", "I-PER", "O"]], IOB1),
        ([["B-PER", "I-PER"], ["I-PER", "O"], ["B-LOC"], ["B-LOC"]], IOB2),
        ([["B-PER", "E-PER"]], BILOU),
        ([["B-PER", "M-PER", "E-PER", "W-LOC"]], BILOU),
        ([], PLAIN),
    ],
)
def test_detection_of_what_people_have(tags, scheme):
    assert detect_scheme(tags) == scheme


@pytest.mark.parametrize(
    ("scheme", "tags", "illegal"),
    [
        (IOB2, "I-X I-X O I-Y", 2),
        (IOB2, "B-X I-Y I-Y", 1),
        (IOB1, "B-X I-X O B-Y", 2),
        (IOB1, "I-X B-Y", 1),
        (BILOU, "B-X O", 1),
        (BILOU, "I-X L-X", 1),
        (BILOU, "B-X L-Y", 1),
        (BILOU, "U-X L-X", 1),
        (BILOU, "B-X I-X", 1),
        (PLAIN, "NOUN O", 0),
    ],
)
def test_illegal_tags_are_counted(scheme, tags, illegal):
    assert count_illegal(tags.split(), scheme) == illegal


def test_strict_and_lenient_differ_where_tags_are_illegal():
    """The case by which seqeval's README explains its two modes."""
    assert lenient_entities(["I-NP", "I-NP", "O"]) == [("NP", 0, 2)]
    assert strict_entities(["I-NP", "I-NP", "O"], IOB2) == []
    assert strict_entities(["B-X", "I-X", "O"], BILOU) == []
    assert lenient_entities(["B-X", "I-X", "O"]) == [("X", 0, 2)]


def test_labels_are_completed_by_role_and_type():
    assert complete_labels(["I-X", "O"], IOB1) == ["O", "B-X", "I-X"]
    assert complete_labels(["O", "S-X"], BILOU) == ["O", "B-X", "I-X", "E-X", "S-X"]
    assert complete_labels(["L-X", "B-X"], BILOU) == ["O", "B-X", "I-X", "L-X", "U-X"]
    assert complete_labels(["O", "B"], IOB2) == ["O", "B", "I"]
    assert complete_labels(["VERB", "NOUN"], PLAIN) == ["NOUN", "VERB"]
    assert split_tag("B-geo-loc") == ("begin", "geo-loc")


# Random tags with at least two illegal ones: the entities that seqeval 1.2.2 finds with mode="strict", and without.
BY_SEQEVAL = [
    (IOB2, "I-Y B-X B-X I-Y B-Y I-Y B-Y", "X1-2 X2-3 Y4-6 Y6-7", "Y0-1 X1-2 X2-3 Y3-4 Y4-6 Y6-7"),
    (IOB2, "I-X O I-X I-Y B-Y I-X I-X", "Y4-5", "X0-1 X2-3 Y3-4 Y4-5 X5-7"),
    (IOB2, "O I-X B-Y B-X O I-Y B-Y", "Y2-3 X3-4 Y6-7", "X1-2 Y2-3 X3-4 Y5-6 Y6-7"),
    (IOB2, "I-X I-Y I-X I-Y B-X I-Y B-Y", "X4-5 Y6-7", "X0-1 Y1-2 X2-3 Y3-4 X4-5 Y5-6 Y6-7"),
    (IOB2, "I-Y I-Y O O B-X I-Y B-Y", "X4-5 Y6-7", "Y0-2 X4-5 Y5-6 Y6-7"),
    (IOB2, "I-Y I-Y I-Y B-Y I-X B-X I-Y", "Y3-4 X5-6", "Y0-3 Y3-4 X4-5 X5-6 Y6-7"),
    (IOB2, "B-Y B-X O I-Y I-Y O I-Y", "Y0-1 X1-2", "Y0-1 X1-2 Y3-5 Y6-7"),
    (IOB2, "B-Y O B-X I-X I-Y O I-X", "Y0-1 X2-4", "Y0-1 X2-4 Y4-5 X6-7"),
    (IOB2, "O I-X B-X I-Y I-Y B-Y I-Y", "X2-3 Y5-7", "X1-2 X2-3 Y3-5 Y5-7"),
    (IOB2, "O O I-Y B-X I-Y I-Y B-X", "X3-4 X6-7", "Y2-3 X3-4 Y4-6 X6-7"),
    (BILOU, "I-Y I-Y E-X E-X E-X E-X S-Y", "Y6-7", "Y0-2 X2-3 X3-4 X4-5 X5-6 Y6-7"),
    (BILOU, "I-Y I-X E-Y B-Y B-Y S-Y I-Y", "Y5-6", "Y0-1 X1-2 Y2-3 Y3-4 Y4-5 Y5-6 Y6-7"),
    (BILOU, "O O E-Y S-Y B-Y I-Y E-X", "Y3-4", "Y2-3 Y3-4 Y4-6 X6-7"),
    (BILOU, "E-Y O E-X E-Y B-Y B-Y S-X", "X6-7", "Y0-1 X2-3 Y3-4 Y4-5 Y5-6 X6-7"),
    (BILOU, "S-X I-X S-X B-X I-X E-X S-X", "X0-1 X2-3 X3-6 X6-7", "X0-1 X1-2 X2-3 X3-6 X6-7"),
    (BILOU, "I-Y B-Y B-X I-Y B-X S-X S-X", "X5-6 X6-7", "Y0-1 Y1-2 X2-3 Y3-4 X4-5 X5-6 X6-7"),
    (BILOU, "B-X B-Y S-X E-X S-X I-X B-X", "X2-3 X4-5", "X0-1 Y1-2 X2-3 X3-4 X4-5 X5-6 X6-7"),
    (BILOU, "B-Y S-X B-Y I-X I-X I-X I-X", "X1-2", "Y0-1 X1-2 Y2-3 X3-7"),
    (BILOU, "S-Y B-X O S-Y S-X S-Y I-X", "Y0-1 Y3-4 X4-5 Y5-6", "Y0-1 X1-2 Y3-4 X4-5 Y5-6 X6-7"),
    (BILOU, "S-Y S-Y B-X E-Y S-X E-X I-Y", "Y0-1 Y1-2 X4-5", "Y0-1 Y1-2 X2-3 Y3-4 X4-5 X5-6 Y6-7"),
]  # fmt: skip


@pytest.mark.parametrize(("scheme", "tags", "strict", "lenient"), BY_SEQEVAL)
def test_illegal_tags_are_read_as_seqeval_reads_them(scheme, tags, strict, lenient):
    for read, expected in ((strict_entities(tags.split(), scheme), strict), (lenient_entities(tags.split()), lenient)):
        assert " ".join(f"{kind}{start}-{end}" for kind, start, end in read) == expected
