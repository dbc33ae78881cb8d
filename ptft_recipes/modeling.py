"""Load models and tokenizers, and know which weights a checkpoint did not bring."""

import hashlib
import json
import logging
import os
import re
from dataclasses import dataclass, field
from pathlib import Path

import torch
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    dynamic_module_utils,
)
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME
from transformers.utils.peft_utils import find_adapter_config_file

from ptft_recipes import demo
from ptft_recipes.errors import InputError, one_line

logger = logging.getLogger(__name__)

# Where transformers or PEFT load something without saying trust_remote_code=False: refuse, ask nobody on stdin.
dynamic_module_utils.TIME_OUT_REMOTE_CODE = 0

POSITIONS_AFTER_PADDING = ("roberta", "xlm-roberta", "camembert", "mpnet", "longformer", "data2vec-text", "xmod")


@dataclass
class ModelArguments:
    """Which model to start from."""

    _argument_group_name = "model"

    model_name_or_path: str | None = field(default=None, metadata={"help": "Hub id, folder, or demo/minilm"})
    model_revision: str = field(default="main", metadata={"help": "branch, tag or commit of a Hub model"})
    from_scratch: bool = field(
        default=False, metadata={"help": "new weights in the same architecture: the control without pre-training"}
    )
    attn_implementation: str | None = field(
        default=None, metadata={"help": "eager, sdpa, flash_attention_2, ...; the model's own choice when not given"}
    )
    stock: bool = field(
        default=False, metadata={"help": "train as plain transformers does, slowly: for comparison, and for doubt"}
    )
    trust_remote_code: bool = field(default=False, metadata={"help": "run the Python code that the model brings"})
    allow_changes: list[str] = field(
        default_factory=list, metadata={"help": "arguments that may differ from the run that is resumed"}
    )
    load_in_8bit: bool = field(default=False, metadata={"help": "quantise the frozen body to 8 bits (bitsandbytes)"})
    load_in_4bit: bool = field(default=False, metadata={"help": "quantise the frozen body to 4 bits, NF4 (QLoRA)"})

    def __post_init__(self):  # noqa: D105
        self.from_scratch |= self.model_name_or_path in demo.UNTRAINED
        if self.load_in_4bit and self.load_in_8bit:
            raise InputError("--load_in_4bit and --load_in_8bit: give one of them")
        if self.from_scratch and (self.load_in_4bit or self.load_in_8bit):
            raise InputError("--from_scratch: new weights must move, and quantised weights cannot")


def pretrained_source(model_args: ModelArguments) -> dict:
    """Return where to load from, as keywords of `from_pretrained`; a demo name becomes its folder."""
    name = model_args.model_name_or_path
    if not name:
        raise InputError("no model: pass --model_name_or_path (Hub id or folder)")
    if name.startswith("demo/"):
        name = str(demo.model_path(name))
    return {
        "pretrained_model_name_or_path": name,
        "revision": model_args.model_revision,
        "trust_remote_code": model_args.trust_remote_code,  # None would prompt on stdin
    }


def from_pretrained(auto_class, model_args: ModelArguments, **kwargs):
    """Call `auto_class.from_pretrained` for what the arguments name; what the user can mend becomes an InputError."""
    try:
        return auto_class.from_pretrained(**pretrained_source(model_args), **kwargs)
    except (OSError, ValueError, ImportError, SafetensorError) as error:
        if isinstance(error, InputError):
            raise
        what = f"cannot load {auto_class.__name__} from {model_args.model_name_or_path}"
        reason = one_line(error, 400).partition(" Model type should be one of")[0]  # a hundred of them
        raise InputError(f"{what}: {reason}") from error


