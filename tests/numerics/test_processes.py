"""The same rows on 1, 2 and 4 processes: the same losses, weights and scores, with batches that cannot be shared out.

21 rows in batches of 8 leave 5 for the last one, of which 4 processes have 2, 2, 1 and none.
`python -m pytest -s -m slow tests/numerics/test_processes.py` prints the greatest differences.
"""

import json
from pathlib import Path

import pytest
from conftest import (
    TOPICS,
    pair_rows,
    prompt_rows,
    question_rows,
    tagged_rows,
    topic_rows,
    write_conll,
    write_csv,
    write_jsonl,
)
from numerics.ranks import run_ranks
from safetensors.torch import load_file

BATCH, ROWS = 8, {"train": 21, "validation": 13, "test": 11}
COMMON = [
    "--num_train_epochs", "2", "--logging_steps", "1", "--logging_strategy", "steps", "--eval_strategy", "epoch",
    "--save_strategy", "epoch", "--learning_rate", "5e-3", "--bf16", "false", "--use_cpu", "true",
    "--disable_tqdm", "true",
    # Some gradients are 0 but for rounding, those of the keys' biases among them; Adam would make steps of them.
    "--adam_epsilon", "1e-6",
]  # fmt: skip
RANDOM, LENGTH = ["--train_sampling_strategy", "random"], ["--max_length", "32"]
PAIR_LENGTHS = ["--max_source_length", "16", "--max_target_length", "12"]
SUBJECTS = {
    "classification": ("finetune_cls", "bert", "topics", LENGTH),
    "masked language modelling": ("pretrain_mlm", "bert", "corpus", [*LENGTH, "--mlm_probability_end", "0.3"]),
    "LoRA": ("finetune_cls", "bert", "topics", [*LENGTH, *RANDOM, "--tuning", "lora"]),
    "sequence to sequence": ("finetune_seq2seq", "bart", "pairs", PAIR_LENGTHS),
    "accumulation": ("finetune_cls", "bert", "topics", [*LENGTH, "--gradient_accumulation_steps", "2"]),
    "global batch": ("finetune_cls", "bert", "topics", [*LENGTH, "--global_batch_size", str(BATCH)]),
    "regression": ("finetune_cls", "bert", "numbers", [*LENGTH, "--metric_for_best_model", "mse"]),
    "several labels": ("finetune_cls", "bert", "sets", [*LENGTH, "--label_separator", "|"]),
    "token classification": ("finetune_token_cls", "bert", "tagged", ["--max_length", "16", "--stride", "4"]),
    "question answering": ("finetune_qa", "bert", "questions", [*LENGTH, "--stride", "8"]),
    "mlm, mixed": ("pretrain_mlm", "bert", "corpus", [*LENGTH, "--mix", "GENERAL=0.3"]),
    "mlm, streamed": ("pretrain_mlm", "bert", "corpus", [*LENGTH, "--streaming", "true"]),
    "completions": ("finetune_clm", "llama", "prompts", ["--max_length", "48", "--max_new_tokens", "6"]),
    "next token": ("pretrain_clm", "llama", "corpus", LENGTH),
    "replaced tokens": ("pretrain_rtd", "electra", "corpus", [*LENGTH, "--generator_size", "0.5"]),
    "sentence order": ("pretrain_sentences", "bert", "corpus", LENGTH),
    "gap filling": ("pretrain_span", "t5", "corpus", LENGTH),
}  # fmt: skip
FEW = ["classification", "masked language modelling", "global batch"]
# Fewer rows than 4 processes, split by split; what is not named has as many as above.
EDGES = {
    "3 training rows": ("classification", {"train": 3}),
    "2 validation rows": ("classification", {"validation": 2}),
    "1 test row": ("classification", {"test": 1}),
    "3 pairs of each": ("sequence to sequence", {"train": 3, "validation": 3, "test": 3}),
    "3 documents of each": ("masked language modelling", {"train": 3, "validation": 2, "test": 1}),
    "3 prompts of each": ("completions", {"train": 3, "validation": 2, "test": 1}),
}


