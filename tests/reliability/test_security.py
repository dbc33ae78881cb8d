"""Nothing that comes as data runs as code, and no secret is written down. What a push does: tests/hub.

Every file that could run code has a payload that makes a folder. The first test sees that the payload works.
"""

import ast
import bz2
import gzip
import io
import json
import lzma
import os
import pickle
import re
import shutil
import subprocess
import sys
import tarfile
import time
import zipfile
from contextlib import suppress
from functools import partial
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
import transformers.dynamic_module_utils
from conftest import ROOT, TOPICS, load_recipe, topic_rows, write_csv
from datasets import Dataset, DatasetDict
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from ptft_recipes.adapters import parse_kwargs
from ptft_recipes.checkpoints import MANIFEST, read_manifest, seal_checkpoint
from ptft_recipes.cli import parse_args
from ptft_recipes.data import DatasetArguments, load_splits
from ptft_recipes.embeddings import find_weights
from ptft_recipes.errors import InputError, PushError
from ptft_recipes.merging import check_adapters
from ptft_recipes.modeling import ModelArguments, load_model, load_tokenizer
from ptft_recipes.outgoing import pushed_files
from ptft_recipes.reading import SUFFIXES, read_rows, stream_documents
from ptft_recipes.saved_adapters import load_adapter

LORA = ["--tuning", "lora", "--tuning_kwargs", "r=4"]


class Payload:
    """Unpickled, it makes a folder."""

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return os.mkdir, (self.marker,)


def poison(path, marker):
    torch.save({"weight": Payload(marker)}, path)


@pytest.fixture
def marker(tmp_path):
    """A folder that must not be there when the test ends."""
    path = tmp_path / "code-ran"
    yield path
    assert not path.exists(), "code from data was run"


def one_line(caught) -> str:
    """Return the message of an error, which must be one line."""
    message = str(caught.value)
    assert message
    assert "\n" not in message
    return message


def test_the_payload_works(tmp_path):
    poison(tmp_path / "evil.bin", tmp_path / "ran")
    torch.load(tmp_path / "evil.bin", weights_only=False)
    assert (tmp_path / "ran").is_dir()


# Weights


@pytest.fixture
def pickled(checkpoints, tmp_path, marker):
    """Copies of tiny checkpoints whose weights are a pickle."""

    def copy(family="bert"):
        folder = shutil.copytree(checkpoints[family], tmp_path / f"pickled-{family}")
        (folder / "model.safetensors").unlink()
        poison(folder / "pytorch_model.bin", marker)
        return str(folder)

    return copy


@pytest.mark.parametrize("recipe", ["run_cls", "run_mlm", "run_sentences"])
def test_a_model_that_is_a_pickle_is_refused(recipe, pickled, request):
    with pytest.raises(InputError, match="safetensors") as caught:
        request.getfixturevalue(recipe)(model_name_or_path=pickled())
    one_line(caught)


def test_an_encoder_decoder_may_not_be_a_pickle(run_span, pickled):
    with pytest.raises(InputError, match="safetensors") as caught:
        run_span(model_name_or_path=pickled("t5"))
    one_line(caught)


def test_neither_generator_nor_discriminator_may_be_a_pickle(run_rtd, pickled):
    folder = pickled("electra")
    for option in ("model_name_or_path", "generator_name_or_path"):
        with pytest.raises(InputError, match="safetensors") as caught:
            run_rtd(**{option: folder})
        one_line(caught)


def test_a_vocabulary_is_not_extended_from_a_pickle(pickled, corpus, tmp_path):
    argv = ["--model_name_or_path", pickled(), "--train_file", corpus["train"], "--output_dir", str(tmp_path / "run")]
    with pytest.raises(InputError, match=r"has no model\.safetensors") as caught:
        load_recipe("train_tokenizer").main(argv)
    one_line(caught)


