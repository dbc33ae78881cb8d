"""A Gradio demo of a finished run, in a folder of its own: it starts locally, and as a Space of the Hub."""

import json
import re
import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import SpaceCardData

from ptft_recipes import demo, generation_demo, question_demo
from ptft_recipes.errors import InputError, one_line
from ptft_recipes.outgoing import pushed_files
from ptft_recipes.tag_schemes import BILOU

GRADIO = "6.31.0"  # the version that the demos were tried with
# By what the name of the architecture ends in: that of its Auto class, PEFT's name of the task, the Hub's, and the
# recipe's own length.
PAIRS = ("ModelForSeq2SeqLM", "SEQ_2_SEQ_LM", "translation", 128)
DECODER = ("ModelForCausalLM", "CAUSAL_LM", "text-generation", 384)
WRITES = (PAIRS[2], DECODER[2])
TASKS = {
    "ForSequenceClassification": ("ModelForSequenceClassification", "SEQ_CLS", "text-classification", 128),
    "ForTokenClassification": ("ModelForTokenClassification", "TOKEN_CLS", "token-classification", 128),
    "ForQuestionAnswering": ("ModelForQuestionAnswering", "QUESTION_ANS", "question-answering", 256),
    "ForConditionalGeneration": PAIRS,
    "MTModel": PAIRS,  # Marian's
    "ForCausalLM": DECODER,
    "LMHeadModel": DECODER,  # GPT-2's
}
# Of what may leave the machine, what a model is not loaded from.
NOT_LOADED = ("README.md", "results.json", "config.yaml", "plots", "generator")
# What `import ptft_recipes.bottleneck` reads; the method is no part of PEFT, and ptft-recipes on no index.
BOTTLENECK = ("__init__.py", "architectures.py", "bottleneck.py", "errors.py")

HEAD = '''\
"""A demo of a model for {task}. It was written by `ptft space`; change what you like."""

{imports}
'''
PLAIN = 'model = pipeline("{task}", {model})\n'
ADAPTER = """\
config = AutoConfig.from_pretrained({model})  # of the run: its labels
base = Auto{kind}.from_pretrained({base}, config=config)
tokenizer = AutoTokenizer.from_pretrained({model})
model = pipeline("{task}", PeftModel.from_pretrained(base, {model}), tokenizer=tokenizer)
"""
CLASSIFY = '''

def predict({inputs}):
    """Return the score of every label."""
    scores = model({asked}, top_k=None, truncation=True, max_length={max_length})
    return {{score["label"]: score["score"] for score in scores}}


output = gr.Label(label="Labels")
'''
REGRESS = '''

def predict({inputs}):
    """Return the number that the model predicts."""
    return model({asked}, top_k=None, truncation=True, max_length={max_length})[0]["score"]


output = gr.Number(label="Prediction")
'''
RENAME = """\
# The pipeline joins what begins with B- and I- to entities, and knows no other letters.
letters = {"U": "B", "S": "B", "W": "B", "L": "I", "E": "I", "M": "I"}
labels = model.model.config.id2label
model.model.config.id2label = {i: letters.get(label[0], label[0]) + label[1:] for i, label in labels.items()}
"""
TAG = '''\
model.tokenizer.model_max_length = {max_length}  # a longer text is read in windows, as in training


def predict(text):
    """Return the text, and which parts of it have which tag; the first token of a word decides, as in training."""
    return {{"text": text, "entities": model(text, aggregation_strategy="first", stride={stride})}}


output = gr.HighlightedText(label="Tags")
'''
FOOT = """\
inputs = [{boxes}]
demo = gr.Interface(predict, inputs, output, title={title}, api_name="predict", flagging_mode="never")

if __name__ == "__main__":
    demo.launch()
"""


@dataclass(frozen=True)
class _Run:
    """What is to be shown."""

    folder: Path
    kind: str  # the last part of the name of the Auto class
    task: str  # the Hub's name
    adapter: dict[str, Any]  # its configuration; empty for a whole model
    config: dict[str, Any]
    data: dict[str, Any]
    versions: dict[str, str]
    base_model: str

    @property
    def title(self) -> str:
        return self.folder.absolute().name

    @property
    def answers(self) -> bool:
        return self.task == "question-answering"

    @property
    def is_bottleneck(self) -> bool:
        return self.adapter.get("peft_type") == "BOTTLENECK"


