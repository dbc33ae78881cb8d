"""New words in a vocabulary: which are chosen, that they are used, and that nothing else changes."""

import json
import logging
import random

import pytest
from conftest import FILLERS, TOPICS
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers
from transformers import (
    AlbertTokenizer,
    AutoTokenizer,
    BertTokenizer,
    PreTrainedTokenizerFast,
    RobertaTokenizer,
    XLMRobertaTokenizer,
)

from ptft_recipes.errors import InputError
from ptft_recipes.modeling import ModelArguments, load_tokenizer
from ptft_recipes.vocabulary import ALGORITHMS, choose_words, extend_tokenizer, train_tokenizer

GENERAL = [word for topic in TOPICS.values() for word in topic] + FILLERS
DOMAIN = ["tokenizer", "tokenizers", "embedding", "embeddings", "Parser", "cluster", "clusters", "naïve"]
# Of BERT, which reads token_type_ids.
BASE = BertTokenizer(model_max_length=64)
KINDS = ("wordpiece", "roberta", "xlmr", "albert", *(f"new-{algorithm}" for algorithm in ALGORITHMS))


def sentences(words: list[str], count: int, seed: int) -> list[str]:
    """Return sentences with punctuation, two of whose words are from `words`."""
    generator = random.Random(seed)
    texts = []
    for _ in range(count):
        chosen = [*generator.choices(GENERAL, k=6), *generator.choices(words, k=2)]
        generator.shuffle(chosen)
        texts.append(f"{' '.join(chosen[:4])}, ({chosen[4]}) {' '.join(chosen[5:])}.")
    return texts


LETTERS = ["abcdefghijklm nopqrstuvwxyz ABCDEFGHIJKLM NOPQRSTUVWXYZ . , ( ) - ï"] * 3
LEARNED_FROM = sentences(GENERAL, 200, seed=0) + LETTERS
CORPUS = sentences(DOMAIN, 300, seed=1)
HELD_OUT = sentences(DOMAIN, 60, seed=2) + sentences(GENERAL, 20, seed=3) + ["Two tokenizers;  graph-parser  子 [x]"]


def is_word(word: str) -> bool:
    return len(word) > 2 and word.isalpha()


def build(kind: str):
    """Return a tiny tokenizer of one kind, of the class that the checkpoints of that family load."""
    if kind.startswith("new-"):
        return train_tokenizer(LEARNED_FROM, BASE, kind.removeprefix("new-"), 400, lowercase=True)
    algorithm = {"wordpiece": "wordpiece", "roberta": "bpe"}.get(kind, "unigram")
    trained = train_tokenizer(LEARNED_FROM, BASE, algorithm, 400, lowercase=kind in ("wordpiece", "albert"))
    model = json.loads(trained.backend_tokenizer.to_str())["model"]
    if kind == "wordpiece":
        return BertTokenizer(vocab=model["vocab"])
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    if kind == "roberta":
        merges = [tuple(merge) for merge in model["merges"]]
        return RobertaTokenizer(vocab=model["vocab"], merges=merges, mask_token="[MASK]", **special)
    vocab = [(piece, score) for piece, score in model["vocab"]]
    if kind == "albert":
        return AlbertTokenizer(vocab=vocab, unk_token="[UNK]", pad_token="[PAD]")
    # As in XLM-R's first release: the mask is an added token behind the model's vocabulary.
    return XLMRobertaTokenizer(vocab=vocab, mask_token="<mask>", bos_token="[CLS]", eos_token="[SEP]", **special)


@pytest.fixture(scope="module")
def tokenizers():
    return {kind: build(kind) for kind in KINDS}


@pytest.fixture(scope="module")
def extended(tokenizers):
    """Return by kind the chosen words, the extended tokenizer and the pieces."""
    result = {}
    for kind, tokenizer in tokenizers.items():
        words = choose_words(tokenizer, CORPUS, is_word, max_new_words=20, min_count=20)
        result[kind] = (words, *extend_tokenizer(tokenizer, words))
    return result


