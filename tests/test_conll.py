"""Files with a word per line: what is a sentence, which column is which, and faults by file and line."""

import pytest

from ptft_recipes.conll import parse_columns, parse_conllu
from ptft_recipes.errors import InputError

CONLL2003 = """-DOCSTART- -X- -X- O

EU NNP B-NP B-ORG
rejects VBZ B-VP O
# NN I-NP O

\t
Peter NNP B-NP B-PER
"""

# The example of universaldependencies.org/format.html, with an empty node and a comment.
CONLLU = """# sent_id = 1
# text = vámonos al mar
1-2\tvámonos\t_\t_\t_\t_\t_\t_\t_\t_
1\tvamos\tir\tVERB\t_\t_\t0\troot\t_\t_
2\tnos\tnosotros\tPRON\t_\t_\t1\tobj\t_\t_
2.1\tir\tir\tVERB\t_\t_\t_\t_\t0:root\t_
3-4\tal\t_\t_\t_\t_\t_\t_\t_\t_
3\ta\ta\tADP\tX\t_\t5\tcase\t_\t_
4\tel\tel\tDET\tX\t_\t5\tdet\t_\t_
5\tmar\tmar\tNOUN\tX\t_\t1\tobl\t_\t_

1\t#\t#\tSYM\t_\t_\t0\troot\t_\t_
"""


def columns(text):
    return list(parse_columns(text.splitlines(), "train.conll"))


def conllu(text):
    return list(parse_conllu(text.splitlines(), "dev.conllu"))


def test_sentences_end_at_blank_lines_and_document_marks_are_none():
    (first, eu), (second, peter) = columns(CONLL2003)
    assert (first, second) == (":3", ":8")
    assert eu["tokens"] == ["EU", "rejects", "#"], "a sign is a word, not a comment"
    assert eu["tags"] == eu["3"] == eu["-1"] == ["B-ORG", "O", "O"]
    assert eu["1"] == eu["-3"] == ["NNP", "VBZ", "NN"]
    assert peter["tokens"] == ["Peter"]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_word_may_hold_any_space_that_does_not_divide_columns(end):
    text = end.join(["New York\tB-LOC", "10\u00a0000\tO", "\u3000\tO"])
    assert columns(text)[0][1]["tokens"] == ["New York", "10\u00a0000", "\u3000"]
    assert columns(end.join(["10\u00a0000 O", "a  O", "b  O "]))[0][1]["tokens"] == ["10\u00a0000", "a", "b"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("EU B-ORG\nrejects\n", r"train.conll:2: 1 columns where the first line has 2"),
        ("\nEU B-ORG\nGerman call O\n", r"train.conll:3: 3 columns where the first line has 2"),
        ("EU B-ORG\n\nrejects VBZ O\n", r"train.conll:3: 3 columns"),
        ("just text of one\n\nword\n", r"train.conll:3: 1 columns where the first line has 4"),
        ("a\tO\n\tO\n", r"train.conll:2: column 0 is empty"),
    ],
)
def test_ragged_columns_are_named_by_line(text, message):
    with pytest.raises(InputError, match=message):
        columns(text)


def test_words_alone_have_no_tags():
    assert columns("EU\nrejects\n") == [
        (":1", {"tokens": ["EU", "rejects"], "0": ["EU", "rejects"], "-1": ["EU", "rejects"]})
    ]


def test_conllu_has_the_syntactic_words_without_ranges_and_empty_nodes():
    (first, spanish), (second, sign) = conllu(CONLLU)
    assert (first, second) == (":1", ":12")
    assert spanish["tokens"] == spanish["form"] == ["vamos", "nos", "a", "el", "mar"]
    assert spanish["tags"] == spanish["upos"] == ["VERB", "PRON", "ADP", "DET", "NOUN"]
    assert spanish["deprel"] == ["root", "obj", "case", "det", "obl"]
    assert "id" not in spanish, "the reader has its own"
    assert sign["tokens"] == ["#"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1 vamos ir VERB\n", "dev.conllu:1: 1 columns; CoNLL-U has ten"),
        (CONLLU.replace("\n4\tel", "\n5\tel"), "dev.conllu:9: word number '5', expected 4"),
    ],
)
def test_a_broken_conllu_line_is_named(text, message):
    with pytest.raises(InputError, match=message):
        conllu(text)


def test_a_file_of_comments_has_no_sentence():
    assert conllu("# newdoc\n\n# text = \n") == []
    assert columns("-DOCSTART- O\n\n") == []
