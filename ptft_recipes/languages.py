"""The languages of multilingual translation models, whose tokenizers mark them by tokens of their own."""

import re

from transformers import PreTrainedTokenizerBase

from ptft_recipes.errors import InputError, nearest

# sacrebleu splits words of these languages in its own way; codes of three letters are NLLB's.
WITHOUT_SPACES = {"zho": "zh", "yue": "zh", "jpn": "ja", "kor": "ko", "zh": "zh", "ja": "ja", "ko": "ko"}


def set_languages(tokenizer: PreTrainedTokenizerBase, source_lang: str | None, target_lang: str | None) -> int | None:
    """Tell a tokenizer from which language into which it translates.

    Args:
        tokenizer: Changed in place. One of a single pair (T5, BART, Marian) needs no languages.
        source_lang: By the tokenizer's own name, e.g. `eng_Latn` (NLLB), `en` (M2M100), `en_XX` (mBART).
        target_lang: Likewise.

    Returns:
        The token with which every translation begins, for `forced_bos_token_id`; None where there are no languages.

    Raises:
        InputError: The tokenizer has languages, and one is not given or not among them.
    """
    if not hasattr(tokenizer, "src_lang"):
        return None
    codes = language_codes(tokenizer)
    for flag, code in (("source_lang", source_lang), ("target_lang", target_lang)):
        if code not in codes:
            close = nearest(code or "", codes) or _alike(code or "", codes)
            raise InputError(f"--{flag} {code or 'is not given'}: the tokenizer has {len(codes)} languages{close}")
    tokenizer.src_lang, tokenizer.tgt_lang = source_lang, target_lang
    return codes[target_lang]


def language_codes(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """Return the languages of a multilingual tokenizer, and the token of each."""
    if known := getattr(tokenizer, "lang_code_to_id", None):  # M2M100, mBART
        return dict(known)
    added = tokenizer.get_added_vocab()
    return {token: number for token, number in added.items() if re.fullmatch(r"[a-z]{2,3}_[A-Z][A-Za-z]{1,3}", token)}


def writing_of(code: str | None) -> str:
    """Return the language by which BLEU splits words: zh, ja or ko; empty for one that is written with spaces.

    >>> writing_of("zho_Hans"), writing_of("zh_CN"), writing_of("deu_Latn"), writing_of(None)
    ('zh', 'zh', '', '')
    """
    return WITHOUT_SPACES.get((code or "").partition("_")[0].partition("-")[0].lower(), "")


def _alike(code: str, codes) -> str:
    alike = [known for known in codes if code and known[:2] == code[:2].lower()] or sorted(codes)
    return f", e.g. {', '.join(alike[:5])}"
