"""Text augmentation: what `--augment` may say, and copies of the training rows in which words are changed.

The copies are made once, before tokenization. What follows sees ordinary rows: batches by length, counts of tokens,
cached tokens and features, exact resume and several processes need not know of them. A new variant of every row in
every epoch is the same as that many copies and as many times fewer epochs.
"""

import hashlib
import json
import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from datasets import Dataset, concatenate_datasets

from ptft_recipes.adapters import parse_kwargs
from ptft_recipes.errors import InputError
from ptft_recipes.rewriting import BackTranslation, ContextualReplacement
from ptft_recipes.tag_schemes import PLAIN, Entity, lenient_entities, split_tag, write_tags
from ptft_recipes.word_edits import OPERATIONS, Edit, read_synonyms

logger = logging.getLogger(__name__)

BY_MODELS = ("contextual_replacement", "back_translation")
BY_SYNONYMS = ("random_insertion", "synonym_replacement")
# What is of use to some operations only; those of BY_SYNONYMS and the first of BY_MODELS cannot do without.
USED_BY = {
    "copies": (*OPERATIONS, *BY_MODELS),
    "synonyms": BY_SYNONYMS,
    "masked_lm": BY_MODELS[:1],
    "languages": BY_MODELS[1:],
}


@dataclass
class Augmentation:
    """What `--augment` may say.

    Args:
        random_deletion: Probability that a word is left out (EDA).
        random_swap: Share of the words that change places with another (EDA).
        random_insertion: Number of synonyms that are inserted anywhere, as a share of the words (EDA).
        synonym_replacement: Share of the words that a synonym replaces (EDA).
        typos: Share of the words of four letters or more that are misspelt.
        contextual_replacement: Share of the words that a masked language model replaces.
        back_translation: Two translation models, there and back, with a comma between them.
        copies: Of every row; each is made by one of the operations above, in turn.
        synonyms: File with a set of synonyms in each line, separated by commas.
        masked_lm: Hub id or folder of the masked language model.
        languages: Of translation models that have many, by the codes of their tokenizers: `eng_Latn,deu_Latn`.
        span_cutoff: Share of its tokens that a row hides in one piece, another one at each step.
        mixup: Parameter of the Beta distribution by which the hidden states of two rows are mixed at each step.

    Source: Wei and Zou, EDA: Easy Data Augmentation Techniques (2019), section 2: there too each copy has one of the
    operations. See `rewriting` for those by models, and `batch_augmentation` for the last two, which make no copies.
    """

    random_deletion: float = 0.0
    random_swap: float = 0.0
    random_insertion: float = 0.0
    synonym_replacement: float = 0.0
    typos: float = 0.0
    contextual_replacement: float = 0.0
    back_translation: str = ""
    copies: int = 1
    synonyms: str = ""
    masked_lm: str = ""
    languages: str = ""
    span_cutoff: float = 0.0
    mixup: float = 0.0

    def operations(self) -> list[str]:
        """Return the names of the operations by which copies are made."""
        return [name for name in USED_BY["copies"] if getattr(self, name)]


@dataclass
class AugmentationArguments:
    """What is done to training rows and to no others; a base of a recipe's `DataArguments`."""

    augment: list[str] = field(
        default_factory=list,
        metadata={
            "help": "of training rows: random_deletion=0.1 typos=0.05 copies=2, span_cutoff=0.1, mixup=0.2, ..."
        },
    )

    def __post_init__(self):  # noqa: D105
        parse_augment(self.augment)