def test_an_index_must_not_lead_to_pickles_or_out_of_the_folder(checkpoint, tokenizer, tmp_path, marker):
    folder = Path(shutil.copytree(checkpoint, tmp_path / "sharded"))
    (folder / "model.safetensors").rename(tmp_path / "outside.safetensors")
    poison(folder / "evil.bin", marker)
    model_args = ModelArguments(model_name_or_path=str(folder))
    wrong = ["../outside.safetensors", "/etc/passwd", "..\\outside.safetensors", "sub/x.safetensors", "..", "evil.bin"]
    for name in (*wrong, "missing.safetensors", None):
        index = {"metadata": {}, "weight_map": {"embeddings.word_embeddings.weight": name}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        for load in (partial(load_model, AutoModelForSequenceClassification, tokenizer=tokenizer), find_weights):
            with pytest.raises(InputError) as caught:
                load(model_args=model_args)
            assert ("which is no safetensors file beside it" in one_line(caught)) == (name in wrong)


def test_what_a_checkpoint_holds_beside_its_weights_is_not_read(checkpoint, tokenizer, tmp_path, marker):
    folder = Path(shutil.copytree(checkpoint, tmp_path / "checkpoint-7"))
    for name in ("optimizer.pt", "training_args.bin", "pytorch_model.bin", "adapter_model.bin"):
        poison(folder / name, marker)
    (folder / "evil.py").write_text(f"import os; os.mkdir({str(marker)!r})")
    load_model(AutoModelForSequenceClassification, ModelArguments(model_name_or_path=str(folder)), tokenizer)


# Adapters


@pytest.fixture
def adapter(checkpoint, tokenizer, tmp_path):
    """Save an adapter of the tiny model; return its folder."""

    def save(config=None, **changes):
        base = AutoModelForSequenceClassification.from_pretrained(checkpoint, num_labels=3)
        base.config.name_or_path = checkpoint
        folder = tmp_path / "adapter"
        config = config or LoraConfig(task_type="SEQ_CLS", target_modules=["query"])
        get_peft_model(base, config).save_pretrained(folder)
        base.config.id2label = dict(enumerate(sorted(TOPICS)))
        base.config.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        path = folder / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))
        return folder

    return save


@pytest.fixture
def run_merge(checkpoint, topics, tmp_path):
    """Run merge_adapters in process."""

    def run(*adapters):
        argv = ["--model_name_or_path", checkpoint, "--output_dir", str(tmp_path / "merged"), "--max_length", "32"]
        argv += ["--bf16", "false", "--use_cpu", "true", "--disable_tqdm", "true"]
        argv += [token for split, path in topics.items() for token in (f"--{split}_file", path)]
        return load_recipe("merge_adapters").main([*argv, "--adapters", *map(str, adapters)])

    return run


def plain(checkpoint):
    return AutoModelForSequenceClassification.from_pretrained(checkpoint, num_labels=3)


def test_an_adapter_that_is_a_pickle_is_refused(adapter, run_cls, run_merge, checkpoint, marker):
    folder = adapter()
    (folder / "adapter_model.safetensors").unlink()
    poison(folder / "adapter_model.bin", marker)
    with pytest.raises(InputError, match=r"no adapter_model\.safetensors") as caught:
        run_cls(tuning=folder)
    one_line(caught)
    with pytest.raises(InputError, match=r"no adapter_model\.safetensors") as caught:
        run_merge(folder)
    one_line(caught)


@pytest.mark.parametrize("with_pickle", [True, False])
def test_an_adapter_is_no_model(adapter, run_cls, marker, with_pickle):
    folder = adapter()
    if with_pickle:  # transformers would take it in spite of use_safetensors
        (folder / "adapter_model.safetensors").unlink()
        poison(folder / "adapter_model.bin", marker)
    with pytest.raises(InputError, match=r"is an adapter: give its base .* as --tuning") as caught:
        run_cls(model_name_or_path=folder)
    one_line(caught)


def test_an_adapter_imports_nothing(adapter, checkpoint, tmp_path, monkeypatch, marker):
    (tmp_path / "evil_module.py").write_text(f"import os; os.mkdir({str(marker)!r})")
    monkeypatch.syspath_prepend(tmp_path)
    evil = {"base_model_class": "Evil", "parent_library": "evil_module"}
    folder = adapter(auto_mapping=evil, custom_modules={"Linear": "evil_module.Evil"}, modules_to_save=["classifier"])
    with pytest.raises(InputError, match="lora has no field 'custom_modules'"):
        load_adapter(plain(checkpoint), str(folder))
    load_adapter(plain(checkpoint), str(adapter(auto_mapping=evil, modules_to_save=["classifier"])))
    check_adapters([str(folder)], checkpoint, sorted(TOPICS))
    with pytest.raises(InputError, match="sets megatron_config, which leads outside") as caught:
        load_adapter(plain(checkpoint), str(adapter(megatron_config={"x": 1}, megatron_core="evil_module")))
    one_line(caught)
    assert "evil_module" not in sys.modules


