"""Gaps in a text and what fills them: T5's span corruption, BART's text infilling and sentence permutation."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from transformers import PreTrainedTokenizerBase

from ptft_recipes.blocks import NO_WORD
from ptft_recipes.errors import InputError
from ptft_recipes.gap_tokens import sentinel_ids

# T5: section 3.1.4 and appendix; BART: sections 2.2 and 3. Each with its share of the text that is hidden.
OBJECTIVES = {"span_corruption": 0.15, "infilling": 0.3, "denoising": 0.3}
MEAN_SPAN_LENGTH = 3.0


class Corrupted(NamedTuple):
    """A row with gaps.

    Args:
        input_ids: `[length]`, what the encoder reads.
        labels: `[target length]`, what the decoder is to write, its end included.
        hidden: `[target length]` bool, which labels are tokens of the text that the input lacks.
    """

    input_ids: np.ndarray
    labels: np.ndarray
    hidden: np.ndarray


def count_noise(tokens: int, noise_density: float, mean_span_length: float) -> tuple[int, int]:
    """Return how many tokens of a text are hidden, and in how many spans; no token of a text of one.

    Args:
        tokens: Of the text, without special tokens.
        noise_density: Share of them that is hidden.
        mean_span_length: In tokens.

    Source: Raffel et al., T5 (2020), section 3.1.4; `random_spans_noise_mask` of its code.
    """
    if tokens < 2:
        return 0, 0
    noise = min(max(round(tokens * noise_density), 1), tokens - 1)
    return noise, min(max(round(noise / mean_span_length), 1), tokens - noise)


def full_length(room: int, noise_density: float, mean_span_length: float) -> int:
    """Return of how many tokens a text may be so that, after span corruption, it fills `room` tokens.

    Source: `random_spans_helper` of T5's code.
    """

    def corrupted(tokens: int) -> int:
        noise, spans = count_noise(tokens, noise_density, mean_span_length)
        return tokens - noise + spans

    tokens = room
    while corrupted(tokens + 1) <= room:
        tokens += 1
    return tokens


def segment(items: int, segments: int, generator: np.random.Generator) -> np.ndarray:
    """Cut a number of items into segments of at least one, all cuts equally likely; `[segments]` lengths."""
    cuts = np.sort(generator.choice(items - 1, segments - 1, replace=False)) + 1
    return np.diff(np.r_[0, cuts, items])


def hide_spans(
    tokens: int, noise_density: float, mean_span_length: float, generator: np.random.Generator
) -> list[tuple[int, int]]:
    """Choose the spans that span corruption hides, as `(start, end)`.

    As in T5's code a text begins with tokens that stay and ends with a span that is hidden.

    Args:
        tokens: Of the text.
        noise_density: As for `count_noise`.
        mean_span_length: As for `count_noise`.
        generator: Decides.

    Source: As for `count_noise`.
    """
    noise, spans = count_noise(tokens, noise_density, mean_span_length)
    if not spans:
        return []
    hidden, kept = segment(noise, spans, generator), segment(tokens - noise, spans, generator)
    ends = np.cumsum(kept + hidden)
    return list(zip((ends - hidden).tolist(), ends.tolist(), strict=True))


def draw_infilling(
    words: int, noise_density: float, mean_span_length: float, generator: np.random.Generator
) -> list[int]:
    """Choose what text infilling does to the words of a text, from left to right.

    Exactly the share of the words, rounded up, is in spans; lengths are drawn from a Poisson distribution, and the
    last is cut to fit. Spans and words that stay come in random order. A span of no word inserts a mask token; there
    are never more spans than hidden words, so that a text does not become longer.

    Args:
        words: Of the text.
        noise_density: Share of the words that is hidden.
        mean_span_length: In words; the mean of the distribution.
        generator: Decides.

    Returns:
        Per word that stays -1, per span the number of its words.

    Source: Lewis et al., BART (2020), sections 2.2 and 3; `--mask-length span-poisson --replace-length 1` of
    its code, which counts whole words.
    """
    budget = int(np.ceil(words * noise_density))
    lengths: list[int] = []
    while sum(lengths) < budget:
        lengths.append(min(int(generator.poisson(mean_span_length)), budget - sum(lengths)))
    spans = [length for length in lengths if length]
    inserts = min(len(lengths) - len(spans), budget - len(spans))
    return generator.permutation([-1] * (words - budget) + spans + [0] * inserts).astype(int).tolist()


def permute_sentences(
    ids: np.ndarray, word_ids: np.ndarray, full_stops: Sequence[int], generator: np.random.Generator
) -> np.ndarray:
    """Return the places of a text's tokens `[length]` with its sentences in random order.

    A sentence ends behind the last token of a word that is a full stop; what follows the last one is a sentence too.

    Args:
        ids: `[length]`, the text without special tokens.
        word_ids: `[length]`, the number of each token's word.
        full_stops: Ids of the tokens that end a sentence.
        generator: Decides.

    Source: Lewis et al., BART (2020), section 2.2.
    """
    ends = np.flatnonzero(np.isin(ids[:-1], full_stops) & (np.diff(word_ids) != 0)) + 1
    sentences = np.split(np.arange(len(ids)), ends)
    return np.concatenate([sentences[i] for i in generator.permutation(len(sentences))])


class Gaps:
    """Makes gaps in blocks of text; what is hidden in a row depends on seed, epoch and row alone.

    Args:
        tokenizer: As `add_gap_tokens` left it.
        objective: `span_corruption`: spans of tokens become sentinels, and the target is each sentinel followed by
            what it stands for. `infilling`: spans of whole words become one mask token each, and the target is the
            text. `denoising`: the same after the sentences of the row were put into random order.
        noise_density: Share of the tokens (of span corruption) or words that is hidden; the paper's when None.
        mean_span_length: In tokens, or in words.
        seed: Of the choice.

    Raises:
        InputError: An unknown objective, numbers out of range, or a tokenizer that cannot do it.
    """

    def __init__(  # noqa: D107
        self,
        tokenizer: PreTrainedTokenizerBase,
        objective: str = "span_corruption",
        noise_density: float | None = None,
        mean_span_length: float = MEAN_SPAN_LENGTH,
        seed: int = 0,
    ):
        if objective not in OBJECTIVES:
            raise InputError(f"--objective {objective}: choose one of {', '.join(OBJECTIVES)}")
        density = OBJECTIVES[objective] if noise_density is None else noise_density
        if not 0 < density < 1:
            raise InputError(f"--noise_density {density}: must be between 0 and 1")
        if mean_span_length < 1:
            raise InputError(f"--mean_span_length {mean_span_length}: must be at least 1")
        name = tokenizer.name_or_path
        if not tokenizer.is_fast:
            raise InputError(f"the tokenizer of {name} has no fast version, which is needed to tell words apart")
        if tokenizer.pad_token_id is None:
            raise InputError(f"the tokenizer of {name} has no padding token, which batches need")
        self.objective, self.seed, self.rates = objective, seed, (density, mean_span_length)
        self.name, self.longest = name, tokenizer.model_max_length
        self.special = tokenizer.num_special_tokens_to_add()
        words = tokenizer("one two.", return_special_tokens_mask=True)
        if not words["special_tokens_mask"][-1]:
            raise InputError(f"the tokenizer of {name} puts no token behind a text that would end what is written")
        self.end_id = words["input_ids"][-1]
        self.full_stops = tokenizer("one.", add_special_tokens=False)["input_ids"][-1:]
        is_infilling = objective != "span_corruption"
        self.sentinels, self.mask_id = sentinel_ids(tokenizer), tokenizer.mask_token_id
        tokens = [self.mask_id] if is_infilling else self.sentinels[:1]
        if tokens in ([], [None]):
            raise ValueError("a tokenizer without tokens for gaps; add_gap_tokens comes first")
        if is_infilling and len(set(tokenizer("one two", add_special_tokens=False).word_ids())) < 2:
            raise InputError(f"--objective {objective}: this tokenizer does not mark words; take span_corruption")
        self.token = tokenizer.convert_ids_to_tokens(tokens[0])  # that stands for a gap, or for the first one

    def block_length(self, max_length: int) -> int:
        """Return of how many tokens a block may be so that the encoder's input has at most `max_length`.

        Args:
            max_length: Special tokens included, here and in the result.

        Raises:
            InputError: The model reads less, nothing is left for text, targets would be longer than inputs, or a
                block would have more gaps than there are sentinels.
        """
        if max_length > self.longest:
            raise InputError(f"--max_length {max_length}: this model reads at most {self.longest} tokens")
        if max_length <= self.special:
            raise InputError(f"--max_length {max_length}: {self.special} special tokens leave no room for text")
        if self.objective != "span_corruption":
            return max_length
        length = full_length(max_length - self.special, *self.rates)
        noise, spans = count_noise(length, *self.rates)
        if spans > len(self.sentinels):
            raise InputError(
                f"--max_length {max_length}: {spans} gaps in a block, and the tokenizer has {len(self.sentinels)} "
                "sentinels; lower --max_length or --noise_density, or raise --mean_span_length"
            )
        if noise + spans + 1 > max_length:
            raise InputError(
                f"--noise_density {self.rates[0]}: targets of {noise + spans + 1} tokens, longer than --max_length "
                f"{max_length}; lower it"
            )
        return length + self.special

    def corrupt(self, input_ids: Sequence[int], word_ids: Sequence[int], row: int, epoch: int = 0) -> Corrupted:
        """Make the gaps of one row; its special tokens stay where they are.

        Args:
            input_ids: `[length]`, a block of `split_into_blocks`.
            word_ids: `[length]`, likewise.
            row: Number of the row in its data set.
            epoch: How often the row has been read before.
        """
        generator = np.random.default_rng([self.seed, epoch, row])
        ids, words = np.array(input_ids, dtype=np.int64), np.array(word_ids)
        text = np.flatnonzero(words != NO_WORD)
        start, end = (text[0], text[-1] + 1) if len(text) else (len(ids) - 1, len(ids) - 1)
        before, inside, after = np.split(ids, [start, end])
        if self.objective == "span_corruption":
            found, labels, hidden = self._span_corruption(inside, generator)
        else:
            found, hidden_inside = self._infilling(inside, words[start:end], generator)
            labels, hidden = ids, np.zeros(len(ids), dtype=bool)
            hidden[start:end] = hidden_inside
        return Corrupted(np.concatenate([before, found, after]), labels, hidden)

    def _span_corruption(self, ids, generator):
        found, labels, hidden, place = [], [], [], 0
        for sentinel, (start, end) in zip(self.sentinels, hide_spans(len(ids), *self.rates, generator), strict=False):
            found += [*ids[place:start], sentinel]
            labels += [sentinel, *ids[start:end]]
            hidden += [False] + [True] * (end - start)
            place = end
        found, labels, hidden = [*found, *ids[place:]], [*labels, self.end_id], [*hidden, False]
        return np.array(found, dtype=np.int64), np.array(labels, dtype=np.int64), np.array(hidden)

    def _infilling(self, ids, words, generator):
        hidden = np.zeros(len(ids), dtype=bool)
        if not len(ids):
            return ids, hidden
        order = np.arange(len(ids))
        if self.objective == "denoising":
            order = permute_sentences(ids, words, self.full_stops, generator)
        starts = np.flatnonzero(np.r_[True, np.diff(words[order]) != 0])
        ends = np.r_[starts[1:], len(ids)]
        found, word = [], 0
        for span in draw_infilling(len(starts), *self.rates, generator):
            if span < 0:
                found += ids[order[starts[word] : ends[word]]].tolist()
                word += 1
                continue
            found.append(self.mask_id)
            if span:
                hidden[order[starts[word] : ends[word + span - 1]]] = True
                word += span
        return np.array(found, dtype=np.int64), hidden
