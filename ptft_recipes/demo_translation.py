"""A real language pair that travels in a pip package: the texts of Home Assistant's interface, English and German."""

import atexit
import functools
import hashlib
import importlib.util
import json
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import MarianConfig, PreTrainedTokenizerFast

from ptft_recipes.errors import InputError

LONGEST = 300  # characters; a few per cent of the texts are longer, whole pages of help
VOCABULARY = 4000
PAD, END, UNKNOWN = "<pad>", "</s>", "<unk>"
# Half as wide as the base model of Vaswani et al. (2017), with 3 of its 6 layers that read and 2 of the 6 that write.
SIZES = {
    "d_model": 256, "encoder_layers": 3, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 1024, "decoder_ffn_dim": 1024, "max_position_embeddings": 256,
}  # fmt: skip


def translation_rows() -> dict[str, list[dict[str, str]]]:
    """Return distinct English texts, each with its German translation, by split: `id`, `source`, `target`.

    One text in twenty is for validation and one for test. Texts that differ in case, digits, punctuation or the names
    of placeholders only are in the same split.

    Source: the files `components/*/translations/{en,de}.json` of the package `homeassistant` (Apache License 2.0),
    translated by its community.

    Raises:
        InputError: The package is not installed.
    """
    rows: dict[str, list[dict[str, str]]] = {"train": [], "validation": [], "test": []}
    seen: set[str] = set()
    for place, source, target in _translations(_package_folder() / "components"):
        if source in seen or max(len(source), len(target)) > LONGEST:
            continue
        seen.add(source)
        core = " ".join(re.findall(r"[^\W\d_]+", re.sub(r"\{.*?\}", " ", source.casefold())))
        part = int.from_bytes(hashlib.sha256((core or source).encode()).digest()[:4]) % 20
        split = {0: "test", 1: "validation"}.get(part, "train")
        rows[split].append({"id": place, "source": source, "target": target})
    return rows


@functools.cache
def untrained_translator() -> Path:
    """Return a folder with the configuration of a small Transformer, and a tokenizer trained on the training texts."""
    folder = Path(tempfile.mkdtemp(prefix="demo_translator_"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    rows = translation_rows()["train"]
    tokenizer = train_tokenizer([text for row in rows for text in (row["source"], row["target"])], VOCABULARY)
    tokenizer.save_pretrained(folder)
    ids = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    MarianConfig(
        vocab_size=len(tokenizer),
        decoder_start_token_id=tokenizer.pad_token_id,
        forced_eos_token_id=None,
        scale_embedding=True,
        **SIZES,
        **ids,
    ).save_pretrained(folder)
    return folder


def train_tokenizer(texts: list[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Train one tokenizer for both sides: byte-level BPE, which can write any text, with an end token per text.

    Source: Sennrich et al., Neural Machine Translation of Rare Words with Subword Units (2016), section 3.2.
    """
    tokenizer = Tokenizer(models.BPE(unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = [PAD, END, UNKNOWN]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single=f"$A {END}", special_tokens=[(END, 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        unk_token=UNKNOWN,
        model_max_length=SIZES["max_position_embeddings"],
        clean_up_tokenization_spaces=False,
    )


def _package_folder() -> Path:
    found = importlib.util.find_spec("homeassistant")  # not imported: only its texts are read
    if found is None or not found.submodule_search_locations:
        raise InputError(
            "the demo of translation reads the texts of Home Assistant, and needs nothing else of it: python -m pip "
            "install --no-deps --ignore-requires-python homeassistant==2026.11.0; or bring your own with --train_file"
        )
    return Path(found.submodule_search_locations[0])


def _translations(components: Path) -> Iterator[tuple[str, str, str]]:
    for english in sorted(components.glob("*/translations/en.json")):
        german = english.with_name("de.json")
        if not german.exists():
            continue
        translated = dict(_leaves(json.loads(german.read_text(encoding="utf-8"))))
        for path, source in _leaves(json.loads(english.read_text(encoding="utf-8"))):
            target = translated.get(path, "")
            if source.strip() and target.strip():
                yield f"{english.parts[-3]}/{path}", source.strip(), target.strip()


def _leaves(node: dict, path: str = "") -> Iterator[tuple[str, str]]:
    for name, value in node.items():
        place = f"{path}.{name}" if path else name
        if isinstance(value, dict):
            yield from _leaves(value, place)
        elif isinstance(value, str):
            yield place, value