def encode(tokenizer, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def reference_count(word: str) -> int:
    return sum(
        text.replace(",", " , ").replace("(", " ").replace(")", " ").replace(".", " ").split().count(word)
        for text in CORPUS
    )


@pytest.mark.parametrize("kind", KINDS)
class TestEveryKindOfModel:
    def test_the_words_of_the_domain_are_chosen_by_what_they_save(self, kind, tokenizers, extended):
        words, _, _ = extended[kind]
        lower = kind not in ("roberta", "xlmr")
        expected = {word.lower() if lower else word for word in DOMAIN} - {"naïve"}
        assert expected <= {new.word for new in words}
        assert [new.saved for new in words] == sorted((new.saved for new in words), reverse=True)
        for new in words:
            assert new.saved == new.count * (len(new.pieces) - 1) > 0
            assert tokenizers[kind].convert_ids_to_tokens(list(new.piece_ids)) == list(new.pieces)

    def test_each_new_word_is_one_token_and_old_ids_stay(self, kind, tokenizers, extended):
        words, tokenizer, pieces = extended[kind]
        old = tokenizers[kind]
        assert type(tokenizer) is type(old)
        assert list(pieces) == list(range(len(old), len(tokenizer)))
        assert old.get_vocab().items() <= tokenizer.get_vocab().items()
        assert [tokenizer.special_tokens_map[name] for name in old.special_tokens_map] == list(
            old.special_tokens_map.values()
        )
        for new in words:
            assert encode(tokenizer, f"the {new.word}")[-1:] == [tokenizer.convert_tokens_to_ids(new.token)], new.word

    def test_a_text_without_new_words_keeps_its_tokens_and_others_are_a_refinement(self, kind, tokenizers, extended):
        _, tokenizer, pieces = extended[kind]
        shorter = 0
        for text in HELD_OUT:
            before, after = encode(tokenizers[kind], text), encode(tokenizer, text)
            # Written out in their old pieces, the new tokens are exactly what stood there.
            assert [old for token in after for old in pieces.get(token, [token])] == before
            shorter += len(after) < len(before)
        assert shorter >= 50

    def test_decoding_gives_the_same_text_as_before(self, kind, tokenizers, extended):
        _, tokenizer, _ = extended[kind]
        for text in HELD_OUT:
            assert tokenizer.decode(encode(tokenizer, text)) == tokenizers[kind].decode(encode(tokenizers[kind], text))

    def test_offsets_point_at_the_words(self, kind, extended):
        _, tokenizer, pieces = extended[kind]
        found = 0
        for text in HELD_OUT:
            encoding = tokenizer(text, return_offsets_mapping=True)
            for token, (start, end) in zip(encoding["input_ids"], encoding["offset_mapping"], strict=True):
                if token in pieces:
                    surface = text[start:end].strip()
                    assert tokenizer.decode([token]).strip() in (surface, surface.lower(), surface.replace("ï", "i"))
                    found += 1
        assert found >= 50

    def test_it_survives_saving_and_auto_tokenizer(self, kind, extended, tmp_path):
        _, tokenizer, _ = extended[kind]
        tokenizer.save_pretrained(tmp_path)
        loaded = AutoTokenizer.from_pretrained(tmp_path)
        assert len(loaded) == len(tokenizer)
        assert [encode(loaded, text) for text in HELD_OUT] == [encode(tokenizer, text) for text in HELD_OUT]
        assert loaded("a team")["input_ids"] == tokenizer("a team")["input_ids"]

    def test_it_can_be_extended_again(self, kind, extended):
        _, tokenizer, _ = extended[kind]
        words = choose_words(tokenizer, ["the backpropagation of a team"] * 5, is_word, 5, 5)
        assert [new.word for new in words] == ["backpropagation"]
        again, pieces = extend_tokenizer(tokenizer, words)
        assert min(pieces) == len(tokenizer)
        assert len(encode(again, "the backpropagation")) == 2


def test_counts_and_the_limits_on_them(tokenizers):
    words = choose_words(tokenizers["wordpiece"], CORPUS, is_word, 1000, 1)
    counts = {new.word: new.count for new in words}
    for word in ("tokenizer", "tokenizers", "cluster"):
        assert counts[word] == reference_count(word)
    assert choose_words(tokenizers["wordpiece"], CORPUS, is_word, 3, 1) == words[:3]
    assert min(new.count for new in choose_words(tokenizers["wordpiece"], CORPUS, is_word, 1000, 60)) >= 60
    assert choose_words(tokenizers["wordpiece"], CORPUS, lambda word: word == "parser", 9, 1)[0].word == "parser"


def test_unknown_pieces_and_words_that_are_whole_already_are_not_chosen(tokenizers):
    with pytest.raises(InputError, match=r"no new words: .* at least 1 times; lower --min_count"):
        choose_words(tokenizers["wordpiece"], ["the team of 子子子"], is_word, 10, 1)


@pytest.mark.parametrize("kind", ["roberta", "xlmr", "albert"])
def test_only_words_that_follow_a_space_enter_a_vocabulary_that_marks_them(kind, tokenizers):
    mark = "Ġ" if kind == "roberta" else "▁"
    words = choose_words(tokenizers[kind], ["(graphene) graphene, graphene"] * 2, is_word, 10, 1)
    assert [(new.token, new.count) for new in words] == [(f"{mark}graphene", 4)], "not the one in brackets"


def test_a_word_with_an_unknown_piece_is_left_out():
    tokenizer = Tokenizer(models.Unigram([("[UNK]", 0.0), ("▁", -1.0), ("a", -1.0), ("b", -1.0)], unk_id=0))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]")
    assert tokenizer.tokenize("aba") == ["▁", "a", "b", "a"]
    words = choose_words(tokenizer, ["aba acba"], is_word, 10, 1)
    assert [new.word for new in words] == ["aba"]