def write_space(folder: Path, destination: Path, repo_id: str | None = None) -> str:
    """Write `app.py`, `requirements.txt` and `README.md` of a demo, and what it loads.

    What lies on this machine is copied, so that the folder is complete: the model, and under an adapter its base. A
    base on the Hub is loaded from there.

    Args:
        folder: Of a finished run: a model or an adapter of a recipe for fine-tuning.
        destination: A folder that is not there yet.
        repo_id: The model as it was pushed, to load from the Hub instead.

    Returns:
        What to do next, in words.

    Raises:
        InputError: The run is for another task, or something is in the way.
        PushError: One of the model's files is a link.
    """
    run = _read_run(folder)
    if destination.exists():
        raise InputError(f"{destination} exists and is left as it is; name another folder, or remove it")
    try:
        destination.mkdir(parents=True)
        try:
            _write(run, destination, repo_id)
        except BaseException:
            shutil.rmtree(destination, ignore_errors=True)
            raise
    except OSError as error:
        raise InputError(f"{destination}: cannot be written: {error.strerror or one_line(error)}") from error
    quoted = shlex.quote(str(destination))
    return (
        f"{destination}: a demo for {run.task}; nothing was pushed. To start it:\n\n"
        f"    python -m pip install -r {quoted}/requirements.txt\n    python {quoted}/app.py\n\n"
        f"To make it a private Space:\n\n    hf upload NAME {quoted} . --repo-type space --private"
    )


def _write(run: _Run, destination: Path, repo_id: str | None) -> None:
    base = _copy_files(run, destination, repo_id)
    texts = {
        "app.py": _app(run, repr(repo_id) if repo_id else _place("model"), _place(base)),
        "requirements.txt": _requirements(run),
        "README.md": _readme(run, repo_id),
    }
    for name, text in texts.items():
        (destination / name).write_text(text, encoding="utf-8")


