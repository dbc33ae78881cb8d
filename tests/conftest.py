"""Tiny tokenizers, checkpoints and data sets, built offline from seeds once per session."""

import atexit
import contextlib
import csv
import importlib.util
import json
import logging
import os
import random
import re
import shutil
import sys
import tempfile
from functools import partial
from pathlib import Path

# Before the Hugging Face libraries read them: no test may reach the network by accident.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["HF_DATASETS_CACHE"] = tempfile.mkdtemp()
# Tiny models are faster on one thread, here and in every process that a test starts; and results do not depend on the
# machine's cores.
os.environ["OMP_NUM_THREADS"] = "1"

import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    PreTrainedTokenizerFast,
)

atexit.register(shutil.rmtree, os.environ["HF_DATASETS_CACHE"], ignore_errors=True)
ROOT = Path(__file__).parents[1]
TOPICS = {
    "sports": ["match", "goal", "team", "coach", "season", "player"],
    "science": ["cell", "theory", "atom", "study", "lab", "gene"],
    "markets": ["stock", "price", "bank", "trade", "profit", "share"],
}
FILLERS = ["the", "a", "of", "and", "new", "old", "big", "small", "one", "two"]
SPECIAL_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
FAMILIES = ("bert", "roberta", "distilbert", "modernbert")
ALL_FAMILIES = (*FAMILIES, "albert", "camembert", "electra", "mpnet")


