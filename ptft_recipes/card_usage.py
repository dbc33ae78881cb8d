"""The code on a model card: it loads what a run saved, and runs as it stands."""

import json
from typing import Any

from ptft_recipes.labels import MULTI
from ptft_recipes.markdown import code, fenced
from ptft_recipes.redaction import portable
from ptft_recipes.tag_schemes import IOB1, IOB2, OUTSIDE

# By the Hub's name of the task: the Auto class, and a name for the pipeline.
PIPELINES = {
    "text-classification": ("AutoModelForSequenceClassification", "classify"),
    "token-classification": ("AutoModelForTokenClassification", "tag"),
    "question-answering": ("AutoModelForQuestionAnswering", "answer"),
    "text-generation": ("AutoModelForCausalLM", "generate"),
    "fill-mask": ("AutoModelForMaskedLM", "fill"),
    "feature-extraction": ("AutoModel", "encode"),
    "text2text-generation": ("AutoModelForSeq2SeqLM", "write"),
    "translation": ("AutoModelForSeq2SeqLM", "translate"),
    "summarization": ("AutoModelForSeq2SeqLM", "summarize"),
}
GENERATES = ("translation", "summarization")  # transformers 5 has no pipeline of either

# transformers 5 has no pipeline for it.
ANSWER = '''

def answer(question, context):
    """Return the best answer in the first window of a context; an empty text if there is none."""
    settings = model.config.question_answering
    length = settings["max_length"]
    inputs = tokenizer(question, context, truncation="only_second", max_length=length, return_tensors="pt")
    with torch.no_grad():
        output = model(**inputs)
    start, end = output.start_logits[0], output.end_logits[0]
    places = [inputs.token_to_chars(i) if part == 1 else (0, 0) for i, part in enumerate(inputs.sequence_ids())]
    # An answer neither begins nor ends in white space, which is a token of its own to some tokenizers.
    inside = torch.tensor([bool(context[start:end].strip()) for start, end in places])
    allowed = (inside[:, None] & inside).triu().tril(settings["max_answer_length"] - 1)
    if not allowed.any():
        return ""
    scores = (start[:, None] + end).masked_fill(~allowed, -torch.inf)
    first, last = divmod(int(scores.argmax()), len(start))
    threshold = settings["no_answer_threshold"]
    if threshold is not None and start[0] + end[0] - scores[first, last] > threshold:
        return ""
    begin, stop = places[first][0], places[last][1]
    while unicodedata.category(context[stop : stop + 1] or " ")[0] == "M":  # accents that a tokenizer may drop
        stop += 1
    return context[begin:stop].strip()


print(answer("Some question?", "Some text."))'''


def usage(model_id: str, run: dict[str, Any], task: str | None, adapter: dict[str, Any] | None) -> str:
    """Return how to use what a run saved, as Markdown.

    Args:
        model_id: By which a reader loads it: the repository, or a folder.
        run: Of its results.
        task: The Hub's name of the task; None for a tokenizer.
        adapter: What `adapter_config.json` holds; None for a whole model.
    """
    if task is None:
        lines = [
            "from transformers import AutoTokenizer\n",
            f"tokenizer = AutoTokenizer.from_pretrained({_quoted(model_id)})",
            'print(tokenizer.tokenize("Some text."))',
        ]
        return fenced("\n".join(lines), "python")
    if adapter and run["config"].get("from_scratch"):
        return "The adapter belongs to new weights, which were not saved: it is of no use to others (--merge_adapter)."
    if task == "text2text-generation":
        return _with_base_note(fenced("\n".join(_fill_gap(model_id, run, adapter)), "python"), run, adapter)
    name = PIPELINES[task][1]
    options = ', aggregation_strategy="first"' * _has_entities(run["data"])  # words, not pieces of words
    if task == "question-answering":
        return _answer_questions(model_id, run, adapter)
    if task in GENERATES:
        load = _load_generator(model_id, run, task, adapter)
    elif adapter is None:
        load = ["from transformers import pipeline\n"]
        load += [f'{name} = pipeline("{task}", {_quoted(model_id)}{options}{_trust(run)})']
    else:
        load = [
            *_load_adapter(model_id, run, task, adapter),
            f'{name} = pipeline("{task}", model, tokenizer=tokenizer{options})',
        ]
    block = fenced("\n".join([*load, *_call(name, run, task)]), "python")
    return _with_base_note(block, run, adapter)


def _with_base_note(block: str, run: dict[str, Any], adapter: dict[str, Any] | None) -> str:
    return block if adapter is None or run.get("base_model_hub_id", True) else f"{block}\n\n{_base_is_missing(run)}"


def _fill_gap(model_id: str, run: dict[str, Any], adapter: dict[str, Any] | None) -> list[str]:
    """Return the lines that fill a gap: its token, and what follows it until the next one, are written."""
    lines = [
        "from transformers import AutoModelForSeq2SeqLM, AutoTokenizer\n",
        f"model = AutoModelForSeq2SeqLM.from_pretrained({_quoted(model_id)}{_trust(run)})",
        f"tokenizer = AutoTokenizer.from_pretrained({_quoted(model_id)})",
    ]
    if adapter:
        lines = _load_adapter(model_id, run, "text2text-generation", adapter)
        lines = [line.replace(", pipeline", "") for line in lines]  # transformers 5 has none for this task
    text = _quoted(f"Some {run['data']['gap']} text.")
    lines.append(f'inputs = tokenizer({text}, return_tensors="pt")')
    return [*lines, "written = model.generate(**inputs, max_new_tokens=20)", "print(tokenizer.decode(written[0]))"]


