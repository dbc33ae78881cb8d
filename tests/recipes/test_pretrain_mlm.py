"""The recipe end to end, in process, on tiny models: it learns, leaves everything behind, and hands it over intact."""

import gzip
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT, cut_off, nothing_written, run_card
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForMaskedLM, AutoModelForSequenceClassification, AutoTokenizer

from ptft_recipes import pretraining
from ptft_recipes.errors import InputError


def lines(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_run_learns_and_leaves_everything_behind(run_mlm, tmp_path):
    results = run_mlm(num_train_epochs=8)
    folder = tmp_path / "mlm"
    scores = {name: score["value"] for name, score in results["metrics"].items()}
    assert scores["perplexity"] < 0.8 * scores["perplexity_before"]
    assert scores["perplexity_ratio"] == pytest.approx(scores["perplexity"] / scores["perplexity_before"])
    for score in results["metrics"].values():
        assert score["ci95"][0] <= score["value"] <= score["ci95"][1]
        assert score["n"] == 12, "documents"
    assert json.loads((folder / "results.json").read_text()) == results
    for name in ("README.md", "config.yaml", "plots/learning_curves.png", "tokenizer.json"):
        assert (folder / name).stat().st_size > 0, name
    tokens = results["run"]["data"]["tokens"]
    assert tokens["train"]["documents"] == results["run"]["data"]["rows"]["train"] == 40
    blocks = lines(folder / "predictions" / "test.jsonl")
    assert len(blocks) == tokens["test"]["blocks"]
    for when, name in (("loss_before", "perplexity_before"), ("loss", "perplexity")):
        total = sum(block[when] for block in blocks) / sum(block["tokens"] for block in blocks)
        assert math.exp(total) == pytest.approx(scores[name])
    log = json.loads(next(folder.glob("checkpoint-*/trainer_state.json")).read_text())["log_history"]
    losses = [entry["loss"] for entry in log if "loss" in entry]
    assert sum(losses[-5:]) < sum(losses[:5])
    for entry in log:
        if "eval_loss" in entry:
            assert math.exp(entry["eval_loss"]) == pytest.approx(entry["eval_perplexity"], rel=1e-4)


def test_the_saved_model_scores_what_the_run_reported(run_mlm, tmp_path):
    run_mlm(max_steps=5)
    folder = tmp_path / "mlm"
    model, tokenizer = AutoModelForMaskedLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    run_card(folder)
    with torch.no_grad():
        logits = model(**tokenizer("the [MASK] of one", return_tensors="pt")).logits
    assert torch.isfinite(logits).all()


def test_every_run_is_scored_on_the_same_tokens(run_mlm, tmp_path):
    runs = [
        run_mlm(max_steps=1, seed=seed, masking_unit=unit, mlm_probability=rate, output_dir=tmp_path / unit)
        for seed, unit, rate in ((1, "span", 0.3), (2, "word", 0.1))
    ]
    counts = [[b["tokens"] for b in lines(tmp_path / u / "predictions" / "test.jsonl")] for u in ("span", "word")]
    assert counts[0] == counts[1]
    assert runs[0]["metrics"]["perplexity"]["value"] != runs[1]["metrics"]["perplexity"]["value"]


@pytest.mark.parametrize(
    "flags",
    [
        ["--packing"],
        ["--line_by_line"],
        ["--mlm_probability_end", "0.4", "--masking_unit", "span"],
        ["--r_drop", "1", "--fgm", "0.1", "--l2_sp", "0.01", "--mixout", "0.1"],
        ["--layer_wise_decay", "0.9", "--head_learning_rate", "1e-2", "--gradual_unfreezing", "0.5"],
    ],
    ids=" ".join,
)
def test_the_options_train(run_mlm, flags):
    results = run_mlm(*flags, num_train_epochs=4)
    assert results["metrics"]["perplexity_ratio"]["value"] < 0.9
    counts = results["run"]["data"]["tokens"]["train"]
    assert counts["documents"] == 40
    if flags == ["--line_by_line"]:
        assert counts["blocks"] == sum(2 + i % 11 for i in range(40))


@pytest.mark.parametrize("strategy", ["group_by_length", "random"])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_resumed_in_the_middle_of_an_epoch_ends_in_the_same_weights(run_mlm, tmp_path, workers, strategy):
    common = {"lr_scheduler_type": "constant", "save_strategy": "steps", "eval_strategy": "steps", "save_steps": 5,
              "eval_steps": 5, "num_train_epochs": 2, "save_total_limit": 9, "dataloader_num_workers": workers,
              "train_sampling_strategy": strategy, "mlm_probability_end": 0.3}  # fmt: skip
    whole = run_mlm(**common, output_dir=tmp_path / "whole")
    last = whole["run"]["steps"]
    assert last > 20
    middle = 5 * (last // 10 + 1)
    assert last / 2 < middle < last, "in the second epoch"
    cut_off(tmp_path / "whole", middle, tmp_path / "mlm")
    resumed = run_mlm(**common)
    assert resumed["run"]["resumed"]["from"] == f"checkpoint-{middle}"
    assert resumed["run"]["steps"] == last
    name = f"checkpoint-{5 * (last // 5)}/model.safetensors"
    assert (tmp_path / "mlm" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("endless", [False, True])
def test_a_streamed_run_goes_over_its_epochs_and_is_resumed_exactly(run_mlm, tmp_path, corpus, workers, endless):
    common = {"lr_scheduler_type": "constant", "save_strategy": "steps", "eval_strategy": "steps", "save_steps": 6,
              "eval_steps": 6, "save_total_limit": 9, "dataloader_num_workers": workers,
              "shuffle_buffer_size": 20}  # fmt: skip
    common |= {"max_steps": 24} if endless else {"num_train_epochs": 2}
    whole = run_mlm("--streaming", **common, output_dir=tmp_path / "whole")
    blocks, last = whole["run"]["data"]["tokens"]["train"]["blocks"], whole["run"]["steps"]
    assert (blocks is None) == endless
    if not endless:
        assert last == 2 * math.ceil(blocks / 8)
        assert whole["run"]["epochs"] == 2
    assert "streamed" in (tmp_path / "whole" / "README.md").read_text()
    cut_off(tmp_path / "whole", 18, tmp_path / "mlm")
    resumed = run_mlm("--streaming", **common)
    assert resumed["run"]["resumed"]["from"] == "checkpoint-18"
    assert resumed["run"]["steps"] == last > 18
    assert resumed["metrics"] == whole["metrics"]
    name = "checkpoint-24/model.safetensors"
    assert (tmp_path / "mlm" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_folder_of_files_is_streamed_and_resumed_exactly(run_mlm, tmp_path, corpus):
    (tmp_path / "files").mkdir()
    documents = Path(corpus["train"]).read_text().split("\n\n")
    for i in range(3):
        (tmp_path / "files" / f"{i}.txt.gz").write_bytes(gzip.compress("\n\n".join(documents[i::3]).encode(), mtime=0))
    flags = ["--streaming", "--train_file", str(tmp_path / "files")]
    common = {"save_strategy": "steps", "eval_strategy": "steps", "save_steps": 6, "eval_steps": 6, "max_steps": 12,
              "save_total_limit": 9, "shuffle_buffer_size": 20, "max_eval_samples": 5}  # fmt: skip
    whole = run_mlm(*flags, **common, data=False, output_dir=tmp_path / "whole")
    assert whole["run"]["data"]["name"] == "files"
    cut_off(tmp_path / "whole", 6, tmp_path / "mlm")
    assert run_mlm(*flags, **common, data=False)["metrics"] == whole["metrics"]
    name = "checkpoint-12/model.safetensors"
    assert (tmp_path / "mlm" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_general_text_is_mixed_in_and_scored_beside_the_domain(run_mlm, tmp_path):
    general = tmp_path / "general.txt"
    general.write_text("\n\n".join(f"{'a cell of the lab ' * 12}{i}" for i in range(30)))
    results = run_mlm("--mix", f"{general}=0.3", num_train_epochs=4)
    scores = results["metrics"]
    assert scores["perplexity/general"]["n"] == 3
    assert scores["perplexity_ratio/general"]["value"] < 0.8
    assert results["run"]["data"]["mix"] == {"general": 0.3}
    tokens = results["run"]["data"]["tokens"]
    domain = tokens["train"]["blocks"]
    assert results["run"]["steps"] == 4 * math.ceil((domain + round(domain * 0.3 / 0.7)) / 8)
    assert tokens["train/general"]["documents"] == 24
    assert lines(tmp_path / "mlm" / "predictions" / "test_general.jsonl")
    card = (tmp_path / "mlm" / "README.md").read_text()
    assert "| general | perplexity | " in card
    streamed = run_mlm(
        "--streaming", "--mix", f"{general}=0.3", max_steps=8, max_eval_samples=5, output_dir=tmp_path / "streamed"
    )
    assert streamed["metrics"]["perplexity/general"]["n"] > 1


def run_two(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file"]
    command += [str(ROOT / "accelerate_configs" / "multi_cpu.yaml"), "--main_process_port", "0"]
    command += [str(ROOT / "recipes" / "pretrain_mlm.py"), "--max_length", "32", "--per_device_train_batch_size", "4"]
    command += ["--learning_rate", "5e-3", "--bf16", "false", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_two_processes_that_share_files_out_go_on_exactly(tmp_path, checkpoint, corpus):
    (tmp_path / "files").mkdir()
    documents = Path(corpus["train"]).read_text().split("\n\n")
    for i in range(5):
        data = "\n\n".join(documents[i::5]).encode()
        (tmp_path / "files" / f"{i}.txt.gz").write_bytes(gzip.compress(data, mtime=0))
    flags = ["--train_file", str(tmp_path / "files"), "--validation_file", corpus["validation"], "--test_file"]
    flags += [corpus["test"], "--model_name_or_path", checkpoint, "--streaming", "true", "--max_steps", "12"]
    flags += ["--save_strategy", "steps", "--save_steps", "4", "--eval_strategy", "steps", "--eval_steps", "4"]
    flags += ["--save_total_limit", "9", "--shuffle_buffer_size", "30"]
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    done = run_two(*flags, "--output_dir", str(whole))
    assert done.returncode == 0, done.stderr[-3000:]
    assert "train: 5 files, shared out to 2 processes" in done.stdout + done.stderr
    cut_off(whole, 8, resumed)
    done = run_two(*flags, "--output_dir", str(resumed))
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"going on from {resumed / 'checkpoint-8'}" in done.stdout + done.stderr
    name = "checkpoint-12/model.safetensors"
    assert (whole / name).read_bytes() == (resumed / name).read_bytes()
    results = json.loads((whole / "results.json").read_text())
    assert results["metrics"]["perplexity"]["value"] < results["metrics"]["perplexity_before"]["value"]


@pytest.mark.slow
@pytest.mark.parametrize("streaming", ["false", "true"])
def test_two_processes_train_as_one_does(run_mlm, tmp_path, checkpoints, corpus, streaming):
    # ModernBERT has no dropout, which draws differently in each process.
    flags = ["--max_steps", "6", "--masking_unit", "span", "--streaming", streaming]
    one = run_mlm(*flags, model_name_or_path=checkpoints["modernbert"])
    files = [token for split, path in corpus.items() for token in (f"--{split}_file", path)]
    done = run_two(
        "--output_dir", str(tmp_path / "two"), "--model_name_or_path", checkpoints["modernbert"], *files, *flags
    )
    assert done.returncode == 0, done.stderr[-3000:]
    two = json.loads((tmp_path / "two" / "results.json").read_text())
    assert two["run"]["processes"] == 2
    assert done.stdout.count("reloaded ") == 1
    for name in ("perplexity_before", "perplexity"):
        assert one["metrics"][name]["value"] == pytest.approx(two["metrics"][name]["value"], rel=1e-4)
    blocks = [lines(tmp_path / name / "predictions" / "test.jsonl") for name in ("mlm", "two")]
    assert [block["tokens"] for block in blocks[0]] == [block["tokens"] for block in blocks[1]]


class TestHandOver:
    def test_the_pooler_survives_and_fine_tuning_starts_with_a_new_classifier_only(
        self, run_mlm, run_cls, tmp_path, checkpoint, capsys
    ):
        run_mlm(max_steps=3)
        body, info = AutoModel.from_pretrained(tmp_path / "mlm", output_loading_info=True)
        assert not info["missing_keys"]
        pooler = AutoModel.from_pretrained(checkpoint).pooler.dense.weight
        assert torch.equal(body.pooler.dense.weight, pooler)
        _, info = AutoModelForSequenceClassification.from_pretrained(tmp_path / "mlm", output_loading_info=True)
        assert {name.split(".")[0] for name in info["missing_keys"]} == {"classifier"}
        capsys.readouterr()
        results = run_cls(model_name_or_path=tmp_path / "mlm", max_steps=2)
        stages = [(s["recipe"], s["data"], s["steps"]) for s in results["run"]["lineage"]]
        assert [stage[0] for stage in stages] == ["pretrain_mlm", "finetune_cls"]
        assert results["run"]["lineage"][0]["from"] == Path(checkpoint).name, "no path of this machine"
        card = (tmp_path / "run" / "README.md").read_text()
        assert "(pretrain_mlm, 3 steps, data `" in card
        assert "(finetune_cls, 2 steps, data `" in card
        config = json.loads((tmp_path / "run" / "config.json").read_text())
        assert config["lineage"] == results["run"]["lineage"]
        scratch = run_cls(
            "--from_scratch", model_name_or_path=tmp_path / "mlm", max_steps=1, output_dir=tmp_path / "s"
        )
        assert len(scratch["run"]["lineage"]) == 1, "new weights have no past"

    @pytest.mark.parametrize("family", ["roberta", "distilbert", "modernbert"])
    def test_other_families_are_handed_over_too(self, run_mlm, tmp_path, checkpoints, family):
        results = run_mlm(model_name_or_path=checkpoints[family], num_train_epochs=4)
        assert results["metrics"]["perplexity_ratio"]["value"] < 1
        _, info = AutoModel.from_pretrained(tmp_path / "mlm", output_loading_info=True)
        assert not info["missing_keys"] or {k.split(".")[0] for k in info["missing_keys"]} == {"pooler"}
        had_pooler = getattr(AutoModel.from_pretrained(checkpoints[family]), "pooler", None) is not None
        assert not had_pooler or not info["missing_keys"]

    def test_a_new_head_is_trained_and_saved_under_lora(self, run_mlm, tmp_path, checkpoint, tokenizer):
        results = run_mlm(tuning="lora", num_train_epochs=4)
        assert results["metrics"]["perplexity_ratio"]["value"] < 1
        saved = load_file(tmp_path / "mlm" / "adapter_model.safetensors")
        names = [name for name in saved if "lora_" not in name]
        assert any("cls.predictions.transform.dense.weight" in name for name in names)
        assert any(name.endswith("cls.predictions.bias") for name in names)
        torch.manual_seed(5)  # another random head, which the adapter's takes the place of
        base = AutoModelForMaskedLM.from_pretrained(checkpoint)
        embeddings = base.get_input_embeddings().weight.clone()
        model = PeftModel.from_pretrained(base, tmp_path / "mlm").eval()
        decoder = next(value for name, value in saved.items() if name.endswith("decoder.weight"))
        assert torch.equal(decoder, embeddings), "the vocabulary matrix stays that of the embeddings, frozen"
        run = results["run"]
        assert run["trainable_parameters"] < run["total_parameters"] / 3
        assert model.peft_config["default"].task_type is None
        assert torch.isfinite(
            model(**tokenizer("the [MASK]", return_tensors="pt", return_token_type_ids=False)).logits
        ).all()

    def test_a_merged_adapter_is_handed_over_with_its_pooler(self, run_mlm, run_cls, tmp_path, checkpoint):
        results = run_mlm("--merge_adapter", tuning="lora", num_train_epochs=4)
        assert results["metrics"]["perplexity_ratio"]["value"] < 1
        assert not (tmp_path / "mlm" / "adapter_config.json").exists()
        body, info = AutoModel.from_pretrained(tmp_path / "mlm", output_loading_info=True)
        assert not info["missing_keys"]
        before = AutoModel.from_pretrained(checkpoint)
        assert torch.equal(body.pooler.dense.weight, before.pooler.dense.weight)
        queries = [model.encoder.layer[1].attention.self.query.weight for model in (body, before)]
        assert not torch.equal(*queries), "the adapter is in the weights"
        assert run_cls(model_name_or_path=tmp_path / "mlm", max_steps=1)["run"]["steps"] == 1

    def test_a_bottleneck_adapter_learns_and_loads_with_its_new_head(self, run_mlm, tmp_path, checkpoint, tokenizer):
        kwargs = ["--tuning", "bottleneck", "--tuning_kwargs", "reduction_factor=4", "placement=pfeiffer"]
        results = run_mlm(*kwargs, num_train_epochs=4)
        assert results["metrics"]["perplexity_ratio"]["value"] < 1
        saved = load_file(tmp_path / "mlm" / "adapter_model.safetensors")
        assert sum("bottleneck_" in name for name in saved) == 2 * 4, "two layers, down and up, weight and bias"
        assert any(name.endswith("cls.predictions.bias") for name in saved)

    def test_a_model_that_was_not_saved_as_it_is_does_not_pass(self, run_mlm, tmp_path, monkeypatch):
        save = pretraining.MaskedLMTrainer.save_model

        def forgetful(self, *args, **kwargs):
            save(self, *args, **kwargs)
            with torch.no_grad():
                self.model.get_output_embeddings().bias += 0.1

        monkeypatch.setattr(pretraining.MaskedLMTrainer, "save_model", forgetful)
        with pytest.raises(RuntimeError, match=r"logits differ from the trained one's by 0\.1"):
            run_mlm(max_steps=1)
        assert not (tmp_path / "mlm" / "results.json").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--max_length", "65"], "this model reads at most 64 tokens"),
        (["--masking_unit", "sentence"], "choose one of token, word, span"),
        (["--packing", "--attn_implementation", "eager"], "needs --attn_implementation sdpa"),
        (["--label_smoothing_factor", "0.1"], "not for pre-training"),
        (["--mlm_probability", "0"], "must be between 0 and 1"),
    ],
)
def test_mistakes_end_in_one_clear_line(run_mlm, flags, message):
    with pytest.raises(InputError, match=message):
        run_mlm(*flags)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "corpus.txt: no rows"),
        (b"\n \n\n", "corpus.txt: no rows"),
        (b"the team\n", "train has 1 rows: too few to cut a test split from"),
        (b"the team\n\n" * 9, r"train has 28 tokens, fewer than one block of --max_length 32"),
        (b"the team\n\ncaf\xe9 goal", r"corpus.txt:3: byte 0xe9 is not UTF-8 text"),
    ],
)
def test_a_corpus_that_cannot_be_used_is_refused_before_compute(run_mlm, tmp_path, content, message):
    path = tmp_path / "corpus.txt"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        run_mlm("--train_file", str(path), data=False)
    assert nothing_written(tmp_path / "mlm")


def test_a_fault_deep_in_a_stream_is_found_before_training(run_mlm, tmp_path):
    path = tmp_path / "corpus.txt"
    path.write_bytes(b"the team and a goal\n\n" * 300 + b"caf\xe9")
    with pytest.raises(InputError, match=r"corpus\.txt:601: byte 0xe9 is not UTF-8 text"):
        run_mlm("--streaming", "--train_file", str(path), data=False)
    assert nothing_written(tmp_path / "mlm")


def test_a_model_without_a_masked_language_model_is_refused(run_mlm, tmp_path, tokenizer):
    from transformers import GPT2Config, GPT2Model

    GPT2Model(GPT2Config(vocab_size=len(tokenizer), n_embd=8, n_layer=1, n_head=1)).save_pretrained(tmp_path / "gpt")
    tokenizer.save_pretrained(tmp_path / "gpt")
    with pytest.raises(
        InputError, match=r"cannot load AutoModelForMaskedLM .*\.GPT2Config.*: AutoModelForMaskedLM\.$"
    ):
        run_mlm(model_name_or_path=tmp_path / "gpt")


def test_stock_scores_the_same(run_mlm, tmp_path):
    fast = run_mlm(max_steps=1, learning_rate=0)
    stock = run_mlm("--stock", max_steps=1, learning_rate=0, output_dir=tmp_path / "stock")
    assert stock["run"]["stock"]
    for name, score in fast["metrics"].items():
        assert stock["metrics"][name]["value"] == pytest.approx(score["value"], rel=1e-4), name