@pytest.fixture(scope="session")
def tokenizer():
    """A word-level tokenizer whose vocabulary is the words of the tiny data sets."""
    words = [*FILLERS, *(word for topic in TOPICS.values() for word in topic)]
    vocabulary = {token: i for i, token in enumerate([*SPECIAL_TOKENS, *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=64,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )


OTHER_SIZES = {
    "distilbert": {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64, "max_position_embeddings": 64},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64, "bos_token_id": 2, "eos_token_id": 3},
    "opt": {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "ffn_dim": 64,
        "word_embed_proj_dim": 32,
    },
}
LLAMA_LIKE = ("eurobert", "gemma", "gemma2", "llama", "mistral", "qwen2", "qwen3")
MORE_SIZES = {
    "albert": {"embedding_size": 16},
    "electra": {"embedding_size": 16},
    "rembert": {"input_embedding_size": 16, "output_embedding_size": 16},
    **{family: {"num_key_value_heads": 1, "head_dim": 16} for family in LLAMA_LIKE},
}
SPECIAL_IDS = {"bos_token_id": 2, "eos_token_id": 3, "cls_token_id": 2, "sep_token_id": 3, "mask_token_id": 4}


ENCODER_DECODERS = {
    "t5": {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2, "decoder_start_token_id": 0},
    "bart": {
        "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2,
        "decoder_attention_heads": 2, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "max_position_embeddings": 64,
        "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 3, "decoder_start_token_id": 1, "forced_eos_token_id": 1,
    },
}  # fmt: skip


def encoder_decoder_tokenizer(family: str) -> PreTrainedTokenizerFast:
    """Return a word-level tokenizer with the special tokens of T5 (12 sentinels) or BART (a mask token)."""
    words = [*FILLERS, *(word for topic in TOPICS.values() for word in topic), "."]
    vocabulary = {token: i for i, token in enumerate(["<pad>", "</s>", "<unk>", "<s>", "<mask>", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    single = "$A </s>" if family == "t5" else "<s> $A </s>"
    tokenizer.post_processor = processors.TemplateProcessing(single, special_tokens=[("<s>", 3), ("</s>", 1)])
    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    special |= {} if family == "t5" else {"bos_token": "<s>", "mask_token": "<mask>"}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=64, **special)
    if family == "t5":
        fast.add_tokens([f"<extra_id_{number}>" for number in reversed(range(12))], special_tokens=True)
    return fast


def tiny_config(family: str, vocabulary: int):
    """Return a configuration of a model with about 20,000 weights."""
    sizes = OTHER_SIZES.get(family)
    if sizes is None:
        positions = (
            66 if "roberta" in family or family in ("camembert", "mpnet") else 64
        )  # RoBERTa's positions start at 2
        sizes = {**SIZES, "max_position_embeddings": positions, **MORE_SIZES.get(family, {})}
    ids = SPECIAL_IDS if family in ("modernbert", "eurobert") else {}
    return AutoConfig.for_model(family, vocab_size=vocabulary, pad_token_id=0, **sizes, **ids)


SEQ2SEQ_FAMILIES = ("t5", "bart", "marian", "m2m_100")
PAIRS = dict(zip("cat dog house tree sees likes big small the a".split(),  # noqa: SIM905
                 "Katze Hund Haus Baum sieht mag gross klein das ein".split(), strict=True))  # noqa: SIM905  # fmt: skip


def tiny_seq2seq_config(family: str, vocabulary: int):
    """Return a configuration of an encoder-decoder with two layers on each side, for `seq2seq_tokenizer`."""
    ids = {"vocab_size": vocabulary, "pad_token_id": 0, "eos_token_id": 1, "d_model": 32}
    if family == "t5":
        sizes = {"d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2, "decoder_start_token_id": 0}
        return AutoConfig.for_model(family, **ids, **sizes)
    sizes = {
        f"{side}_{name}": value
        for side in ("encoder", "decoder")
        for name, value in {"layers": 2, "attention_heads": 2, "ffn_dim": 64}.items()
    }
    # BART's decoder starts with the end token, Marian's with padding.
    sizes |= {"decoder_start_token_id": 0 if family == "marian" else 1, "max_position_embeddings": 64}
    sizes["init_std"] = 0.1  # so narrow a model finds no alignment from 0.02 on
    return AutoConfig.for_model(family, **ids, **sizes, bos_token_id=None, forced_eos_token_id=None)


@pytest.fixture(scope="session")
def seq2seq_tokenizer():
    """A word-level tokenizer of both sides of the tiny pairs, with an end token behind every text."""
    vocabulary = {token: i for i, token in enumerate(["<pad>", "</s>", "<unk>", *PAIRS, *PAIRS.values()])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=64, pad_token="<pad>", unk_token="<unk>", eos_token="</s>"
    )


@pytest.fixture(scope="session")
def seq2seq_checkpoints(tmp_path_factory, seq2seq_tokenizer):
    """Folders with encoder-decoders, by family."""
    folders = {}
    for family in SEQ2SEQ_FAMILIES:
        torch.manual_seed(0)
        folder = tmp_path_factory.mktemp(family)
        config = tiny_seq2seq_config(family, len(seq2seq_tokenizer))
        AutoModelForSeq2SeqLM.from_config(config).save_pretrained(folder)
        seq2seq_tokenizer.save_pretrained(folder)
        folders[family] = str(folder)
    return folders


def pair_rows(count: int, seed: int) -> list[dict]:
    """Return texts of 2 to 5 words and their translation, word by word."""
    generator = random.Random(seed)
    rows = []
    for _ in range(count):
        words = generator.choices([*PAIRS], k=generator.randint(2, 5))
        rows.append({"source": " ".join(words), "target": " ".join(PAIRS[word] for word in words)})
    return rows


@pytest.fixture(scope="session")
def pairs(tmp_path_factory):
    """JSON lines of translation pairs by split: 256 / 32 / 32."""
    folder, paths = tmp_path_factory.mktemp("pairs"), {}
    for seed, (split, count) in enumerate({"train": 256, "validation": 32, "test": 32}.items()):
        paths[split] = str(folder / f"{split}.jsonl")
        Path(paths[split]).write_text("".join(json.dumps(row) + "\n" for row in pair_rows(count, seed)))
    return paths


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory, tokenizer):
    """Folders with a body without a task head, by family: what a pre-trained encoder looks like."""
    folders = {}
    for family in ALL_FAMILIES:
        torch.manual_seed(0)
        folder = tmp_path_factory.mktemp(family)
        AutoModel.from_config(tiny_config(family, len(tokenizer))).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        folders[family] = str(folder)
    for family in ENCODER_DECODERS:
        torch.manual_seed(0)
        folder = tmp_path_factory.mktemp(family)
        gap_tokenizer = encoder_decoder_tokenizer(family)
        config = AutoConfig.for_model(family, vocab_size=len(gap_tokenizer), **ENCODER_DECODERS[family])
        AutoModelForSeq2SeqLM.from_config(config).save_pretrained(folder)
        gap_tokenizer.save_pretrained(folder)
        folders[family] = str(folder)
    return folders


@pytest.fixture(scope="session")
def checkpoint(checkpoints):
    """The tiny BERT body."""
    return checkpoints["bert"]


CHATML = (
    "{% for message in messages %}<|im_start|> {{ message['role'] }} : {{ message['content'] }} <|im_end|> "
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|> assistant : {% endif %}"
)


@pytest.fixture(scope="session")
def decoders(tmp_path_factory, tokenizer):
    """Folders with tiny decoders and a tokenizer with ChatML, by family: one as SmolLM2 is, and GPT-2."""
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    words = [word for word in tokenizer.get_vocab() if word not in SPECIAL_TOKENS]
    names = [*specials, "[UNK]", *sorted(words), "user", "assistant", "system", ":"]
    backend = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="[UNK]"))
    backend.normalizer, backend.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.WhitespaceSplit()
    ends = {"bos_token": "<|im_start|>", "eos_token": "<|endoftext|>", "unk_token": "[UNK]"}
    fast = PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=64, **ends)
    fast.add_special_tokens({"additional_special_tokens": specials[1:]})
    fast.chat_template = CHATML
    folders = {}
    for family in ("llama", "gpt2"):
        torch.manual_seed(0)
        config = tiny_config(family, len(names))
        config.bos_token_id, config.eos_token_id, config.pad_token_id = 1, 0, None
        folders[family] = str(tmp_path_factory.mktemp(family))
        AutoModelForCausalLM.from_config(config).save_pretrained(folders[family])
        fast.save_pretrained(folders[family])
    return folders