def _answer_questions(model_id: str, run: dict[str, Any], adapter: dict[str, Any] | None) -> str:
    auto_class, quoted = PIPELINES["question-answering"][0], _quoted(model_id)
    load = [
        f"from transformers import {auto_class}, AutoTokenizer\n",
        f"model = {auto_class}.from_pretrained({quoted}{_trust(run)})",
        f"tokenizer = AutoTokenizer.from_pretrained({quoted})",
    ]
    if adapter is not None:
        load = [line.replace(", pipeline", "") for line in _load_adapter(model_id, run, "question-answering", adapter)]
        load.append("model.eval()")
    block = fenced("\n".join(["import unicodedata\n", "import torch", *load, ANSWER]), "python")
    return block if adapter is None or run.get("base_model_hub_id", True) else f"{block}\n\n{_base_is_missing(run)}"


def _has_entities(data: dict[str, Any]) -> bool:
    """Tell whether the tags are of the schemes that the pipeline can put entities together from."""
    tags = [name for name in data.get("label_names") or [] if name != OUTSIDE]
    return data.get("scheme") in (IOB1, IOB2) and all("-" in tag for tag in tags)


def _load_generator(model_id: str, run: dict[str, Any], task: str, adapter: dict[str, Any] | None) -> list[str]:
    auto_class, name = PIPELINES[task]
    config, folder = run["config"], _quoted(model_id)
    if adapter is None:
        load = [
            f"from transformers import {auto_class}, AutoTokenizer\n",
            f"model = {auto_class}.from_pretrained({folder}{_trust(run)})",
            f"tokenizer = AutoTokenizer.from_pretrained({folder})",
        ]
    else:
        load = [
            line.replace(", pipeline", ", GenerationConfig") for line in _load_adapter(model_id, run, task, adapter)
        ]
        # Of the base: PEFT passes the call on to it, and an adapter's own setting would not be looked at.
        place = next(i for i, line in enumerate(load) if line.startswith("model = "))
        load.insert(place, f"base.generation_config = GenerationConfig.from_pretrained({folder})")
    languages = {"src_lang": config.get("source_lang"), "tgt_lang": config.get("target_lang")}
    load += [f"tokenizer.{name} = {_quoted(code)}" for name, code in languages.items() if code] * (
        "forced_bos_token_id" in run.get("generation", {})
    )
    prefix = _quoted(config["source_prefix"]) + " + " if config.get("source_prefix") else ""
    length = f", truncation=True, max_length={config.get('max_source_length', 128)}"
    return [
        *load,
        "",
        f"def {name}(text):",
        f'    inputs = tokenizer({prefix}text{length}, return_tensors="pt")',
        "    return tokenizer.batch_decode(model.generate(**inputs), skip_special_tokens=True)[0]",
        "",
    ]


def _load_adapter(model_id: str, run: dict[str, Any], task: str, adapter: dict[str, Any]) -> list[str]:
    auto_class, config = PIPELINES[task][0], run["config"]
    revision = config.get("model_revision", "main")
    options = "" if revision == "main" else f", revision={_quoted(revision)}"
    # Unmerged, PEFT leaves the bias out of a vocabulary head of which it trains single tokens.
    merge = ".merge_and_unload()" * bool(task == "fill-mask" and adapter.get("trainable_token_indices"))
    lines = ["import ptft_recipes.bottleneck  # PEFT knows the method from then on"]
    return lines * (adapter["peft_type"] == "BOTTLENECK") + [
        "from peft import PeftModel",
        f"from transformers import AutoConfig, {auto_class}, AutoTokenizer, pipeline\n",
        f"config = AutoConfig.from_pretrained({_quoted(model_id)})  # of the run: labels, lineage",
        f"base = {auto_class}.from_pretrained({_quoted(portable(run['base_model']))}, config=config"
        f"{options}{_trust(run)})",
        f"model = PeftModel.from_pretrained(base, {_quoted(model_id)}){merge}",
        f"tokenizer = AutoTokenizer.from_pretrained({_quoted(model_id)})",
    ]


def _call(name: str, run: dict[str, Any], task: str) -> list[str]:
    text = '"Some text."'
    if task == "fill-mask":
        return [f'print({name}(f"Some {{{name}.tokenizer.mask_token}}."))']
    if task == "text-generation":
        return _generation_call(name, run)
    if task == "feature-extraction":
        return [f"print({name}({text}, truncation=True, return_tensors=True).shape)  # [1, tokens, width]"]
    if task == "token-classification" or task in GENERATES:
        return [f"print({name}({text}))"]
    if run["config"].get("text_pair_column"):
        text = '{"text": "Some text.", "text_pair": "Another."}'
    every = ", top_k=None" if run["data"].get("problem_type") == MULTI else ""
    return [f"print({name}({text}, truncation=True{every}))"]


def _generation_call(name: str, run: dict[str, Any]) -> list[str]:
    if run["data"].get("chat_template"):
        chat = 'chat = [{"role": "user", "content": "Some text."}]'
        return [chat, f'print({name}(chat, max_new_tokens=50, do_sample=False)[0]["generated_text"][-1]["content"])']
    return [f'print({name}("Some text", max_new_tokens=50, do_sample=False)[0]["generated_text"])']


def _base_is_missing(run: dict[str, Any]) -> str:
    return (
        f"The base model {code(portable(run['base_model']))} is not on the Hub: the code needs its folder beside the "
        "place where it runs. With any other weights the adapter does not do what was measured."
    )


def _trust(run: dict[str, Any]) -> str:
    return ", trust_remote_code=True" * bool(run["config"].get("trust_remote_code"))


def _quoted(name: str) -> str:
    return json.dumps(name, ensure_ascii=False)