def _read(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read: {one_line(error)}") from None
    return value if isinstance(value, dict) else {}


def _read_run(folder: Path) -> _Run:
    """Read what the demo is made of, and check what becomes part of a program: a stranger may have written it.

    Raises:
        InputError: It is for another task, or not what a run of ours writes.
    """
    path = folder / "results.json"
    described = _read(path).get("run")
    adapter = _read(folder / "adapter_config.json") if (folder / "adapter_config.json").exists() else {}
    architecture = (_read(folder / "config.json").get("architectures") or ["no task"])[0]
    fits = (
        of for ending, of in TASKS.items()
        if adapter.get("task_type") == of[1] or (not adapter and architecture.endswith(ending))
    )  # fmt: skip
    kind, _, task, length = next(fits, (None, None, None, 0))
    try:
        config, versions = dict(described["config"]), described["versions"]
        numbers = {"max_length": length, "stride": 32, "max_source_length": length}
        for name in ("python", "torch", "transformers", "peft"):
            if not re.fullmatch(r"[\w.+]+", versions[name]):
                raise ValueError(f"{versions[name]!r} is no version")
        run = _Run(
            folder, kind, task, adapter,
            config=config | {name: int(config.get(name, number)) for name, number in numbers.items()},
            data=dict(described["data"]),
            versions={name: str(version).partition("+")[0] for name, version in versions.items()},
            base_model=str(described["base_model"]),
        )  # fmt: skip
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{path} is not that of a finished run: {one_line(error)}") from None
    if kind is None or (run.task in WRITES and "text_metrics" not in run.data):  # what pretraining leaves has none
        what = adapter.get("task_type") or architecture
        raise InputError(f"{folder} is for {what}; there are demos of what the finetune_*.py recipes train")
    if run.task in WRITES and not (folder / "generation_config.json").exists():
        raise InputError(f"{folder}: no generation_config.json, which would say how it writes")
    return run


def _copy_files(run: _Run, destination: Path, repo_id: str | None) -> str:
    """Copy what the demo loads, and return the name by which it finds the base of an adapter."""
    base = _copy_base(run.base_model, destination) if run.adapter else ""
    if repo_id is None:
        _copy_model(run.folder, destination / "model")
        if run.adapter:  # PEFT wrote where the base lay
            text = json.dumps(run.adapter | {"base_model_name_or_path": base}, indent=2)
            (destination / "model" / "adapter_config.json").write_text(text, encoding="utf-8")
    answering = question_demo.IMPORTED if run.answers else ()
    for name in {*answering, *(BOTTLENECK if run.is_bottleneck else ())}:
        _copy(Path(__file__).with_name(name), destination / "ptft_recipes" / name)
    return base


def _copy_base(name: str, destination: Path) -> str:
    installed = demo.installed_name(name)
    folder = demo.model_path(installed) if installed in demo.MODELS else Path(name)
    if not folder.is_dir():
        return name
    _copy_model(folder, destination / "base")
    return "base"


def _copy_model(folder: Path, destination: Path) -> None:
    for name in pushed_files(folder):
        if Path(name).parts[0] not in NOT_LOADED:
            _copy(folder / name, destination / name)


def _copy(source: Path, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, path)


def _place(name: str) -> str:
    """Return the Python expression for a folder beside the app, or for a name of the Hub."""
    return f'str(FOLDER / "{name}")' if name in ("model", "base") else repr(name)


def _requirements(run: _Run) -> str:
    packages = ["torch", "transformers", *(["peft"] if run.adapter else [])]
    return "\n".join([f"gradio=={GRADIO}", *(f"{name}=={run.versions[name]}" for name in packages), ""])


def _readme(run: _Run, repo_id: str | None) -> str:
    card = SpaceCardData(
        title=run.title,
        sdk="gradio",
        sdk_version=GRADIO,
        python_version=run.versions["python"].rpartition(".")[0],
        app_file="app.py",
        models=[repo_id] if repo_id else None,
    )
    return f"---\n{card.to_yaml()}\n---\n\n# {run.title}\n\nA demo of a model for {run.task}, by ptft-recipes.\n"


def _app(run: _Run, model: str, base: str) -> str:
    """Return the source of the demo.

    Args:
        run: That it shows.
        model: Where the model or adapter is, as a Python expression.
        base: Likewise the base of an adapter.
    """
    is_pair = bool(run.config.get("text_pair_column"))
    boxes = ("Question", "Text") if run.answers else ("Text", "Second text")[: 1 + is_pair]
    is_local = "FOLDER" in (model + base if run.adapter else model)
    fill = {
        "task": run.task,
        "kind": run.kind,
        "title": json.dumps(run.title),
        "model": model,
        "base": base,
        "inputs": "text, text_pair" if is_pair else "text",
        "asked": '{"text": text, "text_pair": text_pair}' if is_pair else "text",
        "boxes": ", ".join(f'gr.Textbox(label="{box}", lines=4)' for box in boxes),
        "max_length": run.config["max_source_length" if run.task == PAIRS[2] else "max_length"],
        "stride": run.config["stride"],
    }
    has_pipeline = not run.answers and run.task not in WRITES
    classes = [f"Auto{run.kind}", "AutoTokenizer"] if run.adapter or not has_pipeline else []
    classes += ["AutoConfig"] * bool(run.adapter) + ["pipeline"] * has_pipeline
    classes += ["GenerationConfig"] * bool(run.adapter and run.task in WRITES)
    imports = [
        "from pathlib import Path\n" * is_local,
        "import gradio as gr",
        "import torch" * (run.answers or run.task == DECODER[2]),
        "import ptft_recipes.bottleneck  # noqa: F401 - PEFT knows the method from then on" * run.is_bottleneck,
        "from peft import PeftModel" * bool(run.adapter),
        question_demo.IMPORTS * run.answers,
        f"from transformers import {', '.join(sorted(classes))}",
        "\nFOLDER = Path(__file__).parent" * is_local,
    ]
    load = ADAPTER if run.adapter else PLAIN
    if run.answers:
        load, body = question_demo.ADAPTER if run.adapter else question_demo.PLAIN, question_demo.ANSWER
    elif run.task in WRITES:
        load = generation_demo.ADAPTER if run.adapter else generation_demo.PLAIN
        body = generation_demo.source(run.task == DECODER[2], run.config, run.data)
    elif run.task == "token-classification":
        body = RENAME * (run.data.get("scheme") == BILOU) + TAG.format_map(fill)
    else:
        body = (REGRESS if run.data.get("problem_type") == "regression" else CLASSIFY).format_map(fill)
    head = HEAD.format(task=run.task, imports="\n".join(filter(None, imports)))
    return head + load.format_map(fill) + body + FOOT.format_map(fill)