def make(kind: str, split: str, count: int, folder: Path) -> str:
    """Write so many rows of a kind, and return their file."""
    seed = list(ROWS).index(split)
    drawn = topic_rows(count + 20, seed)
    firsts = [next(row for row in drawn if row["label"] == label) for label in TOPICS]
    topics = [*firsts, *(row for row in drawn if row not in firsts)][:count]  # also three rows have all labels
    if kind == "topics":
        return write_csv(folder / f"{split}.csv", topics)
    if kind == "numbers":
        return write_csv(folder / f"{split}.csv", [row | {"label": f"{len(row['text']) / 10:.2f}"} for row in topics])
    if kind == "sets":
        both = (row | {"label": row["label"] + "|the" * ("the" in row["text"].split())} for row in topics)
        return write_csv(folder / f"{split}.csv", list(both))
    if kind == "prompts":
        return write_csv(folder / f"{split}.csv", prompt_rows(count, seed))
    if kind == "tagged":
        return write_conll(folder / f"{split}.conll", tagged_rows(count, seed))
    if kind == "corpus":
        documents = ("\n".join(r["text"] for r in topic_rows(2 + i % 4, 100 * seed + i)) for i in range(count))
        path = folder / f"{split}.txt"
        path.write_text("\n\n".join(documents))
        return str(path)
    rows = {"pairs": pair_rows, "questions": question_rows}[kind](count, seed)
    return write_jsonl(folder / f"{split}.jsonl", rows)


