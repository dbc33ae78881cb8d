"""Generation: what the decoder reads, which settings there are, and predictions in the order of the data."""

import doctest
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import SEQ2SEQ_FAMILIES, tiny_seq2seq_config
from transformers import AutoModelForSeq2SeqLM, AutoModelForSequenceClassification, BertConfig

from ptft_recipes import generation_kwargs
from ptft_recipes.errors import InputError
from ptft_recipes.generation import GenerationTrainer, PairCollator, set_generation, shift_right
from ptft_recipes.objectives import classification_loss

ROWS = [
    {"input_ids": [5, 6, 7, 1], "labels": [10, 11, 1]},
    {"input_ids": [8, 1], "labels": [12, 9, 14, 13, 1]},
]


def model_of(family, vocabulary=30):
    torch.manual_seed(0)
    return AutoModelForSeq2SeqLM.from_config(tiny_seq2seq_config(family, vocabulary)).eval()


@pytest.mark.parametrize("family", SEQ2SEQ_FAMILIES)
def test_the_loss_is_the_models_own_and_padding_counts_for_nothing(family, seq2seq_tokenizer):
    model = model_of(family)
    batch = PairCollator(seq2seq_tokenizer, model=model)([dict(row) for row in ROWS])
    assert batch["labels"].tolist() == [[10, 11, 1, -100, -100], [12, 9, 14, 13, 1]]
    start = model.config.decoder_start_token_id
    expected = [[start, 10, 11, 1, 0], [start, 12, 9, 14, 13]]
    assert batch["decoder_input_ids"].tolist() == expected == shift_right(batch["labels"], model.config).tolist()
    labels = batch.pop("labels")
    with torch.no_grad():
        own = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=labels).loss
        assert classification_loss(model(**batch), labels) == pytest.approx(own.item(), rel=1e-5)
        alone = []
        for row in ROWS:
            single = PairCollator(seq2seq_tokenizer, model=model)([dict(row)])
            alone.append(classification_loss(model(**single), single.pop("labels"), num_items_in_batch=1).item())
    assert sum(alone) / 8 == pytest.approx(own.item(), rel=1e-4)


def test_without_its_own_input_the_decoder_of_bart_would_read_the_source(seq2seq_tokenizer):
    model = model_of("bart")
    batch = PairCollator(seq2seq_tokenizer, model=model)([dict(row) for row in ROWS[:1]])
    labels, right = batch.pop("labels"), batch.pop("decoder_input_ids")
    with torch.no_grad():
        assert model(**batch).logits.shape[1] == batch["input_ids"].shape[1] != right.shape[1], "nobody is told"
    assert labels.shape == right.shape


def test_label_smoothing_spreads_over_the_vocabulary_and_leaves_padding_out(seq2seq_tokenizer):
    model = model_of("marian")
    batch = PairCollator(seq2seq_tokenizer, model=model)([dict(row) for row in ROWS])
    labels = batch.pop("labels")
    with torch.no_grad():
        outputs = model(**batch)
    logs = outputs.logits.log_softmax(-1)
    kept = labels != -100
    gold = logs[kept].gather(1, labels[kept][:, None])[:, 0]
    expected = -(0.9 * gold + 0.1 * logs[kept].mean(-1)).mean()
    assert classification_loss(outputs, labels, label_smoothing=0.1).item() == pytest.approx(expected.item(), rel=1e-5)


def test_rows_without_labels_have_none(seq2seq_tokenizer):
    batch = PairCollator(seq2seq_tokenizer, model=model_of("t5"))([{"input_ids": [5, 1]}])
    assert set(batch) == {"input_ids", "attention_mask"}


def test_settings_are_data(tmp_path):
    model = model_of("bart")
    chosen = set_generation(model, ["num_beams=4", "length_penalty=0.6", "no_repeat_ngram_size=3"], 12, 7)
    assert chosen["num_beams"] == 4
    assert (chosen["max_new_tokens"], chosen["forced_bos_token_id"]) == (12, 7)
    model.save_pretrained(tmp_path)  # transformers refuses settings that do not go together only here
    again = AutoModelForSeq2SeqLM.from_pretrained(tmp_path)
    tokens = torch.tensor([[5, 6, 1]])
    # Not the texts: of weights that were never trained the beams lie closer than rounding.
    settings = [config.to_diff_dict() for config in (again.generation_config, model.generation_config)]
    assert settings[0] == settings[1]
    assert again.generation_config.length_penalty == 0.6
    assert again.generate(tokens)[0, 1] == 7, "the language of the target"


def test_a_checkpoint_that_samples_by_itself_is_refused():
    model = model_of("bart")
    model.generation_config.do_sample = True
    with pytest.raises(InputError, match="do_sample: the checkpoint's own setting is True; scores of samples"):
        set_generation(model, [], 12)
    set_generation(model, ["do_sample=false"], 12)


def test_the_example_in_the_docstring_holds():
    assert doctest.testmod(generation_kwargs).attempted == 1
    assert doctest.testmod(generation_kwargs).failed == 0


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        ("num_beam=4", r"num_beam=4: no such setting of GenerationConfig; did you mean 'num_beams'\?"),
        ("num_beams", "expected name=value"),
        ("num_beams=0", "num_beams=0: must be a whole number of at least 1"),
        ("num_beams=[2]", r"num_beams=\[2\]: must be a whole number"),
        ("no_repeat_ngram_size=three", "--generation_kwargs: "),
        ("length_penalty=2", "--generation_kwargs: .*num_beams"),
        ("do_sample=true", "scores of samples depend on chance"),
        ("num_return_sequences=2", "one text per row is scored"),
        ("return_dict_in_generate=true", "texts are scored, and nothing else"),
        ("max_length=50", "name max_new_tokens"),
        ("num_beams=[1", r"num_beams=\[1: while parsing"),
    ],
)
def test_settings_that_cannot_be_are_refused_before_training(pair, message):
    with pytest.raises(InputError, match=message):
        set_generation(model_of("bart"), [pair], 12)


def test_a_model_that_cannot_write_a_text_is_refused():
    config = BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, vocab_size=9)
    with pytest.raises(InputError, match="a bert model is no encoder-decoder"):
        set_generation(AutoModelForSequenceClassification.from_config(config), [], 12)
    model = model_of("bart")
    model.config.decoder_start_token_id = None
    with pytest.raises(InputError, match="no decoder_start_token_id"):
        set_generation(model, [], 12)


def test_padding_of_what_was_written_is_no_token(seq2seq_tokenizer):
    bare = GenerationTrainer.__new__(GenerationTrainer)
    bare.processing_class = seq2seq_tokenizer
    words = seq2seq_tokenizer.convert_tokens_to_ids(["Katze", "Hund"])
    assert bare.decode(np.array([[0, *words, 1, -100, -100], [0, words[1], 1, 0, 0, 0]])) == ["Katze Hund", "Hund"]
    bare.metrics, bare.language, bare.references = ("bleu",), "", ["Katze Hund", "Hund", "more"]
    bare.text_metrics = lambda prediction: float(prediction.predictions[:, -2].sum())
    prediction = SimpleNamespace(predictions=np.array([[0, *words, 1]]))
    assert bare._score_validation(prediction) == 1.0, "of the first rows only"
