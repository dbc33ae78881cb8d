"""What leaves the machine is on a list."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from finished import results
from transformers import BertConfig

from ptft_recipes import hub
from ptft_recipes.errors import InputError, PushError


def test_an_adapter_names_its_base_as_others_know_it(tmp_path):
    (tmp_path / "adapter_config.json").write_text(
        json.dumps({"base_model_name_or_path": "/site-packages/x", "r": 4, "peft_type": "LORA"})
    )
    hub.publish(fake_trainer(tmp_path, push=False), results(), "text-classification")
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config == {"base_model_name_or_path": "org/base", "r": 4, "peft_type": "LORA"}
    assert "PeftModel.from_pretrained(base" in (tmp_path / "README.md").read_text()


def fake_trainer(folder: Path, push: bool, **args):
    arguments = {"output_dir": str(folder), "hub_model_id": "me/mine", "hub_private_repo": None} | args
    return SimpleNamespace(
        args=SimpleNamespace(**arguments),
        push_at_end=push,
        is_world_process_zero=lambda: True,
        model=SimpleNamespace(config=BertConfig(id2label={0: "no", 1: "yes"})),
    )


class FakeApi:
    """Records what would be uploaded."""

    calls: list
    public = False

    def create_repo(self, repo_id, private, exist_ok):
        self.calls.append(("create", repo_id, private))
        return SimpleNamespace(repo_id=repo_id)

    def repo_info(self, repo_id, timeout):
        return SimpleNamespace(private=not FakeApi.public)

    def upload_folder(self, repo_id, folder_path, allow_patterns):
        from huggingface_hub.utils import filter_repo_objects

        files = [str(path.relative_to(folder_path)) for path in Path(folder_path).rglob("*") if path.is_file()]
        self.calls.append(("upload", sorted(filter_repo_objects(files, allow_patterns=list(allow_patterns)))))
        return "url"


@pytest.fixture
def api(monkeypatch):
    monkeypatch.setattr(hub, "HfApi", FakeApi)
    monkeypatch.setattr(FakeApi, "public", False)
    monkeypatch.setattr(FakeApi, "calls", [], raising=False)
    return FakeApi


def test_only_what_is_on_the_list_is_uploaded_and_privately(tmp_path, api):
    wanted = ["README.md", "config.json", "model.safetensors", "plots/a.png", "results.json", "tokenizer.json"]
    secret = [".env", "training_args.bin", "predictions/test.jsonl", "train.csv", "checkpoint-3/optimizer.pt",
              "checkpoint-3/model.safetensors", "checkpoint-3/config.json", "notes/README.md"]  # fmt: skip
    for name in [*wanted, *secret]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{}")
    hub.publish(fake_trainer(tmp_path, push=True), results(), "text-classification")
    assert api.calls == [("create", "me/mine", True), ("upload", wanted)]


def test_nothing_is_pushed_to_a_public_repository_by_accident(tmp_path, api):
    api.public = True
    with pytest.raises(PushError, match=r"is public already; pass --hub_private_repo false .* everything is in"):
        hub.publish(fake_trainer(tmp_path, push=True), results(), "text-classification")
    assert len(api.calls) == 1
    hub.publish(fake_trainer(tmp_path, push=True, hub_private_repo=False), results(), "text-classification")
    assert api.calls[1] == ("create", "me/mine", False)


def test_the_card_of_a_push_names_the_repository(tmp_path, api):
    hub.publish(fake_trainer(tmp_path, push=True), results(), "text-classification")
    assert 'pipeline("text-classification", "me/mine")' in (tmp_path / "README.md").read_text()


def test_a_failed_push_keeps_everything_and_says_how_to_retry(tmp_path, api, monkeypatch):
    def fail(self, **kwargs):
        raise ConnectionError("the line is dead")

    monkeypatch.setattr(FakeApi, "upload_folder", fail)
    failed = r"push to me/mine failed \(ConnectionError: the line is dead\).* Retry: hf upload me/mine .* --private"
    with pytest.raises(PushError, match=failed):
        hub.publish(fake_trainer(tmp_path, push=True), results(), "text-classification")
    assert (tmp_path / "README.md").exists()


def test_no_login_is_told_at_the_start():
    with pytest.raises(InputError, match="--push_to_hub: no login at the Hub"):
        hub.check_login()


def test_nothing_is_pushed_unless_asked(tmp_path, api):
    hub.publish(fake_trainer(tmp_path, push=False), results(), "text-classification")
    assert api.calls == []