def test_a_prompt_reads_no_pickle(adapter, checkpoint, tmp_path, marker):
    poison(tmp_path / "evil.bin", marker)
    config = PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=2, token_dim=32, num_layers=2)
    changes = {"peft_type": "MULTITASK_PROMPT_TUNING", "num_transformer_submodules": 1}
    changes |= {"num_attention_heads": 2, "prompt_tuning_init": "EXACT_SOURCE_TASK"}
    folder = adapter(config, **changes, prompt_tuning_init_state_dict_path=str(tmp_path / "evil.bin"))
    with pytest.raises(InputError, match="sets prompt_tuning_init_state_dict_path, which leads outside"):
        load_adapter(plain(checkpoint), str(folder))


# Code in a model


@pytest.fixture
def remote_code(checkpoint, tmp_path, monkeypatch):
    """A checkpoint that brings its own classes, whose module makes a folder."""
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr("builtins.input", lambda *prompt: pytest.fail("asked on stdin"))

    def make(marker, model=True, tokenizer=True):
        folder = Path(shutil.copytree(checkpoint, tmp_path / "remote"))
        (folder / "modeling_x.py").write_text(
            f"import os\nos.makedirs({str(marker)!r}, exist_ok=True)\n"
            "from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast\n"
            'class XConfig(BertConfig):\n    model_type = "x-custom"\n'
            "class XModel(BertForSequenceClassification):\n    config_class = XConfig\n"
            "class XTokenizer(PreTrainedTokenizerFast):\n    pass\n"
        )
        if model:
            path = folder / "config.json"
            classes = {"AutoConfig": "modeling_x.XConfig", "AutoModelForSequenceClassification": "modeling_x.XModel"}
            path.write_text(json.dumps(json.loads(path.read_text()) | {"model_type": "x-custom", "auto_map": classes}))
        if tokenizer:
            path = folder / "tokenizer_config.json"
            changes = {"tokenizer_class": "XTokenizer", "auto_map": {"AutoTokenizer": [None, "modeling_x.XTokenizer"]}}
            path.write_text(json.dumps(json.loads(path.read_text()) | changes))
        return str(folder)

    return make


@pytest.mark.parametrize("with_tokenizer", [True, False])
def test_the_code_of_a_model_runs_only_when_the_command_line_says_so(remote_code, run_cls, marker, with_tokenizer):
    folder = remote_code(marker, tokenizer=with_tokenizer)
    with pytest.raises(InputError, match="custom code") as caught:
        run_cls(model_name_or_path=folder)
    one_line(caught)


def test_a_known_tokenizer_is_loaded_without_the_code_that_it_brings(remote_code, marker):
    assert len(load_tokenizer(ModelArguments(model_name_or_path=remote_code(marker, model=False)))) > 10


def test_the_command_line_can_say_so(remote_code, run_cls, tmp_path):
    folder = remote_code(tmp_path / "ran")
    run_cls(model_name_or_path=folder, trust_remote_code="true", max_steps=1, eval_strategy="no", save_strategy="no",
            load_best_model_at_end="false")  # fmt: skip
    assert (tmp_path / "ran").is_dir()


def test_what_is_loaded_without_a_word_on_trust_is_refused_too(remote_code, adapter, checkpoint, marker):
    folder = remote_code(marker)
    with pytest.raises(ValueError, match="custom code"):
        AutoTokenizer.from_pretrained(folder)  # as PEFT calls it
    config = PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=2, token_dim=32, num_layers=2)
    changes = {"prompt_tuning_init": "TEXT", "prompt_tuning_init_text": "the goal", "inference_mode": False}
    changes |= {"tokenizer_name_or_path": folder, "tokenizer_kwargs": {"trust_remote_code": True}}
    with pytest.raises(InputError) as caught:
        load_adapter(plain(checkpoint), str(adapter(config, **changes)))
    one_line(caught)


