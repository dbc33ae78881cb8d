"""The recipe end to end: what it leaves behind, and that the next recipe takes it."""

import json
import logging
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from conftest import ROOT, load_recipe, nothing_written, run_card, tiny_config, topic_rows, write_csv
from peft import PeftModel
from tokenizers import Tokenizer, models
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertForPreTraining,
    BertTokenizer,
    PreTrainedTokenizerFast,
)

from ptft_recipes.embeddings import new_token_indices, restore_output_bias
from ptft_recipes.errors import InputError
from ptft_recipes.merging import fold_adapter
from ptft_recipes.vocabulary import train_tokenizer as train

LETTERS = ["abcdefghijklm nopqrstuvwxyz , ."]
TEXTS = [
    f"the team of a coach, a {word} and the stock price of a bank"
    for word in ("tokenizer", "embedding", "parser", "embedding") * 10
]


@pytest.fixture(scope="module")
def recipe():
    return load_recipe("train_tokenizer")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A BERT with pooler and heads, and a WordPiece tokenizer of the words that are not of the domain."""
    folder = tmp_path_factory.mktemp("base")
    general = [text.replace(text.split()[6], "new") for text in TEXTS]
    tokenizer = train(general + LETTERS, BertTokenizer(model_max_length=64), "wordpiece", 200, lowercase=True)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    model = BertForPreTraining(tiny_config("bert", len(tokenizer)))
    torch.nn.init.normal_(model.cls.predictions.bias)  # as training leaves it
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def run(recipe, base, tmp_path):
    def run(*flags, texts=TEXTS, output_dir="run"):
        (tmp_path / "corpus.txt").write_text("\n\n".join(texts))
        argv = ["--model_name_or_path", str(base), "--train_file", str(tmp_path / "corpus.txt")]
        return recipe.main([*argv, "--output_dir", str(tmp_path / output_dir), *flags])

    return run


def test_extending_leaves_what_the_next_recipe_takes(run, base, tmp_path, finetune_cls, topics, capsys, monkeypatch):
    monkeypatch.setattr(logging.getLogger("ptft_recipes"), "handlers", [])  # a new one writes to this test's stdout
    (tmp_path / "news.txt").write_text("the price of a stock\n\n" * 10)
    results = run("--general_file", str(tmp_path / "news.txt"), "--max_new_words", "2", "--min_count", "5")
    folder = tmp_path / "run"
    assert json.loads((folder / "results.json").read_text()) == results
    value = {name: score["value"] for name, score in results["metrics"].items()}
    assert value["fertility_after"] < value["fertility_before"]
    assert 0.05 < value["tokens_saved"] < 0.9
    assert value["tokens_saved/news"] == 0
    low, high = results["metrics"]["fertility_after"]["ci95"]
    assert low <= value["fertility_after"] <= high
    assert {name: score["n"] for name, score in results["metrics"].items() if "saved" in name} == {
        "tokens_saved": 4,
        "tokens_saved/news": 1,
    }

    lines = [line.split("\t") for line in (folder / "new_words.tsv").read_text().splitlines()]
    assert lines[0] == ["word", "token", "count", "saved", "pieces"]
    assert [line[0] for line in lines[1:]] == ["embedding", "tokenizer"]
    printed = capsys.readouterr().out
    assert "2 new words; those that save the most tokens of the corpus:" in printed
    assert "  embedding " in printed
    assert "fertility " in printed

    vocabulary = results["run"]["vocabulary"]
    assert vocabulary["after"] == vocabulary["before"] + 2
    assert results["run"]["data"]["rows"] == {"train": 32, "validation": 4, "test": 4}
    assert results["run"]["base_model"] == str(base)
    assert yaml.safe_load((folder / "config.yaml").read_text())["max_new_words"] == 2

    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForMaskedLM.from_pretrained(folder)
    assert tokenizer.tokenize("The Embedding") == ["the", "embedding"]
    assert model.get_input_embeddings().num_embeddings == len(tokenizer) == vocabulary["after"]
    flags = [token for split, path in topics.items() for token in (f"--{split}_file", path)]
    flags += ["--model_name_or_path", str(folder), "--output_dir", str(tmp_path / "next"), "--max_steps", "1"]
    scored = finetune_cls.main([*flags, "--max_length", "32", "--bf16", "false", "--use_cpu", "true"])
    assert scored["metrics"]["accuracy"]["n"] == 64


@pytest.mark.parametrize("algorithm", ["wordpiece", "bpe", "unigram"])
def test_a_new_tokenizer_goes_into_training_from_scratch(algorithm, run, tmp_path, finetune_cls, topics):
    size = {"wordpiece": "60", "bpe": "300", "unigram": "28"}[algorithm]
    results = run("--algorithm", algorithm, "--vocab_size", size)
    folder = tmp_path / "run"
    assert results["run"]["vocabulary"]["after"] == int(size)
    assert not list(folder.glob("*.safetensors"))
    assert json.loads((folder / "config.json").read_text())["vocab_size"] == int(size)
    flags = [token for split, path in topics.items() for token in (f"--{split}_file", path)]
    flags += ["--model_name_or_path", str(folder), "--from_scratch", "--output_dir", str(tmp_path / "next")]
    flags += ["--max_steps", "1", "--max_length", "32", "--bf16", "false", "--use_cpu", "true"]
    assert finetune_cls.main(flags)["metrics"]["accuracy"]["n"] == 64
    with pytest.raises(InputError, match="safetensors"):
        finetune_cls.main(
            [flag for flag in flags if flag != "--from_scratch"] + ["--output_dir", str(tmp_path / "no")]
        )


def test_a_copy_runs_from_an_empty_folder_with_the_demo(tmp_path):
    shutil.copy(ROOT / "recipes" / "train_tokenizer.py", tmp_path / "mine.py")
    (tmp_path / "corpus.txt").write_text("\n\n".join(TEXTS))
    flags = ["--train_file", "corpus.txt", "--min_count", "5", "--output_dir", "out"]
    done = subprocess.run(
        [sys.executable, "mine.py", *flags], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-2000:]
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["run"]["base_model"] == "sentence-transformers/all-MiniLM-L6-v2"
    assert results["run"]["vocabulary"] == {"before": 30522, "after": 30525}


def test_a_streamed_corpus_gives_words_and_held_out_documents(run):
    texts = [f"{text} {i}" for i, text in enumerate(TEXTS)]  # what is held out is left out wherever it stands again
    results = run("--streaming", "--max_eval_samples", "5", "--min_count", "5", texts=texts)
    assert results["run"]["data"]["rows"] == {"train": None, "validation": 5, "test": 5}
    assert results["metrics"]["tokens_saved"]["n"] == 5
    assert results["run"]["vocabulary"]["after"] == results["run"]["vocabulary"]["before"] + 3


class TestTheNextStages:
    """What pretrain_mlm and finetune_cls make of an extended checkpoint."""

    @pytest.fixture(scope="class")
    def corpus(self, tmp_path_factory):
        path = tmp_path_factory.mktemp("corpus") / "corpus.txt"
        path.write_text("\n\n".join(TEXTS))
        return str(path)

    @pytest.fixture(scope="class")
    def extended(self, recipe, base, corpus, tmp_path_factory):
        folder = str(tmp_path_factory.mktemp("extended"))
        flags = ["--model_name_or_path", str(base), "--train_file", corpus, "--min_count", "5"]
        recipe.main([*flags, "--output_dir", folder])
        return folder

    @pytest.fixture
    def run_next(self, extended, corpus, run_mlm, run_cls, tmp_path):
        """Run one of the two recipes on text with the new words."""
        rows = topic_rows(100, seed=0)
        path = write_csv(tmp_path / "rows.csv", [row | {"text": f"embedding {row['text']} parser"} for row in rows])

        def run(recipe, *flags, **options):
            start, train_file = (run_mlm, corpus) if recipe == "pretrain_mlm" else (run_cls, path)
            options = {"model_name_or_path": extended, "train_file": train_file, "max_steps": 4} | options
            return start(*flags, data=False, output_dir=tmp_path / "next", **options)

        return run

    def test_pre_training_goes_on_with_heads_pooler_and_the_same_documents(self, run_next, extended, base, tmp_path):
        first = json.loads(Path(extended, "results.json").read_text())["run"]
        second = run_next("pretrain_mlm")["run"]
        assert second["data"]["fingerprint"] == first["data"]["fingerprint"]
        assert [stage["recipe"] for stage in second["lineage"]] == ["train_tokenizer", "pretrain_mlm"]
        assert second["lineage"][0] == first["lineage"][0]
        assert first["lineage"][0]["from"] == Path(base).name
        card = (tmp_path / "next" / "README.md").read_text()
        assert (
            f"`{Path(base).name}` → `corpus.txt` (train_tokenizer, data `{first['data']['fingerprint']['train']}`) → "
            in card
        )
        for auto_class in (AutoModel, AutoModelForMaskedLM):
            model, report = auto_class.from_pretrained(tmp_path / "next", output_loading_info=True)
            assert not report["missing_keys"]
        assert len(new_token_indices(model.config)) == 3
        poolers = [AutoModel.from_pretrained(folder).pooler.dense.weight for folder in (base, tmp_path / "next")]
        assert torch.equal(*poolers)

    @pytest.mark.parametrize(
        ("stage", "auto_class"),
        [("pretrain_mlm", AutoModelForMaskedLM), ("finetune_cls", AutoModelForSequenceClassification)],
    )
    def test_under_lora_only_the_new_rows_move(self, stage, auto_class, run_next, extended, tmp_path):
        folder = tmp_path / "next"
        results = run_next(stage, tuning="lora")
        config, tokenizer = AutoConfig.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
        assert [each["recipe"] for each in config.lineage] == ["train_tokenizer", stage]
        new = new_token_indices(config)
        inputs = tokenizer("the embedding of a parser", return_tensors="pt")
        assert set(new) & set(inputs["input_ids"][0].tolist())
        base = auto_class.from_pretrained(extended, config=config)
        before = base.get_input_embeddings().weight.detach().clone()
        model = PeftModel.from_pretrained(base, folder).eval()
        restore_output_bias(model)
        logits = model(**inputs).logits.detach()
        merged = fold_adapter(model)
        torch.testing.assert_close(merged(**inputs).logits, logits)
        after = merged.get_input_embeddings().weight
        assert torch.equal(after[: new[0]], before[: new[0]])
        assert (after[new] != before[new]).any(dim=1).sum() >= 2
        if stage == "pretrain_mlm":
            names = run_card(folder, extended)
            torch.testing.assert_close(names["model"].eval()(**inputs).logits, logits)

        shutil.rmtree(folder)
        again = run_next(stage, tuning="lora", merge_adapter="true")
        assert not (folder / "adapter_config.json").exists()
        plain, report = auto_class.from_pretrained(folder, output_loading_info=True)
        assert not report["missing_keys"]
        torch.testing.assert_close(plain.eval()(**inputs).logits, logits)
        assert again["metrics"].keys() == results["metrics"].keys()
        for name, score in results["metrics"].items():
            assert again["metrics"][name]["value"] == pytest.approx(score["value"], rel=1e-4), name

    def test_an_adapter_of_new_words_goes_on_moving(self, run_next, tmp_path):
        first = run_next("pretrain_mlm", tuning="lora")
        (tmp_path / "next").rename(tmp_path / "first")
        second = run_next("pretrain_mlm", tuning=tmp_path / "first")
        assert second["metrics"]["perplexity_before"]["value"] == pytest.approx(
            first["metrics"]["perplexity"]["value"]
        )
        assert second["run"]["trainable_parameters"] == first["run"]["trainable_parameters"]


class TestBadInput:
    def test_texts(self, run, tmp_path):
        with pytest.raises(InputError, match=r"corpus\.txt: no rows"):
            run(texts=[])
        with pytest.raises(InputError, match=r"no new words: .* at least 1000 times; lower --min_count"):
            run("--min_count", "1000")
        (tmp_path / "latin.txt").write_bytes(b"caf\xe9\n")
        with pytest.raises(InputError, match=r"latin\.txt:1: byte 0xe9 is not UTF-8"):
            run("--general_file", str(tmp_path / "latin.txt"))
        assert nothing_written(tmp_path / "run")

    def test_tokenizers(self, run, tmp_path):
        with pytest.raises(InputError, match="--vocab_size 10: too few for bpe on this corpus"):
            run("--algorithm", "bpe", "--vocab_size", "10")
        with pytest.raises(InputError, match="--from_scratch: to extend keeps the weights"):
            run("--from_scratch")
        whole = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0}, unk_token="a")))
        whole.save_pretrained(tmp_path / "words")
        tiny_config("bert", 1).save_pretrained(tmp_path / "words")
        (tmp_path / "words" / "model.safetensors").touch()
        with pytest.raises(InputError, match="the tokenizer has a WordLevel model"):
            run("--model_name_or_path", str(tmp_path / "words"))
        assert nothing_written(tmp_path / "run")

    def test_arguments(self, run, capsys):
        with pytest.raises(SystemExit) as stop:
            run("--algorithm", "word")
        assert stop.value.code == 2
        assert "argument --algorithm: invalid choice: 'word'" in capsys.readouterr().err

    def test_a_folder_in_use(self, run):
        run("--max_new_words", "1")
        with pytest.raises(InputError, match="run holds a finished run; choose another --output_dir"):
            run("--max_new_words", "1")

    def test_several_processes(self, run, recipe, monkeypatch):
        start_run = recipe.start_run
        monkeypatch.setattr(recipe, "start_run", lambda *given: start_run(*given) | {"processes": 2})
        with pytest.raises(InputError, match="a tokenizer is trained by one process; start it with python"):
            run()
