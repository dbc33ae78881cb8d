"""The last step of a recipe; what a push does is in `tests/hub`."""

import json
from pathlib import Path
from types import SimpleNamespace

from finished import results
from transformers import BertConfig

from ptft_recipes import hub


def test_an_adapter_names_its_base_as_others_know_it(tmp_path):
    (tmp_path / "adapter_config.json").write_text(
        json.dumps({"base_model_name_or_path": "/site-packages/x", "r": 4, "peft_type": "LORA"})
    )
    hub.publish(fake_trainer(tmp_path), results(), "text-classification")
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config == {"base_model_name_or_path": "org/base", "r": 4, "peft_type": "LORA"}
    assert "PeftModel.from_pretrained(base" in (tmp_path / "README.md").read_text()


def fake_trainer(folder: Path):
    return SimpleNamespace(
        args=SimpleNamespace(output_dir=str(folder)),
        push_at_end=False,
        is_world_process_zero=lambda: True,
        model=SimpleNamespace(config=BertConfig(id2label={0: "no", 1: "yes"})),
    )