@pytest.fixture
def decoder_tokenizer(decoders):
    """The tokenizer of the tiny decoders."""
    return AutoTokenizer.from_pretrained(decoders["llama"])


def topic_rows(count: int, seed: int) -> list[dict]:
    """Return rows whose label follows from two words of the text: a tiny model learns them in a few epochs."""
    generator = random.Random(seed)
    rows = []
    for _ in range(count):
        label = generator.choice(sorted(TOPICS))
        words = [*generator.choices(TOPICS[label], k=2), *generator.choices(FILLERS, k=generator.randint(2, 10))]
        generator.shuffle(words)
        rows.append({"text": " ".join(words), "label": label})
    return rows


def write_documents(path, count: int, word: str = "word") -> str:
    """Write a corpus of documents that are numbered, and return its path."""
    path.write_text("\n\n".join(f"{word} {i}" for i in range(count)), encoding="utf-8")
    return str(path)


def write_csv(path, rows, **kwargs):
    """Write rows of dicts as CSV."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]), **kwargs)
        writer.writeheader()
        writer.writerows(rows)
    return str(path)


@pytest.fixture(scope="session")
def topics(tmp_path_factory):
    """CSV files of the topic data by split: 256 / 64 / 64 rows."""
    folder = tmp_path_factory.mktemp("topics")
    sizes = {"train": 256, "validation": 64, "test": 64}
    return {
        split: write_csv(folder / f"{split}.csv", topic_rows(size, seed))
        for seed, (split, size) in enumerate(sizes.items())
    }


def tagged_rows(count: int, seed: int) -> list[dict]:
    """Return sentences in which words of one topic are entities of that type, tagged in IOB2.

    Which words begin an entity and which go on is told by the word: a tiny model learns that in a few epochs.
    """
    generator = random.Random(seed)
    rows = []
    for _ in range(count):
        tokens, tags = [], []
        for _ in range(generator.randint(1, 3)):
            fillers = generator.choices(FILLERS, k=generator.randint(1, 4))
            topic = generator.choice(sorted(TOPICS))
            first, others = TOPICS[topic][:3], TOPICS[topic][3:]
            entity = [generator.choice(first), *generator.choices(others, k=generator.randint(0, 2))]
            tokens += [*fillers, *entity]
            tags += [*["O"] * len(fillers), f"B-{topic}", *[f"I-{topic}"] * (len(entity) - 1)]
        rows.append({"tokens": tokens, "tags": tags})
    return rows


def question_rows(count: int, seed: int) -> list[dict]:
    """Return questions in the form of SQuAD 2: where does the context, of fillers otherwise, speak of a topic?

    A quarter of the contexts speak of none, and have no answer. A tiny model learns that in a few epochs.
    """
    generator = random.Random(seed)
    rows = []
    for _ in range(count):
        topic = generator.choice(sorted(TOPICS))
        before, behind = (generator.choices(FILLERS, k=generator.randint(1, 6)) for _ in range(2))
        first, others = TOPICS[topic][1:3], TOPICS[topic][3:]
        answer = [generator.choice(first), *generator.choices(others, k=generator.randint(0, 1))]
        answer *= generator.random() < 0.75
        rows.append({
            "question": f"the {TOPICS[topic][0]} of", "context": " ".join([*before, *answer, *behind]),
            "answers": {"text": [" ".join(answer)] * bool(answer),
                        "answer_start": [len(" ".join([*before, ""]))] * bool(answer)},
        })  # fmt: skip
    return rows


def write_jsonl(path, rows):
    """Write rows of dicts as JSON lines."""
    Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.fixture(scope="session")
def questions(tmp_path_factory):
    """JSON lines of questions by split: 256 / 48 / 48."""
    folder = tmp_path_factory.mktemp("questions")
    sizes = {"train": 256, "validation": 48, "test": 48}
    return {
        split: write_jsonl(folder / f"{split}.jsonl", question_rows(size, seed))
        for seed, (split, size) in enumerate(sizes.items())
    }


def write_conll(path, rows):
    """Write rows with `tokens` and `tags` as a CoNLL file."""
    sentences = ("".join(f"{w}\t{t}\n" for w, t in zip(row["tokens"], row["tags"], strict=True)) for row in rows)
    Path(path).write_text("\n".join(sentences), encoding="utf-8")
    return str(path)


@pytest.fixture(scope="session")
def tagged(tmp_path_factory):
    """CoNLL files of tagged sentences by split: 192 / 48 / 48."""
    folder = tmp_path_factory.mktemp("tagged")
    sizes = {"train": 192, "validation": 48, "test": 48}
    return {
        split: write_conll(folder / f"{split}.conll", tagged_rows(size, seed))
        for seed, (split, size) in enumerate(sizes.items())
    }


def prompt_rows(count: int, seed: int) -> list[dict]:
    """Return prompts of which the completion names the topic of two words: a tiny decoder learns them."""
    names = {"sports": "team", "science": "atom", "markets": "bank"}
    return [{"prompt": row["text"], "completion": f"the {names[row['label']]}"} for row in topic_rows(count, seed)]


@pytest.fixture(scope="session")
def prompts(tmp_path_factory):
    """CSV files of prompts and completions by split: 192 / 32 / 32 rows."""
    folder = tmp_path_factory.mktemp("prompts")
    sizes = {"train": 192, "validation": 32, "test": 32}
    return {
        split: write_csv(folder / f"{split}.csv", prompt_rows(size, seed))
        for seed, (split, size) in enumerate(sizes.items())
    }


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    """Raw text by split: 40 / 8 / 12 documents of 2 to 12 lines, whose words follow from the document's topic."""
    folder = tmp_path_factory.mktemp("corpus")
    paths = {}
    for seed, (split, count) in enumerate({"train": 40, "validation": 8, "test": 12}.items()):
        documents = []
        for i in range(count):
            rows = [row["text"] for row in topic_rows(2 + i % 11, seed=1000 * seed + i)]
            documents.append("\n".join(rows))
        paths[split] = str(folder / f"{split}.txt")
        Path(paths[split]).write_text("\n\n".join(documents), encoding="utf-8")
    return paths