class Runs:
    """Runs by the number of processes and by name: each number of processes is started once for all of its runs."""

    def __init__(self, folder: Path, models: dict[str, str]):
        self.folder, self.models = folder, models
        self.data: dict[tuple, list[str]] = {}
        (folder / "general").mkdir()
        self.general = make("corpus", "validation", 30, folder / "general")

    def files(self, kind: str, rows: dict[str, int]) -> list[str]:
        key = kind, *rows.values()
        if key not in self.data:
            folder = self.folder / "-".join(map(str, key))
            folder.mkdir()
            self.data[key] = [
                part for split, count in rows.items() for part in (f"--{split}_file", make(kind, split, count, folder))
            ]
        return self.data[key]

    def output_dir(self, name: str, world: int) -> Path:
        return self.folder / f"{name} {world}".replace(" ", "_").replace(",", "")

    def start(self, names: list[str], world: int) -> None:
        jobs = []
        for name in names:
            subject, rows = EDGES.get(name, (name, {}))
            recipe, family, kind, flags = SUBJECTS[subject]
            flags = [flag.replace("GENERAL", str(self.general)) for flag in flags]
            argv = ["--model_name_or_path", self.models[family], *COMMON, *flags, *self.files(kind, ROWS | rows)]
            accumulation = 2 if "--gradient_accumulation_steps" in flags else 1
            # A global batch is split by the recipe: 2 x 4 rows of one process, 4 of each of two, 2 of each of four.
            batch = "4" if "--global_batch_size" in flags else str(BATCH // accumulation // world)
            argv += ["--per_device_train_batch_size", batch, "--per_device_eval_batch_size", batch]
            jobs.append((recipe, [*argv, "--output_dir", str(self.output_dir(name, world))]))
        run_ranks(world, jobs, self.folder, names[0])

    def end(self, name: str, world: int) -> dict:
        """Return what a run has left."""
        folder = self.output_dir(name, world)
        last = max(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
        history = json.loads((last / "trainer_state.json").read_text())["log_history"]
        written = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
        weights = {
            f"{file.relative_to(folder)}/{key}": value
            for file in [*folder.glob("*.safetensors"), *folder.glob("generator/*.safetensors")]
            for key, value in load_file(file).items()
        }
        return {
            "losses": [entry["loss"] for entry in history if "loss" in entry],
            "norms": [entry["grad_norm"] for entry in history if "loss" in entry],
            "validation": [
                {key: value for key, value in entry.items() if key.startswith("eval_") and "per_second" not in key
                 and key not in ("eval_runtime", "eval_model_preparation_time")}
                for entry in history if "eval_loss" in entry
            ],
            "weights": weights,
            "results": json.loads((folder / "results.json").read_text()),
            "lines": (folder / "predictions" / "test.jsonl").read_text().splitlines(),
            # In a checkpoint every process keeps the state of its own generators.
            "files": sorted(path for path in written if not path.startswith("checkpoint-")),
        }  # fmt: skip


@pytest.fixture(scope="module")
def models(checkpoints, decoders, seq2seq_checkpoints, tmp_path_factory):
    """Checkpoints without dropout, which would be drawn for other rows in every process."""
    found = {}
    sources = checkpoints | decoders | {"bart": seq2seq_checkpoints["bart"]}
    for family in {family for _, family, *_ in SUBJECTS.values()}:
        folder, source = tmp_path_factory.mktemp(family), Path(sources[family])
        for path in source.iterdir():
            if path.name != "config.json":
                (folder / path.name).symlink_to(path)
        config = json.loads((source / "config.json").read_text())
        config |= {name: 0.0 for name, value in config.items() if "drop" in name and isinstance(value, float)}
        (folder / "config.json").write_text(json.dumps(config))
        found[family] = str(folder)
    return found


def wanted(request, fixture: str) -> list[str]:
    """Return the names that the tests which ask for a fixture have."""
    items = [item for item in request.session.items if fixture in item.fixturenames]
    return list(dict.fromkeys(item.callspec.params["name"] for item in items))


@pytest.fixture(scope="module")
def all_runs(models, tmp_path_factory, request):
    """Runs of the subjects that are tested, on 1, 2 and 4 processes."""
    runs = Runs(tmp_path_factory.mktemp("all"), models)
    for world in (1, 2, 4):
        runs.start(wanted(request, "all_runs"), world)
    return runs


@pytest.fixture(scope="module")
def edge_runs(models, tmp_path_factory, request):
    """Runs with few rows, on 1 process and on 4."""
    runs = Runs(tmp_path_factory.mktemp("edges"), models)
    for world in (1, 4):
        runs.start(wanted(request, "edge_runs"), world)
    return runs


def greatest(pairs) -> float:
    """Return the greatest difference, of large numbers the relative one; infinite where one of a pair is nan."""
    different = ((a, b) for a, b in pairs if a != b and not (a != a and b != b))
    return max((float("inf") if a != a or b != b else abs(a - b) / max(1, abs(a)) for a, b in different), default=0.0)


def compare(runs: Runs, name: str, world: int) -> None:
    """Compare a run of several processes with that of one, and print by how much they differ."""
    one, found = runs.end(name, 1), runs.end(name, world)
    assert found["results"]["run"]["processes"] == world
    assert found["files"] == one["files"], "one results.json, one card, one of everything"
    assert found["files"].count("results.json") == found["files"].count("README.md") == 1
    scores, expected = found["results"]["metrics"], one["results"]["metrics"]
    assert {key: score["n"] for key, score in scores.items()} == {key: score["n"] for key, score in expected.items()}
    subject, rows = EDGES.get(name, (name, {}))
    assert len(found["lines"]) == len(one["lines"])
    if SUBJECTS[subject][2] != "corpus":  # whose documents are cut into blocks
        assert len(found["lines"]) == (ROWS | rows)["test"]
    assert len(found["losses"]) == len(one["losses"]) == one["results"]["run"]["steps"]
    assert [sorted(entry) for entry in found["validation"]] == [sorted(entry) for entry in one["validation"]]
    assert found["weights"].keys() == one["weights"].keys()
    differences = {
        "loss": greatest(zip(found["losses"], one["losses"], strict=True)),
        "gradient norm": greatest(zip(found["norms"], one["norms"], strict=True)),
        "validation": greatest(
            (a[key], b[key]) for a, b in zip(found["validation"], one["validation"], strict=True) for key in a
        ),
        "weights": max(
            (value - one["weights"][key]).abs().max().item() for key, value in found["weights"].items()
        ),
        "scores": greatest(
            (a, b) for key in scores
            for a, b in [(scores[key]["value"], expected[key]["value"])]
            if a is not None
        ),
    }  # fmt: skip
    numbers = " | ".join(f"{value:.0e}" for value in differences.values())
    print(f"\n| {name} | {world} | {numbers} | {len(one['losses'])} | {len(one['lines'])} |")
    # Pearson's r of predictions that are almost equal magnifies the rounding.
    limits = {"validation": 1e-3, "scores": 1e-3}
    assert all(value < limits.get(what, 1e-4) for what, value in differences.items()), differences


def test_two_processes_end_as_one_does(models, tmp_path):
    runs = Runs(tmp_path, models)
    for world in (1, 2):
        runs.start(FEW, world)
    for name in FEW:
        compare(runs, name, 2)


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize("name", SUBJECTS)
def test_any_number_of_processes_ends_as_one_does(all_runs, name, world):
    compare(all_runs, name, world)


@pytest.mark.slow
@pytest.mark.parametrize("name", EDGES)
def test_fewer_rows_than_processes(edge_runs, name):
    compare(edge_runs, name, 4)
