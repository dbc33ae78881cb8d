"""The vocabulary of a tokenizer: learned from a corpus, or extended by a domain's words.

New words go into the vocabulary of the tokenizer's own model, not on top of it as added tokens. Those are matched
before the text is split: that leaves a lone space behind in byte-level BPE (`a`, `Ġ`, `tokenizer`), helps no word
that merely starts with a new one, and makes tokenization slower, not faster. Here each kind of model takes a new word
in the way in which every other text keeps its old tokens:

- WordPiece takes the longest piece that fits, so an entry is enough; words that start with a new one follow suit.
- BPE merges by rank: the merges that join the old pieces of the word, from the left, come after all others. (Not
  `ignore_merges`, which the tokenizer classes of transformers drop when they load.)
- Unigram takes the path with the best sum of scores: the word gets the sum of its old pieces, and a little more.
"""

import json
import logging
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from ptft_recipes.errors import InputError

logger = logging.getLogger(__name__)

SPECIAL_TOKENS = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}
ALGORITHMS = ("wordpiece", "bpe", "unigram")
UNIGRAM_MARGIN = 1e-3  # in log probability: above the noise of adding scores up, below a preference


@dataclass(frozen=True)
class NewWord:
    """A word that the tokenizer splits, and what it would save to have it whole.

    Attributes:
        word: As people write it, after the tokenizer's normalisation.
        token: As the vocabulary writes it (`Ġword`, `▁word`).
        count: How often it stands in the corpus.
        pieces: The tokens it is split into now.
        piece_ids: Their ids.
    """

    word: str
    token: str
    count: int
    pieces: tuple[str, ...]
    piece_ids: tuple[int, ...]

    @property
    def saved(self) -> int:
        """Tokens that the corpus would have fewer of."""
        return self.count * (len(self.pieces) - 1)


def train_tokenizer(
    documents: Iterable[str], base: PreTrainedTokenizerBase, algorithm: str, vocab_size: int, lowercase: bool
) -> PreTrainedTokenizerFast:
    """Learn a vocabulary from a corpus that is read once, as a stream.

    WordPiece splits as BERT does, BPE works on bytes as in RoBERTa, Unigram keeps spaces as `▁` as in XLM-R; all have
    BERT's special tokens and wrap a text, or a pair, in `[CLS]` and `[SEP]`. Memory grows with the number of different
    words, not with the corpus.

    Args:
        documents: The texts.
        base: Another tokenizer of the architecture, which knows what the model reads and how much of it.
        algorithm: `wordpiece`, `bpe` or `unigram`.
        vocab_size: Number of tokens, special tokens included.
        lowercase: Whether case is dropped.

    Raises:
        InputError: The characters of the corpus alone need more than `vocab_size` tokens.

    Source: Schuster and Nakajima, Japanese and Korean Voice Search (ICASSP 2012), for WordPiece; Sennrich et al.,
    Neural Machine Translation of Rare Words with Subword Units (ACL 2016), for BPE; Kudo, Subword Regularization (ACL
    2018), for Unigram.
    """
    tokenizer, trainer = _untrained(algorithm, vocab_size, lowercase)
    too_small = (
        f"--vocab_size {vocab_size}: too few for {algorithm} on this corpus: its characters and the "
        f"{len(SPECIAL_TOKENS)} special tokens alone need "
    )
    try:
        tokenizer.train_from_iterator(documents, trainer)
    except Exception as error:  # of this exact class: the Rust trainer has no other
        if "vocabulary is not large enough" not in str(error):
            raise
        raise InputError(f"{too_small}more; raise it") from None
    size = tokenizer.get_vocab_size()
    if size > vocab_size:
        raise InputError(f"{too_small}{size}; raise it to more than that")
    if size < vocab_size:
        logger.info("the corpus gives no more than %d tokens; %d were asked for", size, vocab_size)
    ids = [(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ids
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=base.model_max_length,
        model_input_names=base.model_input_names,  # else no token_type_ids, which tell BERT the second text of a pair
        **SPECIAL_TOKENS,
    )


def _untrained(algorithm: str, vocab_size: int, lowercase: bool) -> tuple[Tokenizer, trainers.Trainer]:
    common = {"vocab_size": vocab_size, "special_tokens": [*SPECIAL_TOKENS.values()], "show_progress": False}
    if algorithm == "wordpiece":
        tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        tokenizer.decoder = decoders.WordPiece()
        return tokenizer, trainers.WordPieceTrainer(**common)
    if algorithm == "bpe":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(**common, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    elif algorithm == "unigram":
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        tokenizer.decoder = decoders.Metaspace()
        trainer = trainers.UnigramTrainer(**common, unk_token="[UNK]")
    else:
        raise InputError(f"--algorithm {algorithm}: must be one of {', '.join(ALGORITHMS)}")
    lower = [normalizers.Lowercase()] if lowercase else []
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), *lower])
    return tokenizer, trainer