@pytest.fixture
def library_log(caplog, monkeypatch):
    """What the library logs, whose logger a run takes out of pytest's hands."""
    logger = logging.getLogger("ptft_recipes")
    monkeypatch.setattr(logger, "propagate", False)
    caplog.set_level("INFO", "ptft_recipes")
    logger.addHandler(caplog.handler)
    yield caplog
    logger.removeHandler(caplog.handler)


def cut_off(whole: Path, after: int, folder: Path) -> None:
    """Make a copy of a finished run's folder that looks as if the run had been killed some time after a step."""
    shutil.copytree(whole, folder)
    for path in folder.iterdir():
        if path.name.startswith("checkpoint-") and int(path.name.split("-")[1]) > after:
            shutil.rmtree(path)
    for name in ("results.json", "README.md"):
        (folder / name).unlink()


def run_card(folder: Path, base: str | None = None) -> dict:
    """Run the code on the card of a run where a reader has it beside him, and its base model; return its names."""
    card = (folder / "README.md").read_text(encoding="utf-8")
    code = re.search(r"```python\n(.*?)```", card, re.S)[1]
    if base and not (beside := folder.parent / Path(base).name).exists():
        beside.symlink_to(base)
    names: dict = {}
    with contextlib.chdir(folder.parent):
        exec(compile(code, "card", "exec"), names)
    return names


