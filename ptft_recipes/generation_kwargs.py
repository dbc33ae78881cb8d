"""How texts are written, as data: `--generation_kwargs`, fields of transformers' GenerationConfig."""

from collections.abc import Sequence
from typing import Any

import yaml
from transformers import GenerationConfig

from ptft_recipes.errors import InputError, nearest, one_line

# Settings with which the texts could not be scored, the values that change nothing, and what to do.
UNUSABLE = {
    "do_sample": ((False, None), "scores of samples depend on chance; use beams"),
    "num_return_sequences": ((1, None), "one text per row is scored"),
    "return_dict_in_generate": ((False, None), "texts are scored, and nothing else is kept"),
    "max_length": ((None,), "it would count the prompt; name max_new_tokens"),
}


def parse_generation_kwargs(pairs: Sequence[str]) -> dict[str, Any]:
    """Parse settings of generation, and refuse what cannot be scored.

    Args:
        pairs: `name=value`, values in YAML: `num_beams=4`, `length_penalty=0.6`, `no_repeat_ngram_size=3`, ...

    Raises:
        InputError: No such setting, or a value that it cannot have.

    >>> parse_generation_kwargs(["num_beams=4", "length_penalty=0.6"])
    {'num_beams': 4, 'length_penalty': 0.6}
    """
    known, values = GenerationConfig().to_dict(), {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or name not in known:
            hint = nearest(name, known) if equals else "; expected name=value"
            raise InputError(f"--generation_kwargs {pair}: no such setting of GenerationConfig{hint}")
        try:
            value = yaml.safe_load(text)
        except (yaml.YAMLError, RecursionError) as error:
            raise InputError(f"--generation_kwargs {pair:.80}: {one_line(error, 100)}") from None
        allowed, remedy = UNUSABLE.get(name, ((value,), ""))
        if value not in allowed:
            raise InputError(f"--generation_kwargs {pair:.80}: {remedy}")
        if name in ("num_beams", "max_new_tokens") and (type(value) is not int or value < 1):
            raise InputError(f"--generation_kwargs {name}={value}: must be a whole number of at least 1")
        values[name] = value
    return values
