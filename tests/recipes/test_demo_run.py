"""The main job on the real demo data: minutes rather than seconds."""

import importlib.util
import json

import pytest
from conftest import load_recipe


@pytest.mark.slow
def test_the_main_job_reaches_its_score(tmp_path):
    results = load_recipe("finetune_cls").main(["--output_dir", str(tmp_path / "run")])
    assert results["metrics"]["macro_f1"]["value"] > 0.62
    assert results["metrics"]["accuracy"]["value"] > 0.69
    assert results["run"]["data"]["rows"] == {"train": 3844, "validation": 1969, "test": 3740}


@pytest.mark.slow
def test_an_adapter_of_the_demo_model_names_the_published_base(tmp_path):
    flags = ["--tuning", "lora", "--max_steps", "2", "--max_eval_samples", "64"]
    load_recipe("finetune_cls").main([*flags, "--output_dir", str(tmp_path / "run")])
    config = json.loads((tmp_path / "run" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "sentence-transformers/all-MiniLM-L6-v2"


@pytest.mark.slow
def test_the_demo_model_learns_the_papers_and_is_handed_over(tmp_path, capsys):
    flags = ["--max_steps", "80", "--max_train_samples", "20", "--max_eval_samples", "5"]
    results = load_recipe("pretrain_mlm").main([*flags, "--output_dir", str(tmp_path / "mlm")])
    scores = {name: score["value"] for name, score in results["metrics"].items()}
    assert scores["perplexity_before"] > 10_000, "MiniLM comes without a vocabulary head"
    assert scores["perplexity"] < 1000
    capsys.readouterr()
    flags = ["--model_name_or_path", str(tmp_path / "mlm"), "--max_steps", "2", "--max_eval_samples", "64"]
    results = load_recipe("finetune_cls").main([*flags, "--output_dir", str(tmp_path / "cls")])
    assert "newly initialised: classifier\n" in capsys.readouterr().out
    assert [stage["data"] for stage in results["run"]["lineage"]] == ["demo/aclsum_papers", "demo/aclsum_roles"]
    assert results["run"]["lineage"][0]["from"] == "sentence-transformers/all-MiniLM-L6-v2"


@pytest.mark.slow
def test_papers_answer_what_their_problem_approach_and_outcome_are(tmp_path):
    results = load_recipe("finetune_qa").main(["--output_dir", str(tmp_path / "run")])
    assert results["run"]["data"]["rows"] == {"train": 710, "validation": 362, "test": 730}
    assert results["run"]["resampled"] == "contexts"
    assert results["metrics"]["exact_match"]["value"] > 0.35, "0.279 is what the best place in a section gives"
    assert results["metrics"]["f1"]["value"] > 0.57, "likewise 0.543"


@pytest.mark.slow
def test_punctuation_comes_back_into_the_papers(tmp_path):
    results = load_recipe("finetune_token_cls").main(["--output_dir", str(tmp_path / "run")])
    assert results["run"]["data"]["rows"] == {"train": 300, "validation": 150, "test": 300}
    assert results["run"]["data"]["tokens"]["test"]["rows_of_several_windows"] == 234
    assert results["metrics"]["macro_f1"]["value"] > 0.56, "0.188 is what O everywhere gives, 0.541 neighbouring words"
    assert results["metrics"]["accuracy"]["value"] > 0.935, "likewise 0.891 and 0.930"


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("homeassistant") is None, reason="its texts are not installed")
def test_a_new_translator_begins_to_learn_german(tmp_path):
    flags = ["--max_steps", "300", "--max_eval_samples", "64", "--output_dir", str(tmp_path / "run")]
    results = load_recipe("finetune_seq2seq").main(flags)
    assert results["run"]["data"]["rows"]["train"] == 32606
    assert results["run"]["validation"]["loss"] < 6.5, "8.3 is what guessing among 4,000 tokens gives"