def shard_names(index: str | Path) -> list[str]:
    """Return the names of the files that `model.safetensors.index.json` lists, all safetensors beside it.

    Raises:
        InputError: It cannot be read, or leads to another folder or format.
    """
    try:
        names = sorted(set(json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"].values()))
        wrong = [name for name in names if not re.fullmatch(r"[^/\\]+\.safetensors", name)]
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise InputError(f"{index}: no readable index of weights: {error!r}") from None
    if wrong:
        raise InputError(f"{index}: it names {wrong[0]!r}, which is no safetensors file beside it")
    return names


def check_source(model_args: ModelArguments, config) -> None:
    """Raise an InputError for a checkpoint that would have other code or other files loaded than its own.

    Args:
        model_args: The checkpoint.
        config: Its config.
    """
    name, revision = (pretrained_source(model_args)[key] for key in ("pretrained_model_name_or_path", "revision"))
    if find_adapter_config_file(name, revision=revision):
        raise InputError(  # transformers would load the base that it names, and take a pickle for the adapter
            f"{model_args.model_name_or_path} is an adapter: give its base as --model_name_or_path and the adapter as "
            "--tuning, or fold it with recipes/merge_adapters.py"
        )
    if (index := Path(name, SAFE_WEIGHTS_INDEX_NAME)).exists():
        shard_names(index)
    kernel = config._attn_implementation
    if isinstance(kernel, str) and "/" in kernel and not model_args.attn_implementation:
        raise InputError(
            f"{model_args.model_name_or_path}: its config asks for code of the Hub ({kernel}) to compute attention; "
            "pass --attn_implementation sdpa, or that name if you trust it"
        )


def base_model_name(model_args: ModelArguments) -> str:
    """Return the name by which others know the base model: the Hub id behind a demo model, else the given name."""
    return demo.MODELS.get(model_args.model_name_or_path, model_args.model_name_or_path)


def base_model_hub_id(model_args: ModelArguments) -> str | None:
    """Return the Hub id of the weights that training starts from; None for a folder, and where there are none."""
    name = base_model_name(model_args)
    return name if name and not os.path.isdir(name) and is_hub_id(name) else None


def is_hub_id(name: str) -> bool:
    """Tell whether the Hub takes a name for that of a repository."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return name.isascii()


def load_tokenizer(model_args: ModelArguments) -> PreTrainedTokenizerBase:
    """Load the model's tokenizer, whose `model_max_length` is at most what the model has positions for.

    Raises:
        InputError: It cannot be found or read.
    """
    tokenizer = from_pretrained(AutoTokenizer, model_args)
    config = from_pretrained(AutoConfig, model_args)
    positions = getattr(config, "max_position_embeddings", None)
    if tokenizer.model_max_length > 1_000_000 and positions:  # the tokenizer does not know
        # The RoBERTa family counts positions from padding_idx + 1 on.
        reserved = config.pad_token_id + 1 if config.model_type in POSITIONS_AFTER_PADDING else 0
        tokenizer.model_max_length = positions - reserved
    return tokenizer


def digest_weights(model: torch.nn.Module) -> str:
    """Return a hash of all weights: of a model as it was loaded, it says whether the base is still the same."""
    digest = hashlib.sha256()
    for name, weight in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(weight.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def non_finite_weights(model: torch.nn.Module) -> list[str]:
    """Return the names of the parameters that hold a nan or an infinity, which not every forward pass meets."""
    sums = {name: p.detach().sum(dtype=torch.float32) for name, p in model.named_parameters() if p.is_floating_point()}
    return [name for name, total in sums.items() if not torch.isfinite(total)]


def _quantization_config(auto_class, model_args: ModelArguments, config) -> BitsAndBytesConfig:
    """Quantise the linear layers of the body; transformers would do it to a new head too, which could never move."""
    if model_args.load_in_4bit and not torch.accelerator.is_available():
        # bitsandbytes 0.50 repacks 4-bit weights in the first evaluation on a CPU, and cannot train them after it.
        raise InputError("--load_in_4bit needs a GPU; on a CPU --load_in_8bit works, at no gain in speed")
    with torch.device("meta"):
        model = auto_class.from_config(config, trust_remote_code=model_args.trust_remote_code)
    heads = [name for name, _ in model.named_children() if name != model.base_model_prefix]
    return BitsAndBytesConfig(
        load_in_4bit=model_args.load_in_4bit,
        load_in_8bit=model_args.load_in_8bit,
        bnb_4bit_quant_type="nf4",  # Dettmers et al., QLoRA (2023), section 3
        bnb_4bit_use_double_quant=True,
        llm_int8_skip_modules=[*heads, f"{model.base_model_prefix}.pooler"],
    )


def load_model(
    auto_class,
    model_args: ModelArguments,
    tokenizer: PreTrainedTokenizerBase,
    label_names: list[str] | None = None,
    **config_kwargs,
) -> tuple[PreTrainedModel, list[str]]:
    """Load a model for a task, in float32, and say which of its modules the checkpoint did not bring.

    Weights whose shape does not fit (the head of another task) are made anew, like missing ones. A checkpoint that
    lacks more than half of the body's weights is refused, because it is of another architecture.

    Args:
        auto_class: E.g. `AutoModelForSequenceClassification`.
        model_args: What to load.
        tokenizer: Must fit into the model's vocabulary.
        label_names: Names of the outputs of the head, which the config keeps.
        config_kwargs: Go into the config, e.g. `problem_type`.

    Returns:
        The model; and the names of the modules with newly initialised weights, which every tuning method must train
        and save (`bert.pooler.dense`, `classifier`). For `--from_scratch` these are all modules with weights.

    Raises:
        InputError: No such model, no safetensors weights, another architecture, a tokenizer of another model, or a
            checkpoint that leads to the code or files of others; an encoder-decoder for one of the two tasks in which
            it would return its encoder's states among the predictions.
    """
    if label_names:
        config_kwargs |= {
            "id2label": dict(enumerate(label_names)),
            "label2id": {n: i for i, n in enumerate(label_names)},
        }
    config = from_pretrained(AutoConfig, model_args, **config_kwargs)
    check_source(model_args, config)
    if config.is_encoder_decoder and auto_class in (AutoModelForSequenceClassification, AutoModelForQuestionAnswering):
        raise InputError(
            f"{model_args.model_name_or_path} is an encoder-decoder ({config.model_type}), and this recipe is for "
            "encoders; finetune_seq2seq.py trains encoder-decoders"
        )
    kwargs = {"config": config, "attn_implementation": model_args.attn_implementation, "dtype": "float32"}
    if model_args.from_scratch:
        trust = {"trust_remote_code": model_args.trust_remote_code}
        del kwargs["config"]
        try:
            model = auto_class.from_config(config, **kwargs, **trust)
        except ValueError as error:
            raise InputError(f"cannot build a model from {model_args.model_name_or_path}: {error}") from error
        missing = [name for name, _ in model.named_parameters()]
    else:
        if model_args.load_in_4bit or model_args.load_in_8bit:
            kwargs["quantization_config"] = _quantization_config(auto_class, model_args, config)
        model, info = from_pretrained(
            auto_class,
            model_args,
            use_safetensors=True,  # never a pickle
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            **kwargs,
        )
        missing = [*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])]
        body = [name for name, _ in model.named_parameters() if name.startswith(f"{model.base_model_prefix}.")]
        if len(lost := set(body) & set(missing)) > len(body) / 2:
            raise InputError(
                f"{model_args.model_name_or_path} lacks {len(lost)} of the {len(body)} weights of a "
                f"{config.model_type} body ({min(lost)}, ...): is it a checkpoint of this architecture?"
            )
    if broken := non_finite_weights(model):
        raise InputError(
            f"{model_args.model_name_or_path}: {broken[0]} holds values that are not finite"
            f"{f', and {len(broken) - 1} more weights do' if len(broken) > 1 else ''}; the checkpoint is broken"
        )
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        raise InputError(
            f"the tokenizer has {len(tokenizer)} tokens and the model {model.get_input_embeddings().num_embeddings} "
            "embeddings: they are not of one model"
        )
    new_modules = sorted({name.rpartition(".")[0] for name in missing})
    if model_args.from_scratch:
        logger.info("model: %s, all weights new", model_args.model_name_or_path)
    else:
        logger.info("model: %s; newly initialised: %s", model_args.model_name_or_path, ", ".join(new_modules) or "-")
    return model, new_modules