def test_unigram_prefers_a_new_word_to_a_shorter_new_one_and_the_rest():
    generator = random.Random(0)
    for _ in range(20):  # with equal margins, rounding would decide
        pieces = ["▁clu", "ster", "s", "▁"]
        vocabulary = [("[UNK]", 0.0), *((piece, -generator.uniform(2, 9)) for piece in pieces)]
        tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=0))
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]")
        words = choose_words(tokenizer, ["cluster clusters"], is_word, 10, 1)
        extended, _ = extend_tokenizer(tokenizer, words)
        assert extended.tokenize("cluster clusters clu") == ["▁cluster", "▁clusters", "▁clu"]


def test_wordpiece_lets_words_that_start_with_a_new_one_use_it(tokenizers):
    words = choose_words(tokenizers["wordpiece"], ["a tokenizer"] * 3, is_word, 10, 1)
    tokenizer, _ = extend_tokenizer(tokenizers["wordpiece"], words)
    assert tokenizer.tokenize("tokenizers retokenizer")[0] == "tokenizer"
    assert "tokenizer" not in tokenizer.tokenize("retokenizer")


def test_the_real_wordpiece_of_the_demo_model():
    old = load_tokenizer(ModelArguments("demo/minilm"))
    corpus = ["We fine-tune Embeddings with an LSTM encoder; naïve embeddings help."] * 3
    words = choose_words(old, corpus, is_word, 10, 3)
    assert [(new.word, new.pieces) for new in words[:2]] == [
        ("embeddings", ("em", "##bed", "##ding", "##s")),
        ("encoder", ("en", "##code", "##r")),
    ]
    tokenizer, pieces = extend_tokenizer(old, words)
    assert tokenizer.tokenize("LSTM Embeddings, re-encoder") == ["lstm", "embeddings", ",", "re", "-", "encoder"]
    assert min(pieces) == 30522
    assert tokenizer.model_max_length == old.model_max_length
    assert tokenizer.name_or_path == old.name_or_path


def test_why_new_words_are_no_added_tokens(tokenizers):
    """Over byte-level BPE an added token leaves the space behind, or eats it."""
    alone, eaten = build("roberta"), build("roberta")
    alone.add_tokens([AddedToken("tokenizer", single_word=True, normalized=True)])
    assert alone.tokenize("the tokenizer")[-2:] == ["Ġ", "tokenizer"]
    eaten.add_tokens([AddedToken("tokenizer", single_word=True, normalized=True, lstrip=True)])
    assert "thetokenizer" in eaten.decode(encode(eaten, "the tokenizer")).replace("the tokenizer", "thetokenizer")


def test_why_new_words_of_bpe_are_merges(tmp_path):
    """The tokenizer classes of transformers 5 rebuild the model from its vocabulary and merges, and from no more."""
    build("roberta").save_pretrained(tmp_path)
    state = json.loads((tmp_path / "tokenizer.json").read_text())
    state["model"]["ignore_merges"] = True
    state["model"]["vocab"]["Ġtokenizer"] = max(state["model"]["vocab"].values()) + 1
    (tmp_path / "tokenizer.json").write_text(json.dumps(state))
    plain = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert plain.encode(" tokenizer", add_special_tokens=False).tokens == ["Ġtokenizer"]
    assert AutoTokenizer.from_pretrained(tmp_path).tokenize(" tokenizer") != ["Ġtokenizer"]