def choose_words(
    tokenizer: PreTrainedTokenizerBase,
    documents: Iterable[str],
    keep_word: Callable[[str], bool],
    max_new_words: int,
    min_count: int,
) -> list[NewWord]:
    """Choose the words whose pieces cost a corpus the most tokens: `count * (pieces - 1)`, the most first.

    Words are what the tokenizer's own normaliser and pre-tokenizer make of the text. A word that has an unknown piece
    is left out: there is nothing to start its embedding from.

    Args:
        tokenizer: The one to extend.
        documents: The corpus, read once as a stream.
        keep_word: Which words may enter.
        max_new_words: At most so many.
        min_count: How often a word must stand in the corpus.

    Raises:
        InputError: The tokenizer is not one that can be extended, or no word is worth it.

    Source: Hong et al., AVocaDo: Strategy for Adapting Vocabulary to Downstream Domain (EMNLP 2021).
    """
    _check_kind(tokenizer)
    if max_new_words < 1:
        raise InputError(f"--max_new_words {max_new_words}: must be at least 1")
    backend = tokenizer.backend_tokenizer
    unknown = tokenizer.unk_token_id
    mark = backend.pre_tokenizer.pre_tokenize_str("a a")[-1][0].removesuffix("a")
    candidates = []
    for token, count in _count_words(tokenizer, documents, mark).items():
        if count < min_count or not token.startswith(mark):
            continue
        word = (backend.decoder.decode([token]) if backend.decoder else token.removeprefix(mark)).strip()
        if not keep_word(word):
            continue
        pieces = backend.model.tokenize(token)
        if len(pieces) > 1 and all(piece.id != unknown and not piece.value.startswith("<0x") for piece in pieces):
            values, ids = zip(*((piece.value, piece.id) for piece in pieces), strict=True)
            candidates.append(NewWord(word, token, count, values, ids))
    if not candidates:
        raise InputError(
            f"no new words: the tokenizer has every word that stands in the corpus at least {min_count} times; lower "
            "--min_count, or keep the tokenizer as it is"
        )
    return sorted(candidates, key=lambda new: (-new.saved, new.token))[:max_new_words]


def _check_kind(tokenizer: PreTrainedTokenizerBase) -> None:
    if not tokenizer.is_fast:
        raise InputError(
            f"{type(tokenizer).__name__} has no tokenizer.json: a tokenizer in Python cannot be extended; take a "
            "model with a fast one, or train a new one with --algorithm"
        )
    kind = type(tokenizer.backend_tokenizer.model).__name__
    if kind not in ("WordPiece", "BPE", "Unigram"):
        raise InputError(f"the tokenizer has a {kind} model: only WordPiece, BPE and Unigram can be extended")
    if tokenizer.backend_tokenizer.pre_tokenizer is None:
        raise InputError(f"the tokenizer has no pre-tokenizer, so its {kind} model knows no words to extend it by")


def _count_words(tokenizer: PreTrainedTokenizerBase, documents: Iterable[str], mark: str) -> Counter[str]:
    backend = tokenizer.backend_tokenizer
    counts: Counter[str] = Counter()
    for text in documents:
        text = backend.normalizer.normalize_str(text) if backend.normalizer else text
        words = [word for word, _ in backend.pre_tokenizer.pre_tokenize_str(text)]
        # Metaspace splits at spaces only: `▁graph,` is `▁graph` here, as Unigram would cut it.
        counts.update(map(_leading_letters, words) if mark == "▁" else words)
    return counts


def _leading_letters(word: str) -> str:
    end = next((i for i, letter in enumerate(word) if i > 0 and not letter.isalnum()), len(word))
    return word[:end]