def test_the_folder_of_an_adapter_brings_no_code(remote_code, adapter, checkpoint, marker):
    folder = adapter()
    shutil.copy(Path(remote_code(marker)) / "config.json", folder / "config.json")
    shutil.copy(folder.parent / "remote" / "modeling_x.py", folder)
    with pytest.raises((InputError, ValueError), match="custom code"):
        check_adapters([str(folder)], checkpoint, sorted(TOPICS))


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation"])
def test_a_config_chooses_no_kernel_of_the_hub(checkpoint, tokenizer, tmp_path, key):
    folder = Path(shutil.copytree(checkpoint, tmp_path / "kernel"))
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: "stranger/kernel"}))
    model_args = ModelArguments(model_name_or_path=str(folder))
    with pytest.raises(InputError, match=r"asks for code of the Hub \(stranger/kernel\)") as caught:
        load_model(AutoModelForSequenceClassification, model_args, tokenizer)
    one_line(caught)


# Data and configurations


def test_a_script_of_a_data_set_is_not_run(tmp_path, marker):
    folder = tmp_path / "scripted"
    folder.mkdir()
    (folder / "scripted.py").write_text(f"import os; os.mkdir({str(marker)!r})")
    with pytest.raises(InputError, match="no train file") as caught:
        load_splits(DatasetArguments(dataset_name=str(folder)), ["text"], "label")
    one_line(caught)
    with pytest.raises(InputError, match=r"cannot read \.py"):
        load_splits(DatasetArguments(dataset_name=str(folder / "scripted.py")), ["text"], "label")
    write_csv(folder / "train.csv", topic_rows(64, seed=0))
    splits, _ = load_splits(DatasetArguments(dataset_name=str(folder)), ["text"], "label")
    assert sum(len(split) for split in splits.values()) == 64


@pytest.mark.parametrize("suffix", ["zip", "tar", "tar.gz", "tgz", "gz", "bz2", "xz", "7z", "pkl", "pt", "npy"])
def test_the_name_of_an_archive_or_pickle_is_no_data_file(tmp_path, marker, suffix):
    path = tmp_path / f"train.csv.{suffix}"
    poison(path, marker)
    with pytest.raises(InputError, match=f"cannot read .{suffix.split('.')[-1]}; use") as caught:
        read_rows(path, ["text"])
    one_line(caught)


def archives(folder) -> dict[str, bytes]:
    """Return a data file packed in every way, by kind; the archives would unpack beside their folder."""
    text = b"text,label\nthe goal,sports\n" * 50
    packed = {"gzip": gzip.compress(text), "bzip2": bz2.compress(text), "xz": lzma.compress(text)}
    with zipfile.ZipFile(folder / "a", "w") as archive:
        archive.writestr("../escaped.csv", text)
    packed["zip"] = (folder / "a").read_bytes()
    with tarfile.open(folder / "b", "w") as archive:
        entry = tarfile.TarInfo("../escaped.csv")
        entry.size = len(text)
        archive.addfile(entry, io.BytesIO(text))
    packed["tar"] = (folder / "b").read_bytes()
    poison(folder / "c", folder / "code-ran")
    return packed | {"torch.save": (folder / "c").read_bytes()}


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_an_archive_under_the_name_of_a_data_file_is_not_unpacked(tmp_path, marker, suffix):
    folder = tmp_path / "data"
    folder.mkdir()
    path = folder / f"train{suffix}"
    for content in (packed := archives(tmp_path)).values():
        path.write_bytes(content)
        reads = [partial(read_rows, path, ["text"])]
        reads += [lambda: next(stream_documents(path, "text"))] * (suffix in (".txt", ".jsonl", ".ndjson", ".parquet"))
        for read in reads:
            with pytest.raises(InputError, match="is an archive, or compressed, and nothing is unpacked") as caught:
                read()
            one_line(caught)
    assert len(packed) == 6
    assert not (tmp_path / "escaped.csv").exists()


def test_a_text_that_begins_like_an_archive_is_none(tmp_path):
    (tmp_path / "train.txt").write_text("BZh is no word\nPK neither, nor 7z\nustar\n")
    assert len(read_rows(tmp_path / "train.txt", ["text"])) == 3


@pytest.mark.parametrize("name", ["../outside/data-00000-of-00001.arrow", "/etc/passwd", "..", "a\\..\\b.arrow"])
def test_a_saved_data_set_is_read_from_its_own_folder(tmp_path, name):
    saved = DatasetDict(train=Dataset.from_list(topic_rows(64, seed=0)))
    saved.save_to_disk(tmp_path / "whole")
    saved["train"].save_to_disk(tmp_path / "single")
    saved["train"].save_to_disk(tmp_path / "outside")
    for folder, path in (("whole", "whole/train/state.json"), ("single", "single/state.json")):
        arguments = DatasetArguments(dataset_name=str(tmp_path / folder))
        load_splits(arguments, ["text"], "label")
        state = json.loads((tmp_path / path).read_text())
        state["_data_files"][0]["filename"] = name
        (tmp_path / path).write_text(json.dumps(state))
        with pytest.raises(InputError, match="which is not in its folder") as caught:
            load_splits(arguments, ["text"], "label")
        one_line(caught)
    (tmp_path / "whole" / "dataset_dict.json").write_text(json.dumps({"splits": ["train", name]}))
    with pytest.raises(InputError, match=r"dataset_dict\.json names"):
        load_splits(DatasetArguments(dataset_name=str(tmp_path / "whole")), ["text"], "label")


BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 12)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "train_file: !!python/object/apply:os.mkdir [{marker}]\n",
            r"run\.yaml:1: .*tag '\S*python/object/apply:os\.mkdir'",
        ),
        ("tuning_kwargs: !!python/object/apply:os.mkdir [{marker}]\n", r"tag '\S*python/object/apply:os"),
        ("tuning_kwargs: [!!python/name:os.system '']\n", r"tag '\S*python/name:os"),
        ("train_file: !evil {marker}\n", "tag '!evil'"),
        (BOMB, "unknown key 'a0'"),
        (BOMB.replace("a11:", "tuning_kwargs:"), "unknown key 'a0'"),
        (f"tuning_kwargs: {'[' * 5000}\n", "nested too deeply"),
        ("tuning_kwargs: &a [*a]\n", "must be a value or a list of values"),
        ("? &a [x, x]\n: 1\n? [*a, *a]\n: 2\n", "unknown key 'a list or mapping'"),
        ("trust_remote_code: true\n", "run.yaml: trust_remote_code runs the code of others; give it on the command"),
        ("hub_token: hf_secret\n", "a token is never read from a file"),
        ("hub_token: [hf_secret]\n", "a token is never read from a file"),
        ("hf_token: hf_secret\n", "unknown key 'hf_token'"),
        ("learning_rate: 1e-3\nhub_token: 'hf_secret\n", r"run\.yaml:\d: not valid YAML"),
        ("learning_rate: 1e-3\nhub_token: hf_secret: x\n", r"run\.yaml:2: not valid YAML"),
    ],
)
def test_a_configuration_runs_nothing_and_shows_no_secret(run_cls, tmp_path, capsys, marker, text, message):
    path = tmp_path / "run.yaml"
    path.write_text(text.replace("{marker}", str(marker)))
    with pytest.raises(SystemExit) as stop:
        run_cls("--config", str(path))
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert re.search(message, error)
    assert "hf_secret" not in error


def test_a_bomb_behind_a_known_key_is_not_unfolded(run_cls, tmp_path, capsys):
    path = tmp_path / "run.yaml"
    nested = "[x]"
    for name in "abcdefghij":
        nested = f"[&{name} {nested}{f', *{name}' * 9}]"
    for text in (f"tuning_kwargs: {nested}\n", f"? {nested}\n: 1\n"):
        path.write_text(text)
        start = time.perf_counter()
        with pytest.raises(SystemExit):
            run_cls("--config", str(path))
        assert time.perf_counter() - start < 10
        assert len(capsys.readouterr().err) < 1000


def test_who_trusts_on_the_command_line_may_repeat_the_run_from_its_configuration(finetune_cls, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("trust_remote_code: true\n")
    types = (finetune_cls.ModelArguments, finetune_cls.TrainingArguments)
    argv = ["--config", str(path), "--trust_remote_code", "true", "--use_cpu", "true"]
    assert parse_args(types, {}, argv)[0].trust_remote_code
    path.write_text("trust_remote_code: false\n")
    assert not parse_args(types, {}, argv[:2])[0].trust_remote_code


@pytest.mark.parametrize("value", ["!!python/object/apply:os.mkdir [MARKER]", "[" * 5000, "{a: [}"])
def test_a_field_of_a_method_runs_nothing(marker, value):
    with pytest.raises(InputError) as caught:
        parse_kwargs("lora", LoraConfig, [f"target_modules={value.replace('MARKER', str(marker))}"])
    one_line(caught)


# Secrets

SECRETS = {
    name: f"hf_Sentinel{name.title().replace('_', '')}0123456789"
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "MY_PASSWORD")
}
LOGIN = "hf_SentinelOfTheLoginFile0123456789"


