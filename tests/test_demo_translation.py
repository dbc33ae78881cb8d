"""The demo of translation: pairs from a package's files, no text on both sides of a split, a tokenizer of its own."""

import json
import re

import pytest
from transformers import AutoConfig, AutoModelForSeq2SeqLM, AutoTokenizer

from ptft_recipes import demo, demo_translation
from ptft_recipes.errors import InputError


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A folder like that of the package, with texts that tell what is done with them."""
    english = {f"key{i}": f"Turn on the light of room {chr(97 + i % 26)}{chr(97 + i // 26)}" for i in range(260)}
    english |= {"same": "Turn off", "digits1": "Area 1 of {name}", "digits2": "Area 27 of {other}!", "long": "x" * 301}
    german = {name: text.replace("Turn on the light of", "Schalte das Licht ein in") for name, text in english.items()}
    german |= {"same": "Ausschalten", "empty": " "}
    for folder, source, target in (
        ("a", {"state": english, "only": {"english": "Missing"}}, {"state": german}),
        ("b", {"again": "Turn off", "empty": "Nothing"}, {"again": "Aus", "empty": " "}),
        ("c", {"lonely": "No German"}, None),
    ):
        place = tmp_path / "components" / folder / "translations"
        place.mkdir(parents=True)
        (place / "en.json").write_text(json.dumps(source))
        if target is not None:
            (place / "de.json").write_text(json.dumps(target))
    monkeypatch.setattr(demo_translation, "_package_folder", lambda: tmp_path)
    return tmp_path


def test_a_text_stands_once_and_texts_that_are_alike_in_one_split(package):
    splits = demo.dataset_rows("demo/home_assistant")
    rows = [row for split in splits.values() for row in split]
    assert len(rows) == 263, "of 268: one again, one empty, one long, two untranslated"
    assert len({row["source"] for row in rows}) == len({row["id"] for row in rows}) == 263
    assert {"id": "a/state.same", "source": "Turn off", "target": "Ausschalten"} in rows, "the first translation"
    where = {row["source"]: split for split, part in splits.items() for row in part}
    assert where["Area 1 of {name}"] == where["Area 27 of {other}!"]
    sizes = {split: len(part) for split, part in splits.items()}
    assert sizes["train"] > 220
    assert 5 <= sizes["validation"] <= 25
    assert 5 <= sizes["test"] <= 25
    assert splits == demo.dataset_rows("demo/home_assistant"), "on every machine the same"


def test_the_untrained_translator_has_a_tokenizer_of_the_training_texts(package, monkeypatch):
    monkeypatch.setattr(demo_translation, "VOCABULARY", 300)
    demo_translation.untrained_translator.cache_clear()
    folder = demo.model_path("demo/translator")
    demo_translation.untrained_translator.cache_clear()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert len(tokenizer) == 300
    text = "Größe: {host} — 21 °C; 部屋\n"
    assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text, "byte by byte"
    assert tokenizer("a")["input_ids"][-1] == tokenizer.eos_token_id
    model = AutoModelForSeq2SeqLM.from_config(AutoConfig.from_pretrained(folder))
    assert model.lm_head.weight is model.get_input_embeddings().weight
    assert model.config.decoder_start_token_id == tokenizer.pad_token_id == model.generation_config.pad_token_id


def test_without_the_package_the_command_is_told(monkeypatch):
    monkeypatch.setattr(demo_translation.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=re.escape("--no-deps --ignore-requires-python homeassistant==")):
        demo_translation.translation_rows()
