"""Sentences rewritten by models: words that a masked language model expects, and translations there and back."""

from collections.abc import Sequence

import numpy as np
import torch
from transformers import AutoModelForMaskedLM, AutoModelForSeq2SeqLM

from ptft_recipes.errors import InputError
from ptft_recipes.modeling import ModelArguments, digest_weights, load_model, load_tokenizer
from ptft_recipes.sparse_head import only_at
from ptft_recipes.word_edits import Edit, changes, core, replace_core

BATCH = 32  # rows
TOP_K = 10  # tokens that may be drawn at a place (Edunov et al., 2018, section 3); the tail of a small model is noise


def _load(auto_class, name: str):
    arguments = ModelArguments(name)
    tokenizer = load_tokenizer(arguments)
    model, new_modules = load_model(auto_class, arguments, tokenizer)
    if new_modules:  # a head of random weights would write random words
        raise InputError(
            f"--augment: {name} brings no weights for {', '.join(new_modules)}; name a model that was trained"
        )
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
    return tokenizer, model.eval().to(device)


class ContextualReplacement:
    """Put words that a masked language model expects in the place of some words outside of entities.

    Args:
        name: Hub id or folder of a model for masked language modelling.
        share: Of the words; at least one is replaced.

    Raises:
        InputError: It cannot be loaded, or has no mask token.

    Source: Kobayashi, Contextual Augmentation: Data Augmentation by Words with Paradigmatic Relations (2018), section
    2, without the label that his model reads too: a word that decides the label may be replaced by one that does not.
    """

    def __init__(self, name: str, share: float):  # noqa: D107
        self.tokenizer, self.model = _load(AutoModelForMaskedLM, name)
        if self.tokenizer.mask_token is None:
            raise InputError(f"--augment masked_lm={name}: its tokenizer has no mask token")
        self.share, self.digest = share, digest_weights(self.model)
        self.words = _whole_words(self.tokenizer, self.model.config.vocab_size)
        self.is_no_word = torch.tensor([not word for word in self.words], device=self.model.device)
        if sum(map(bool, self.words)) < TOP_K:
            raise InputError(f"--augment masked_lm={name}: its vocabulary has hardly a token that is a word")

    def __call__(
        self,
        sentences: Sequence[list[str]],
        entities: Sequence[list[int]],
        generators: Sequence[np.random.Generator],
    ) -> list[Edit]:
        """Return an edit per sentence; see `word_edits` for the arguments."""
        chosen = []
        for words, numbers, generator in zip(sentences, entities, generators, strict=True):
            # A text that holds a mask itself stays as it is: its places could not be told from those to fill.
            is_free = self.tokenizer.mask_token not in " ".join(words)
            free = [i for i, word in enumerate(words) if is_free and core(word) and not numbers[i]]
            chosen.append(sorted(generator.permutation(free)[: changes(words, self.share)].astype(int).tolist()))
        edits: list[Edit] = [[(word, i) for i, word in enumerate(words)] for words in sentences]
        order = np.argsort([len(words) for words in sentences], kind="stable")
        for batch in (order[i : i + BATCH].tolist() for i in range(0, len(order), BATCH)):
            likely = self._predict([sentences[row] for row in batch], [chosen[row] for row in batch])
            for row, places in zip(batch, likely, strict=True):
                for place, (words, weights) in zip(chosen[row], places, strict=False):  # what is too long was cut
                    old = sentences[row][place]
                    weights = weights * [word.lower() != core(old).lower() for word in words]
                    new = str(generators[row].choice(words, p=weights / weights.sum()))
                    edits[row][place] = replace_core(old, new), place
        return edits

    @torch.no_grad()
    def _predict(
        self, sentences: list[list[str]], chosen: list[list[int]]
    ) -> list[list[tuple[list[str], np.ndarray]]]:
        """Return, per row and place that is not cut off, the most likely words and their probabilities."""
        mask = self.tokenizer.mask_token
        texts = [
            " ".join(word.replace(core(word), mask, 1) if i in places else word for i, word in enumerate(words))
            for words, places in zip(sentences, chosen, strict=True)
        ]
        batch = self.tokenizer(texts, truncation=True, padding=True, return_tensors="pt").to(self.model.device)
        hidden = batch["input_ids"] == self.tokenizer.mask_token_id
        with only_at(self.model, hidden):
            logits = self.model(**batch).logits.float()
        top = logits.masked_fill(self.is_no_word, float("-inf")).topk(TOP_K)
        weights = top.values.double().softmax(-1).cpu().numpy()
        found: list[list] = [[] for _ in sentences]
        for row, ids, probabilities in zip(
            hidden.nonzero()[:, 0].tolist(), top.indices.tolist(), weights, strict=True
        ):
            found[row].append(([self.words[i] for i in ids], probabilities))
        return found