def nothing_written(folder: Path) -> bool:
    """Tell whether a run has stopped before it left anything but its lock and its configuration."""
    return {path.name for path in folder.glob("*")} <= {".lock", "config.yaml"}


def load_recipe(name: str, folder: Path = ROOT / "recipes"):
    """Import a recipe from its file, as `python recipes/<name>.py` would find it."""
    spec = importlib.util.spec_from_file_location(name, folder / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def argument_types(recipe) -> tuple[type, ...]:
    """Return the dataclasses that a recipe fills from its command line; one has no `TrainingArguments` among them."""
    names = ["ModelArguments", "DataArguments", "TuningArguments", "EvaluationArguments"]
    if "output_dir" not in recipe.DataArguments.__annotations__:
        names.append("TrainingArguments")
    return tuple(getattr(recipe, name) for name in names if hasattr(recipe, name))


def runner(recipe, model: str, files: dict[str, str], folder: Path, defaults: list[str]):
    """Return a function that runs a recipe in process on a tiny model and tiny files; flags given later win."""

    def run(*flags, output_dir=folder, data=True, **options):
        argv = ["--model_name_or_path", model, "--output_dir", str(output_dir), "--learning_rate", "5e-3"]
        argv += [
            "--per_device_train_batch_size",
            "8",
            "--bf16",
            "false",
            "--use_cpu",
            "true",
            "--disable_tqdm",
            "true",
        ]
        argv += defaults
        if data:
            argv += [token for split, path in files.items() for token in (f"--{split}_file", path)]
        argv += [token for name, value in options.items() for token in (f"--{name}", str(value))]
        return recipe.main([*argv, *flags])

    return run


@pytest.fixture(scope="session")
def finetune_cls():
    """The recipe as a module."""
    return load_recipe("finetune_cls")


@pytest.fixture
def run_cls(finetune_cls, checkpoint, topics, tmp_path):
    """Run finetune_cls in process on the tiny model and the topic files; flags given later win."""
    return runner(finetune_cls, checkpoint, topics, tmp_path / "run", ["--max_length", "32"])


@pytest.fixture(scope="session")
def finetune_token_cls():
    """The recipe as a module."""
    return load_recipe("finetune_token_cls")


@pytest.fixture
def run_token_cls(finetune_token_cls, checkpoint, tagged, tmp_path):
    """Run finetune_token_cls in process on the tiny model and the tagged sentences; flags given later win."""
    return runner(finetune_token_cls, checkpoint, tagged, tmp_path / "run", ["--max_length", "16", "--stride", "4"])


@pytest.fixture(scope="session")
def finetune_seq2seq():
    """The recipe as a module."""
    return load_recipe("finetune_seq2seq")


@pytest.fixture
def run_seq2seq(finetune_seq2seq, seq2seq_checkpoints, pairs, tmp_path):
    """Run finetune_seq2seq in process on the tiny BART and the tiny pairs; flags given later win."""
    lengths = ["--max_source_length", "16", "--max_target_length", "12", "--label_smoothing_factor", "0"]
    return runner(finetune_seq2seq, seq2seq_checkpoints["bart"], pairs, tmp_path / "run", lengths)


@pytest.fixture(scope="session")
def finetune_qa():
    """The recipe as a module."""
    return load_recipe("finetune_qa")


@pytest.fixture
def run_qa(finetune_qa, checkpoint, questions, tmp_path):
    """Run finetune_qa in process on the tiny model and the tiny questions; flags given later win."""
    return runner(finetune_qa, checkpoint, questions, tmp_path / "run", ["--max_length", "32", "--stride", "8"])


@pytest.fixture(scope="session")
def text_runs(
    finetune_qa,
    finetune_seq2seq,
    checkpoint,
    questions,
    seq2seq_checkpoints,
    pairs,
    decoders,
    prompts,
    tmp_path_factory,
):
    """Return a function that gives a short run by its kind (answers, pairs, completions) and flags, made once each.

    With 40 bootstrap samples and no plots.
    """
    from ptft_recipes import evaluation, reporting

    made: dict = {}
    recipes = {
        "answers": (finetune_qa, checkpoint, questions, ["--max_length", "32", "--stride", "8", "--n_best", "3"]),
        "pairs": (finetune_seq2seq, seq2seq_checkpoints["bart"], pairs, [
            "--max_source_length", "16", "--max_target_length", "12", "--label_smoothing_factor", "0",
            "--generation_kwargs", "num_beams=2", "--source_prefix", "the ", "--num_train_epochs", "2"]),
        "completions": (load_recipe("finetune_clm"), decoders["llama"], prompts, [
            "--max_length", "48", "--max_new_tokens", "6", "--num_beams", "2", "--per_device_eval_batch_size", "64",
            "--tuning", "full", "--learning_rate", "1e-4"]),
    }  # fmt: skip

    def get(kind: str, *flags: str) -> Path:
        if (kind, *flags) not in made:
            folder = tmp_path_factory.mktemp(kind) / "run"
            *parts, options = recipes[kind]
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(evaluation, "bootstrap_intervals", partial(evaluation.bootstrap_intervals, resamples=40))
                patch.setattr(reporting, "_save", lambda figure, path: None)
                runner(*parts, folder, options)("--num_train_epochs", "1", *options, *flags)
            made[(kind, *flags)] = folder
        return made[(kind, *flags)]

    return get


@pytest.fixture(scope="session")
def pretrain_mlm():
    """The recipe as a module."""
    return load_recipe("pretrain_mlm")


@pytest.fixture
def run_mlm(pretrain_mlm, checkpoint, corpus, tmp_path):
    """Run pretrain_mlm in process on the tiny model and the tiny corpus; flags given later win."""
    return runner(pretrain_mlm, checkpoint, corpus, tmp_path / "mlm", ["--max_length", "32"])


@pytest.fixture(scope="session")
def pretrain_rtd():
    """The recipe as a module."""
    return load_recipe("pretrain_rtd")


@pytest.fixture
def run_rtd(pretrain_rtd, checkpoints, corpus, tmp_path):
    """Run pretrain_rtd in process on the tiny ELECTRA and the tiny corpus; flags given later win."""
    return runner(
        pretrain_rtd,
        checkpoints["electra"],
        corpus,
        tmp_path / "rtd",
        ["--max_length", "32", "--generator_size", "0.5"],
    )


@pytest.fixture(scope="session")
def pretrain_sentences():
    """The recipe as a module."""
    return load_recipe("pretrain_sentences")


@pytest.fixture
def run_sentences(pretrain_sentences, checkpoint, corpus, tmp_path):
    """Run pretrain_sentences in process on the tiny model and the tiny corpus; flags given later win."""
    return runner(
        pretrain_sentences,
        checkpoint,
        corpus,
        tmp_path / "sentences",
        ["--max_length", "32", "--learning_rate", "3e-3"],
    )


@pytest.fixture(scope="session")
def pretrain_span():
    """The recipe as a module."""
    return load_recipe("pretrain_span")


@pytest.fixture
def run_span(pretrain_span, checkpoints, corpus, tmp_path):
    """Run pretrain_span in process on the tiny T5 and the tiny corpus; flags given later win."""
    return runner(pretrain_span, checkpoints["t5"], corpus, tmp_path / "span", ["--max_length", "32"])


@pytest.fixture(scope="session")
def subjects(
    checkpoints, seq2seq_checkpoints, decoders, topics, tagged, questions, prompts, pairs, corpus, tmp_path_factory
):
    """Return a function that gives a kind of training by its name, run to its end once per session."""
    from reliability.subjects import Subject

    made = {}

    def get(name: str) -> Subject:
        if name not in made:
            folder = tmp_path_factory.mktemp("subject")
            models = checkpoints | decoders | {"seq2seq": seq2seq_checkpoints["bart"]}
            files = {"topics": topics, "tagged": tagged, "questions": questions, "prompts": prompts, "pairs": pairs}
            made[name] = Subject(name, models, files | {"corpus": corpus}, folder)
        return made[name]

    return get


@pytest.fixture(scope="module")
def without_accelerate(tmp_path_factory):
    """Start the cells of studies by a launcher that, like accelerate's, waits for a child, but imports nothing."""
    from ptft_recipes import launching

    code = "import subprocess, sys; i = next(i for i, word in enumerate(sys.argv) if word.endswith('.py'))\n"
    code += "sys.exit(subprocess.run([sys.executable, *sys.argv[i:]]).returncode and 1)"
    launcher = tmp_path_factory.mktemp("launcher") / "launcher"
    launcher.write_text(code)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launching, "LAUNCH", [sys.executable, str(launcher)])
        yield


@pytest.fixture(scope="session")
def without_dropout(checkpoint, tmp_path_factory):
    """The tiny model without dropout, which fewer rows at once would draw otherwise."""
    folder = tmp_path_factory.mktemp("without_dropout")
    for path in Path(checkpoint).iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    config |= {name: 0.0 for name, value in config.items() if "drop" in name and isinstance(value, float)}
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


@pytest.fixture
def estimates_memory():
    """Ask for it in a test that is about the estimate of memory."""


@pytest.fixture(autouse=True)
def no_estimate(request, monkeypatch):
    """Let tests that watch the passes of a model in this process see those of training only."""
    if "estimates_memory" not in request.fixturenames:
        from ptft_recipes.memory import TellsMemory

        monkeypatch.setattr(TellsMemory, "plan_memory", lambda self: None)