def test_tokenizers_that_cannot_be_extended(tokenizer):
    class PythonTokenizer:
        is_fast = False

    with pytest.raises(InputError, match=r"PythonTokenizer has no tokenizer\.json: .* train a new one"):
        choose_words(PythonTokenizer(), CORPUS, is_word, 10, 1)
    with pytest.raises(InputError, match="the tokenizer has a WordLevel model: only WordPiece, BPE and Unigram can"):
        choose_words(tokenizer, CORPUS, is_word, 10, 1)
    raw = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE({"a": 0}, [])))
    with pytest.raises(InputError, match="the tokenizer has no pre-tokenizer"):
        choose_words(raw, CORPUS, is_word, 10, 1)


def test_a_limit_below_one_is_refused(tokenizers):
    with pytest.raises(InputError, match="--max_new_words 0: must be at least 1"):
        choose_words(tokenizers["wordpiece"], CORPUS, is_word, 0, 1)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
class TestTraining:
    def test_a_new_tokenizer_reads_a_stream_and_wraps_texts_and_pairs(self, algorithm, tmp_path):
        size = 300 if algorithm == "bpe" else 100
        tokenizer = train_tokenizer((text for text in CORPUS), BASE, algorithm, size, lowercase=True)
        assert len(tokenizer) == size
        assert tokenizer.convert_ids_to_tokens(range(5)) == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        pair = tokenizer("A team", "the Goal")
        assert tokenizer.decode(pair["input_ids"]).count("[SEP]") == 2
        assert pair["token_type_ids"][-1] == 1
        assert tokenizer.decode(encode(tokenizer, "The tokenizers of a team")).strip() == "the tokenizers of a team"
        assert tokenizer.model_max_length == 64
        tokenizer.save_pretrained(tmp_path)
        loaded = AutoTokenizer.from_pretrained(tmp_path)
        assert [loaded(text)["input_ids"] for text in HELD_OUT] == [tokenizer(text)["input_ids"] for text in HELD_OUT]

    def test_case_is_kept_on_request(self, algorithm):
        tokenizer = train_tokenizer(CORPUS, BASE, algorithm, 300, lowercase=False)
        assert "Parser" in tokenizer.decode(encode(tokenizer, "the Parser"))

    def test_a_vocabulary_smaller_than_the_alphabet_is_refused(self, algorithm):
        with pytest.raises(InputError, match=rf"--vocab_size 12: too few for {algorithm} on this corpus"):
            train_tokenizer(CORPUS, BASE, algorithm, 12, lowercase=True)

    def test_a_vocabulary_larger_than_the_corpus_gives_is_said(self, algorithm, caplog, monkeypatch):
        caplog.set_level("INFO", logger="ptft_recipes")
        monkeypatch.setattr(logging.getLogger("ptft_recipes"), "propagate", True)
        tokenizer = train_tokenizer(CORPUS, BASE, algorithm, 30_000, lowercase=True)
        assert len(tokenizer) < 30_000
        assert f"no more than {len(tokenizer)} tokens; 30000 were asked for" in caplog.text


def test_an_unknown_algorithm():
    with pytest.raises(InputError, match="--algorithm word: must be one of wordpiece, bpe, unigram"):
        train_tokenizer(CORPUS, BASE, "word", 100, lowercase=True)


def test_bpe_without_marks_at_word_starts():
    """Merges of one new word must not stand in the way of another where words carry no mark."""
    state = train_tokenizer(["ab ba ca ac"] * 3, BASE, "bpe", 270, True)
    backend = state.backend_tokenizer
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Whitespace()])
    backend.normalizer = normalizers.Lowercase()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]")
    words = choose_words(tokenizer, ["abcde cdefg bcd"] * 3, is_word, 10, 1)
    extended, pieces = extend_tokenizer(tokenizer, words)
    for text in ("abcde cdefg bcd", "cde abcd"):
        after = encode(extended, text)
        assert [old for token in after for old in pieces.get(token, [token])] == encode(tokenizer, text)