def files_with(secrets, folder: Path) -> tuple[list[str], int]:
    """Return the files that hold one of the secrets, in a member of a zip file too, and how many were searched."""
    found, searched = [], 0
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        contents = [path.read_bytes(), str(path.relative_to(folder)).encode()]
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                contents += [archive.read(name) for name in archive.namelist()]
        searched += 1
        if any(secret.encode(encoding) in content for secret in secrets for content in contents
               for encoding in ("utf-8", "utf-16-le")):  # fmt: skip
            found.append(str(path.relative_to(folder)))
    return found, searched


def test_the_search_finds_a_secret(tmp_path):
    (tmp_path / "plain.txt").write_text(f"token={LOGIN}")
    with zipfile.ZipFile(tmp_path / "packed.bin", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("data.pkl", f"{LOGIN}")
    torch.save({"token": LOGIN}, tmp_path / "saved.bin")
    (tmp_path / "clean.txt").write_text("nothing")
    assert files_with([LOGIN], tmp_path) == (["packed.bin", "plain.txt", "saved.bin"], 4)


@pytest.fixture(scope="module")
def runs(finetune_cls, checkpoint, topics, corpus, tmp_path_factory):
    """Folders of finished runs of the recipes, with secrets in the environment and in the login's file."""
    folder = tmp_path_factory.mktemp("runs")
    common = ["--bf16", "false", "--use_cpu", "true", "--disable_tqdm", "true", "--per_device_train_batch_size", "32"]
    common += ["--max_length", "32", "--num_train_epochs", "2", "--save_total_limit", "5"]
    rows = [token for split, path in topics.items() for token in (f"--{split}_file", path)]
    text = [token for split, path in corpus.items() for token in (f"--{split}_file", path)]
    model = ["--model_name_or_path", checkpoint]
    (folder / "login").write_text(LOGIN)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in SECRETS.items():
            patch.setenv(name, value)
        patch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(folder / "login"))
        assert huggingface_hub.get_token() == SECRETS["HF_TOKEN"]
        finetune_cls.main([*model, *common, *rows, "--output_dir", str(folder / "full")])
        finetune_cls.main([*model, *common, *rows, *LORA, "--output_dir", str(folder / "lora")])
        load_recipe("pretrain_mlm").main([*model, *common, *text, "--output_dir", str(folder / "mlm")])
        argv = [*model, *text, "--min_count", "2", "--output_dir", str(folder / "words")]
        words = load_recipe("train_tokenizer")
        with patch.context() as inner:
            inner.setattr(words, "keep_word", lambda word: len(word) > 2)
            words.main([*argv, "--algorithm", "wordpiece", "--vocab_size", "60"])
        argv = [*model, *common[:6], *rows, "--adapters", str(folder / "lora"), "--output_dir", str(folder / "merged")]
        load_recipe("merge_adapters").main([*argv, "--max_length", "32"])
    return folder


def test_no_file_of_a_run_holds_a_secret(runs):
    names = ["full", "lora", "merged", "mlm", "words"]
    assert sorted(path.name for path in runs.iterdir() if path.is_dir()) == names
    for name in names:
        assert (runs / name / "results.json").exists()
        found, searched = files_with([*SECRETS.values(), LOGIN], runs / name)
        assert found == []
        assert searched >= (4 if name == "words" else 9)


def test_a_token_on_the_command_line_is_refused_before_it_is_written(run_cls, tmp_path):
    with pytest.raises(InputError, match="use `hf auth login`") as caught:
        run_cls(hub_token=LOGIN)
    assert LOGIN not in one_line(caught)
    assert not (tmp_path / "run").exists() or files_with([LOGIN], tmp_path / "run")[0] == []


# Going on from a checkpoint