def extend_tokenizer(
    tokenizer: PreTrainedTokenizerBase, new_words: list[NewWord]
) -> tuple[PreTrainedTokenizerBase, dict[int, list[int]]]:
    """Return a copy of a tokenizer that has the new words, and what their embeddings are to be made from.

    The new ids follow all old ones, added tokens among them, and old ids stay. BPE has a token for every merge:
    between `Ġto` and `Ġtokenizer` also `Ġtoken`, unless it is there. (BPE that does not mark where words start may
    lose a new word to a merge of another one.)

    Args:
        tokenizer: WordPiece, BPE or Unigram.
        new_words: As `choose_words` returned them.

    Returns:
        The tokenizer, of the same class; and per new id, in order, the ids of the old pieces.

    Raises:
        InputError: As `choose_words`.
    """
    _check_kind(tokenizer)
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    extend = {"WordPiece": _extend_wordpiece, "BPE": _extend_bpe, "Unigram": _extend_unigram}[state["model"]["type"]]
    first = max(tokenizer.get_vocab().values()) + 1
    _keep_ids_of_added_tokens(state, first)
    tokens = extend(state, new_words, first)
    with tempfile.TemporaryDirectory() as folder:  # the public way to a tokenizer of the same class and settings
        tokenizer.save_pretrained(folder)
        (Path(folder) / "tokenizer.json").write_text(json.dumps(state, ensure_ascii=False), encoding="utf-8")
        extended = type(tokenizer).from_pretrained(folder)
    extended.name_or_path = tokenizer.name_or_path
    pieces = {extended.convert_tokens_to_ids(token): list(ids) for token, ids in tokens.items()}
    if [*pieces] != [
        *range(first, first + len(tokens))
    ] or tokenizer.get_vocab().items() - extended.get_vocab().items():
        raise RuntimeError(f"{type(tokenizer).__name__} did not take the new tokens as they were written")
    return extended, pieces


def _keep_ids_of_added_tokens(state: dict, first: int) -> None:
    """Write added tokens that stand behind the model's vocabulary into it: else they get new ids behind the words."""
    vocabulary = state["model"]["vocab"]
    added = {token["id"]: token["content"] for token in state["added_tokens"]}
    if isinstance(vocabulary, list):  # Unigram, where an id is a place
        vocabulary += [[added.get(i, f"[unused{i}]"), 0.0] for i in range(len(vocabulary), first)]
    else:
        vocabulary |= {content: i for i, content in added.items()}


def _extend_wordpiece(state: dict, new_words: list[NewWord], first: int) -> dict[str, tuple[int, ...]]:
    tokens = {new.token: new.piece_ids for new in new_words}
    state["model"]["vocab"] |= {token: first + i for i, token in enumerate(tokens)}
    return tokens


def _extend_bpe(state: dict, new_words: list[NewWord], first: int) -> dict[str, tuple[int, ...]]:
    vocabulary, merges = state["model"]["vocab"], state["model"]["merges"]
    prefix = state["model"]["continuing_subword_prefix"] or ""
    known = {tuple(merge.split(" ") if isinstance(merge, str) else merge) for merge in merges}
    tokens: dict[str, tuple[int, ...]] = {}
    for new in new_words:
        left = new.pieces[0]
        for i, right in enumerate(new.pieces[1:], start=2):
            if (left, right) not in known:
                known.add((left, right))
                merges.append([left, right])
            left += right.removeprefix(prefix)
            if left not in vocabulary and left not in tokens:
                tokens[left] = new.piece_ids[:i]
    vocabulary |= {token: first + i for i, token in enumerate(tokens)}
    return tokens


def _extend_unigram(state: dict, new_words: list[NewWord], first: int) -> dict[str, tuple[int, ...]]:
    vocabulary = state["model"]["vocab"]
    scores = [score for _, score in vocabulary]
    tokens = {new.token: new.piece_ids for new in new_words}
    # A margin per saved piece: `▁clusters` must beat a new `▁cluster` and `s`.
    vocabulary += [
        [token, sum(scores[i] for i in ids) + UNIGRAM_MARGIN * (len(ids) - 1)] for token, ids in tokens.items()
    ]
    return tokens


def write_words(new_words: list[NewWord], output_dir: str | Path) -> None:
    """Log the words that save the most, and write all of them to `new_words.tsv`.

    Args:
        new_words: As `choose_words` returned them.
        output_dir: Of the run.
    """
    logger.info("%d new words; those that save the most tokens of the corpus:", len(new_words))
    for new in new_words[:10]:
        logger.info(
            "  %-20s %7d = %d x (%d - 1)   %s", new.word, new.saved, new.count, len(new.pieces), " ".join(new.pieces)
        )
    with (Path(output_dir) / "new_words.tsv").open("w", encoding="utf-8") as file:
        file.write("word\ttoken\tcount\tsaved\tpieces\n")
        for new in new_words:
            file.write("\t".join((new.word, new.token, str(new.count), str(new.saved), " ".join(new.pieces))) + "\n")