def _whole_words(tokenizer, vocab_size: int) -> list[str]:
    """Return per id the word that the token is; nothing for a piece of one, or a mark."""
    tokens = [token or "" for token in tokenizer.convert_ids_to_tokens(range(vocab_size))]
    # Byte-level and SentencePiece vocabularies mark where a word begins, WordPiece where one goes on.
    begins = next((mark for mark in ("Ġ", "▁") if any(token.startswith(mark) for token in tokens)), "")
    words = [
        tokenizer.convert_tokens_to_string([token]).strip() if token.startswith(begins) and token[:2] != "##" else ""
        for token in tokens
    ]
    return [word if word.isalpha() else "" for word in words]


class BackTranslation:
    """Translate sentences into another language and back, drawing each token from the ten likeliest.

    A text longer than the model reads stays as it is.

    Args:
        forward: Hub id or folder of a sequence-to-sequence model that translates into the other language.
        backward: Of one that translates back; it may be the same.
        languages: Of models that have many, by the codes of their tokenizers: that of the text and the other one.

    Raises:
        InputError: A model cannot be loaded, or does not have a language.

    Source: Sennrich, Haddow and Birch, Improving Neural Machine Translation Models with Monolingual Data (2016), for
    translating back; Edunov et al., Understanding Back-Translation at Scale (2018), for sampling, by which every copy
    differs; Xie et al., Unsupervised Data Augmentation for Consistency Training (2020), for both on labelled text.
    """

    def __init__(self, forward: str, backward: str, languages: Sequence[str] = ()):  # noqa: D107
        models = {name: _load(AutoModelForSeq2SeqLM, name) for name in (forward, backward)}
        source, target = languages or (None, None)
        self.ways = [(*models[forward], source, target), (*models[backward], target, source)]
        for tokenizer, _, *codes in self.ways:
            for code in filter(None, codes):
                if _language_id(tokenizer, code) is None:
                    raise InputError(f"--augment languages: {tokenizer.name_or_path} has no language {code!r}")
        self.digest = ",".join(digest_weights(model) for _, model in models.values())

    def __call__(
        self,
        sentences: Sequence[list[str]],
        entities: Sequence[list[int]],
        generators: Sequence[np.random.Generator],
    ) -> list[Edit]:
        """Return an edit per sentence, whose words come from none; see `word_edits` for the arguments."""
        texts = [" ".join(words) for words in sentences]
        tokenizer = self.ways[0][0]
        lengths = [len(ids) for ids in tokenizer(texts, verbose=False)["input_ids"]]
        with torch.random.fork_rng():
            for way in self.ways:
                torch.manual_seed(int(generators[0].integers(2**62)))
                texts = _translate(texts, *way)
        # A translation of nothing is no text to train on, and one of a part may lack what the label is of.
        texts = [text if n <= tokenizer.model_max_length else "" for text, n in zip(texts, lengths, strict=True)]
        return [[(word, 0) for word in text.split() or words] for text, words in zip(texts, sentences, strict=True)]


def _language_id(tokenizer, code: str) -> int | None:
    """Return the id by which a text in a language begins: NLLB and mBART write the code itself, M2M marks it."""
    ids = tokenizer.convert_tokens_to_ids([code, f"__{code}__"])
    return next((i for i in ids if i not in (None, tokenizer.unk_token_id)), None)


@torch.no_grad()
def _translate(texts: list[str], tokenizer, model, source: str | None, target: str | None) -> list[str]:
    settings = {"do_sample": True, "num_beams": 1, "top_k": TOP_K}
    if source:
        tokenizer.src_lang = source
        settings["forced_bos_token_id"] = _language_id(tokenizer, target)
    translated = [""] * len(texts)
    order = np.argsort([len(text) for text in texts], kind="stable")
    for rows in (order[i : i + BATCH].tolist() for i in range(0, len(order), BATCH)):
        batch = tokenizer([texts[i] for i in rows], truncation=True, padding=True, return_tensors="pt")
        batch = {name: batch[name].to(model.device) for name in ("input_ids", "attention_mask")}
        # A loop ends there, and no decoder is asked for a position that it does not have.
        longest = min(2 * batch["input_ids"].shape[1] + 10, tokenizer.model_max_length - 1)
        output = model.generate(**batch, **settings, max_new_tokens=longest)
        for i, text in zip(rows, tokenizer.batch_decode(output, skip_special_tokens=True), strict=True):
            translated[i] = text
    return translated
