"""The main job on the real demo data: minutes rather than seconds."""

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
