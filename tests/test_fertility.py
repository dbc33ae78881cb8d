"""Tokens per word, before and after: against counts by hand, with paired intervals."""

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from ptft_recipes.fertility import compare_tokenizers, count_per_document


def words_and_pieces(*words: str) -> PreTrainedTokenizerFast:
    """Return a WordPiece tokenizer of the letters a and b, and of the words given."""
    tokens = ["[PAD]", "[UNK]", "a", "b", "##a", "##b", *words]
    tokenizer = Tokenizer(models.WordPiece({token: i for i, token in enumerate(tokens)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.enable_truncation(2)  # as MiniLM's tokenizer.json has it
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]")


def test_counts_per_document_are_not_truncated():
    counts = count_per_document(words_and_pieces("abab"), iter(["abab abb a", "x x a", "ab"] * 50))
    assert counts.shape == (150, 3)
    assert counts[:3].tolist() == [[5, 0, 3], [3, 2, 3], [2, 0, 1]]
    assert (counts.reshape(50, 3, 3) == counts[:3]).all()
    assert count_per_document(words_and_pieces(), []).shape == (0, 3)


def test_scores_are_sums_over_the_text_and_not_means_of_documents():
    texts = ["abab abab x", "a"]
    metrics = compare_tokenizers(words_and_pieces(), words_and_pieces("abab"), {"test": texts})
    expected = {
        "fertility_before": 10 / 4,
        "fertility_after": 4 / 4,
        "unknown_before": 1 / 10,
        "unknown_after": 1 / 4,
        "length_before": 5,
        "length_after": 2,
        "tokens_saved": 0.6,
    }
    assert {name: score["value"] for name, score in metrics.items()} == pytest.approx(expected)
    assert {score["n"] for score in metrics.values()} == {2}


def test_the_interval_of_what_is_saved_is_paired():
    generator = np.random.default_rng(0)
    texts = [" ".join(["abab", "a"] * int(length)) for length in generator.integers(1, 200, 40)]
    metrics = compare_tokenizers(words_and_pieces(), words_and_pieces("abab"), {"test": texts, "test/news": ["a"] * 5})
    assert metrics["tokens_saved"]["ci95"] == pytest.approx([0.6, 0.6])
    low, high = metrics["length_before"]["ci95"]
    assert high - low > 50
    assert metrics["tokens_saved/news"] == {"value": 0.0, "ci95": [0.0, 0.0], "n": 5}