def parse_augment(pairs: Sequence[str]) -> Augmentation:
    """Parse and check `--augment`.

    Args:
        pairs: `name=value`.

    Raises:
        InputError: No such name, a value of another type or out of range, or settings that do not go together.
    """
    given = parse_kwargs("augmentation", Augmentation, pairs, "--augment")
    chosen = Augmentation(**given)
    for name, value in given.items():
        if isinstance(value, float) and not 0 < value < (float("inf") if name == "mixup" else 1):
            raise InputError(f"--augment {name}={value}: must be above 0{' and below 1' * (name != 'mixup')}")
        two_names = name in ("back_translation", "languages")
        if isinstance(value, str) and not re.fullmatch(r"[^,\s]+,[^,\s]+" if two_names else ".+", value):
            raise InputError(
                f"--augment {name}={value:.80}: expected {'two names, as in a,b' if two_names else 'one'}"
            )
    if chosen.copies < 1:
        raise InputError(f"--augment copies={chosen.copies}: must be at least 1")
    for name, users in USED_BY.items():
        used = [user for user in users if getattr(chosen, user)]
        if name in given and not used:
            raise InputError(f"--augment {name}: nothing uses it; name one of {', '.join(users)} too")
        if used and not getattr(chosen, name) and name in ("synonyms", "masked_lm"):
            raise InputError(f"--augment {used[0]} needs {name}=..., where its words come from")
    return chosen


def augment_rows(rows: Dataset, augment: Sequence[str], columns: Sequence[str], run: dict[str, Any]) -> Dataset:
    """Return the training rows and, after them, the copies that `--augment` asks for.

    What becomes of a row depends on the seed, its number and that of the copy; translations are drawn by batches.
    Tags follow their words, and where words have moved those of entities are written anew by the scheme.

    Args:
        rows: Training rows with `id`, `columns` and `labels`.
        augment: As parsed.
        columns: Of text, both of a pair are changed; or one of lists of words, whose `labels` are a number per word.
        run: With its `seed` and the report of the data; this gets `augmentation`, and a fingerprint of what the copies
            are made by, so that a run is not gone on with when a file of synonyms or a model has changed.

    Returns:
        As they were where no operation makes copies.

    Raises:
        InputError: The words or the models of an operation cannot be read, or it does not go with tags.
    """
    chosen = parse_augment(augment)
    if not chosen.operations():
        return rows
    report, seed = run["data"], run["seed"]
    task = {name: report[name] for name in ("label_names", "scheme")} if "scheme" in report else None
    if task and chosen.back_translation:
        raise InputError("--augment back_translation: no tag can follow its word through a translation")
    operations, sources = _load_operations(chosen, single_words=task is not None)
    content = [report["fingerprint"]["train"], seed, list(augment), sources, list(columns), task]
    digest = hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]
    settings = {"operations": operations, "columns": columns, "task": task, "seed": seed}
    parts = [rows]
    for copy in range(chosen.copies):
        name = f"{digest}{copy:04x}"
        # `datasets` keeps no copy of rows in memory; what models wrote is worth a file.
        file = _cache_file(name) if {*BY_MODELS} & {*operations} else None
        change = partial(_change_rows, copy=copy, **settings)
        parts.append(rows.map(change, with_indices=True, batched=True, new_fingerprint=name, cache_file_name=file))
    texts = [list(zip(*(part[column][:] for column in columns), strict=True)) for part in parts]
    same = sum(one == other for copy in texts[1:] for one, other in zip(texts[0], copy, strict=True))
    augmented = concatenate_datasets(parts)
    report["augmentation"] = {"rows": len(augmented), "unchanged_copies": same}
    report["fingerprint"]["copies"] = digest
    logger.info(
        "augmentation: train %d rows, %d with augmentation; %d copies are like their row (%s)",
        len(rows),
        len(augmented),
        same,
        " ".join(augment),
    )
    return augmented


def _cache_file(name: str) -> str | None:
    folder = Path(datasets.config.HF_DATASETS_CACHE, "ptft-recipes")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        logger.warning("copies are not kept for the next start: %s: %s", folder, error)
        return None
    return str(folder / f"copy-{name}.arrow")


