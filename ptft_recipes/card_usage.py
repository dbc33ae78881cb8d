"""The code on a model card: it loads what a run saved, and runs as it stands."""

import json
from typing import Any

from ptft_recipes.labels import MULTI
from ptft_recipes.markdown import code, fenced
from ptft_recipes.provenance import portable
from ptft_recipes.tag_schemes import IOB1, IOB2, OUTSIDE

# By the Hub's name of the task: the Auto class, and a name for the pipeline.
PIPELINES = {
    "text-classification": ("AutoModelForSequenceClassification", "classify"),
    "token-classification": ("AutoModelForTokenClassification", "tag"),
    "text-generation": ("AutoModelForCausalLM", "generate"),
    "fill-mask": ("AutoModelForMaskedLM", "fill"),
    "feature-extraction": ("AutoModel", "encode"),
}


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
    name = PIPELINES[task][1]
    options = ', aggregation_strategy="first"' * _has_entities(run["data"])  # words, not pieces of words
    if adapter is None:
        load = ["from transformers import pipeline\n"]
        load += [f'{name} = pipeline("{task}", {_quoted(model_id)}{options}{_trust(run)})']
    else:
        load = [
            *_load_adapter(model_id, run, task, adapter),
            f'{name} = pipeline("{task}", model, tokenizer=tokenizer{options})',
        ]
    block = fenced("\n".join([*load, *_call(name, run, task)]), "python")
    return block if adapter is None or run.get("base_model_hub_id", True) else f"{block}\n\n{_base_is_missing(run)}"


def _has_entities(data: dict[str, Any]) -> bool:
    """Tell whether the tags are of the schemes that the pipeline can put entities together from."""
    tags = [name for name in data.get("label_names") or [] if name != OUTSIDE]
    return data.get("scheme") in (IOB1, IOB2) and all("-" in tag for tag in tags)


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
    if task == "token-classification":
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