@pytest.fixture
def interrupted(runs, tmp_path):
    """A copy of the checkpoint of the first of two epochs, and the options with which the run goes on from it."""
    old = min((runs / "full").glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    folder = Path(shutil.copytree(old, tmp_path / "old" / old.name))
    options = {"num_train_epochs": 2, "per_device_train_batch_size": 32, "save_total_limit": 5, "learning_rate": 1e-4}
    return folder, options | {"resume_from_checkpoint": folder}


def reseal(folder):
    """Seal what was put into a checkpoint: a manifest proves that nothing has changed, not who made it."""
    run = read_manifest(folder)["run"]
    (folder / MANIFEST).unlink()
    seal_checkpoint(folder, run)


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_a_run_does_not_go_on_from_a_pickle_that_is_code(interrupted, run_cls, marker, name):
    folder, options = interrupted
    assert (folder / name).exists()
    poison(folder / name, marker)
    with pytest.raises(InputError, match=rf"{name} has (changed since it was saved|[\d,]+ bytes instead of)"):
        run_cls(**options)
    reseal(folder)
    with pytest.raises(InputError, match="a file holds more than tensors, and was not loaded"):
        run_cls(**options)


@pytest.mark.parametrize("name", ["scaler.pt", "training_args.bin", "pytorch_model.bin"])
def test_a_pickle_that_a_run_does_not_need_is_never_run(interrupted, run_cls, marker, name):
    folder, options = interrupted
    poison(folder / name, marker)
    with pytest.raises(InputError, match=f"{name} was not saved with it"):
        run_cls(**options)
    reseal(folder)
    with suppress(InputError, pickle.UnpicklingError):
        run_cls(**options)


def test_a_checkpoint_whose_weights_are_a_pickle_is_not_gone_on_from(interrupted, run_cls, marker):
    folder, options = interrupted
    (folder / "model.safetensors").unlink()
    poison(folder / "pytorch_model.bin", marker)
    reseal(folder)
    with pytest.raises((InputError, pickle.UnpicklingError)):
        run_cls(**options)


# What is pushed


def test_no_pickle_no_data_and_no_link_is_on_the_list(runs, tmp_path):
    folder = Path(shutil.copytree(runs / "full", tmp_path / "run"))
    wanted = pushed_files(folder)
    assert {"README.md", "model.safetensors", "config.json", "results.json", "tokenizer.json"} <= {*wanted}
    more = [".env", ".git/config", ".netrc", "id_rsa", "token", "train.csv", "predictions/more.jsonl", "notes.md",
            "pytorch_model.bin", "training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth", "model.pkl",
            "tf_model.h5", "model.ckpt", "model.onnx", "vocab.pkl", "plots/plot.pkl", "plots/deep/a.png",
            "modeling_x.py", "config.json.bak", "generator/optimizer.pt", "wandb/run/x.log", "core", "run.tar.gz",
            "checkpoint-99/model.safetensors", "old/README.md"]  # fmt: skip
    for name in more:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(pickle.dumps(LOGIN))
    (folder / "link.txt").symlink_to("/etc/passwd")
    (folder / "checkpoint-7").symlink_to(runs / "lora")
    assert pushed_files(folder) == wanted
    assert not [name for name in wanted if name.endswith((".bin", ".pt", ".pth", ".pkl"))]
    for name in wanted:
        assert not zipfile.is_zipfile(folder / name)
        assert not (folder / name).read_bytes().startswith(b"\x80"), "how a pickle begins"


@pytest.mark.parametrize("name", ["plots/x.png", "results.json", "model.safetensors", "plots", "generator"])
def test_a_link_is_not_followed_to_the_hub(tmp_path, name):
    folder, secret = tmp_path / "run", tmp_path / "secret"
    (secret / "deep").mkdir(parents=True)
    for kind in ("id_rsa", "deep/x.png", "deep/model.safetensors"):
        (secret / kind).write_text(LOGIN)
    (folder / name).parent.mkdir(parents=True)
    (folder / name).symlink_to(secret / ("id_rsa" if "." in name else "deep"))
    with pytest.raises(PushError, match="is a link, and could lead to anything; nothing was pushed") as caught:
        pushed_files(folder)
    one_line(caught)


def test_the_run_itself_may_lie_behind_a_link(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "config.json").write_text("{}")
    (tmp_path / "run").symlink_to(tmp_path / "disk")
    assert pushed_files(tmp_path / "run") == ["config.json"]


# The real thing, as a command


def command(recipe, *flags, home, **kwargs):
    """Run a recipe as its own process with a clean environment, and return it when it has ended."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    environment |= {"HF_HOME": str(home), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    flags = [*map(str, flags), "--bf16", "false", "--use_cpu", "true", "--disable_tqdm", "true"]
    environment |= kwargs.pop("environment", {})
    kwargs = {"capture_output": True, "text": True, "timeout": 120} | kwargs
    recipe = str(ROOT / "recipes" / f"{recipe}.py")
    return subprocess.run([sys.executable, recipe, *flags], env=environment, check=False, **kwargs)


def small_run(checkpoint, topics, output_dir):
    files = [token for split, path in topics.items() for token in (f"--{split}_file", path)]
    flags = ["--model_name_or_path", checkpoint, "--output_dir", output_dir, "--max_length", 32, "--max_steps", 2]
    return [*flags, "--eval_strategy", "no", "--save_strategy", "no", "--load_best_model_at_end", "false", *files]


@pytest.mark.slow
@pytest.mark.parametrize("stdin", ["closed", "silent"])
def test_nobody_is_asked_on_stdin(remote_code, topics, tmp_path, marker, stdin):
    read, write = os.pipe()
    kwargs = {"stdin": read} if stdin == "silent" else {"preexec_fn": lambda: os.close(0)}
    try:
        done = command(
            "finetune_cls", *small_run(remote_code(marker), topics, tmp_path / "run"), home=tmp_path, **kwargs
        )
    finally:
        os.close(read)
        os.close(write)
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1
    assert "custom code" in done.stderr


@pytest.mark.slow
def test_a_command_leaves_no_secret_anywhere_on_the_disk(checkpoint, topics, tmp_path):
    disk = tmp_path / "disk"
    for name in ("home", "temporary", "run"):
        (disk / name).mkdir(parents=True)
    (tmp_path / "login").write_text(LOGIN)
    environment = SECRETS | {"HF_TOKEN_PATH": str(tmp_path / "login"), "HOME": str(disk / "home")}
    environment |= {"TMPDIR": str(disk / "temporary"), "XDG_CACHE_HOME": str(disk / "home" / ".cache")}
    flags = small_run(checkpoint, topics, disk / "run")
    flags[flags.index("--save_strategy") + 1] = "steps"
    done = command("finetune_cls", *flags, "--save_steps", 1, home=disk / "home" / "hf", environment=environment)
    assert done.returncode == 0, done.stderr
    found, searched = files_with([*SECRETS.values(), LOGIN], disk)
    assert found == []
    assert searched > 20
    assert not [secret for secret in (*SECRETS.values(), LOGIN) if secret in done.stdout + done.stderr]


# The code itself

MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "pty", "code", "codeop"}
BUILTINS = {"eval", "exec", "compile", "input", "__import__", "breakpoint"}
CALLS = {
    "torch.load", "os.system", "os.popen", "numpy.load", "np.load", "yaml.load", "yaml.load_all", "yaml.full_load",
    "yaml.unsafe_load", "yaml.full_load_all", "yaml.unsafe_load_all", "importlib.import_module",
    "shutil.unpack_archive",
    "tarfile.open", "zipfile.ZipFile", "evaluate.load", "torch.hub.load", "runpy.run_path", "subprocess.getoutput",
}  # fmt: skip
KEYWORDS = {("shell", True), ("allow_pickle", True), ("weights_only", False), ("trust_remote_code", True),
            ("use_safetensors", False)}  # fmt: skip


HARMLESS = {"pickle.UnpicklingError"}  # the refusal


def dangerous(source: str) -> list[str]:
    """Return what in some code could run code that comes as data."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.split(".")[0] in MODULES]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name for name in names if name not in HARMLESS]
            found += [name for name in names if name.split(".")[0] in MODULES or name in CALLS]
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            found += [name] if name in CALLS or name in BUILTINS else []
            values = {(keyword.arg, getattr(keyword.value, "value", None)) for keyword in node.keywords}
            found += [f"{name}({key}={value})" for key, value in values & KEYWORDS]
            if name == "yaml.compose" and "Loader=yaml.SafeLoader" not in ast.unparse(node):
                found.append("yaml.compose")
    return found


def test_no_code_of_ours_opens_a_door():
    paths = [path for folder in ("ptft_recipes", "recipes") for path in sorted((ROOT / folder).rglob("*.py"))]
    assert len(paths) >= 49
    assert {str(path): found for path in paths if (found := dangerous(path.read_text()))} == {}


@pytest.mark.parametrize("source", [
    "torch.load(path)", "import pickle", "from pickle import loads", "import dill as d", "yaml.load(text)", "eval(x)",
    "exec(x)", "os.system(x)", "from os import system", "subprocess.run(x, shell=True)", "input()", "np.load(path)",
    "f(use_safetensors=False)", "yaml.compose(text)", "AutoModel.from_pretrained(x, trust_remote_code=True)",
])  # fmt: skip
def test_the_guard_sees_a_door(source):
    assert dangerous(source)