def _load_operations(chosen: Augmentation, single_words: bool) -> tuple[dict[str, Callable], list[str]]:
    """Return what changes sentences, by name, and digests of the files and models that it reads."""
    operations: dict[str, Callable] = {}
    synonyms, digest = read_synonyms(chosen.synonyms, single_words) if chosen.synonyms else ({}, "")
    sources = [digest]
    for name in chosen.operations():
        value = getattr(chosen, name)
        if name in BY_MODELS:
            if name == "back_translation":
                languages = chosen.languages.split(",") if chosen.languages else ()
                operations[name] = BackTranslation(*value.split(","), languages=languages)
            else:
                operations[name] = ContextualReplacement(chosen.masked_lm, value)
            sources.append(operations[name].digest)
        else:
            kwargs = {"synonyms": synonyms} if name in BY_SYNONYMS else {}
            operations[name] = partial(_one_by_one, operation=partial(OPERATIONS[name], share=value, **kwargs))
    return operations, sources


def _one_by_one(sentences, entities, generators, *, operation: Callable) -> list[Edit]:
    return [operation(*sentence) for sentence in zip(sentences, entities, generators, strict=True)]


def _change_rows(
    batch: dict[str, list], numbers: list[int], *, operations: dict[str, Callable], columns, task, seed: int, copy: int
) -> dict[str, list]:
    """Return a copy of some rows, each changed by the operation whose turn it is."""
    changed = {name: list(values) for name, values in batch.items()}
    changed["id"] = [f"{name}+{copy + 1}" for name in batch["id"]]
    generators = [np.random.default_rng([seed, copy, number]) for number in numbers]
    for turn, operation in enumerate(operations.values()):
        mine = [i for i, number in enumerate(numbers) if (number + copy) % len(operations) == turn]
        for column in columns if mine else ():
            sentences = [batch[column][i] if task else batch[column][i].split() for i in mine]
            entities = [
                _entity_numbers(batch["labels"][i], **task) if task else [0] * len(words)
                for i, words in zip(mine, sentences, strict=True)
            ]
            edits = operation(sentences, entities, [generators[i] for i in mine])
            for i, old, of_entities, edit in zip(mine, sentences, entities, edits, strict=True):
                words, labels = [word for word, _ in edit], batch["labels"][i]
                if task:
                    labels = _move_labels(labels, of_entities, [source for _, source in edit], **task)
                if words != old and labels is not None:
                    changed[column][i], changed["labels"][i] = words if task else " ".join(words), labels
    return changed


def _entity_numbers(labels: Sequence[int], label_names: Sequence[str], scheme: str) -> list[int]:
    """Return per word the number of its entity, from 1 on; 0 outside of any, and for plain tags."""
    numbers = [0] * len(labels)
    entities = lenient_entities([label_names[label] for label in labels]) if scheme != PLAIN else []
    for number, entity in enumerate(entities, 1):
        numbers[entity.start : entity.end] = [number] * (entity.end - entity.start)
    return numbers


def _move_labels(
    labels: Sequence[int], entities: Sequence[int], sources: Sequence[int], label_names: Sequence[str], scheme: str
) -> list[int] | None:
    """Return the labels of words that have moved; None where the scheme has no label for one.

    Args:
        labels: `[old words]`.
        entities: `[old words]`, as `_entity_numbers` returned them.
        sources: `[new words]`, the old word of each; those of one entity are neighbours.
        label_names: As the report of the data has them.
        scheme: Likewise.
    """
    if scheme == PLAIN or list(sources) == list(range(len(labels))):
        return [labels[source] for source in sources]
    found: dict[int, Entity] = {}
    for place, source in enumerate(sources):
        if number := entities[source]:
            kind = split_tag(label_names[labels[source]])[1]
            found.setdefault(number, Entity(kind, place, place))
            found[number] = found[number]._replace(end=place + 1)
    try:
        tags = write_tags(found.values(), len(sources), scheme, label_names)
    except KeyError:
        return None
    return [label_names.index(tag) for tag in tags]
