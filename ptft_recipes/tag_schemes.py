"""How tags mark entities: IOB1, IOB2 and BILOU, legal sequences, and the entities that a sequence of tags means."""

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

IOB1, IOB2, BILOU, PLAIN = SCHEMES = ("IOB1", "IOB2", "BILOU", "plain")
OUTSIDE = "O"
# What the first letter of a tag means: BILOU is also written BIOES, BMES or BMEWO.
ROLES = {"B": "begin", "I": "inside", "M": "inside", "L": "last", "E": "last", "U": "unit", "S": "unit", "W": "unit"}


class Entity(NamedTuple):
    """An entity: its type, its first word, and the word after its last."""

    type: str
    start: int
    end: int


def split_tag(tag: str) -> tuple[str, str]:
    """Return the role and the type of a tag of an entity scheme; a tag without a type has `_`.

    >>> split_tag("B-PER"), split_tag("S-geo-loc"), split_tag("O"), split_tag("I")
    (('begin', 'PER'), ('unit', 'geo-loc'), ('outside', ''), ('inside', '_'))
    """
    return ("outside", "") if tag == OUTSIDE else (ROLES[tag[0]], tag[2:] or "_")


def marks_entity(tag: str) -> bool:
    """Say whether a tag is one of an entity scheme, but for `O`.

    >>> [marks_entity(tag) for tag in ("B-PER", "I", "O", "NOUN", "X-")]
    [True, True, False, False, False]
    """
    return bool(re.fullmatch(f"[{''.join(ROLES)}](-.+)?", tag))


def detect_scheme(sequences: Iterable[Sequence[str]]) -> str:
    """Tell the scheme of tags apart.

    Tags are of an entity scheme when all but `O` are a letter of `ROLES` with a type (`B-PER`), or when all are such
    letters or `O`, with both `O` and `B` or `I` among them. The scheme is BILOU when a last or a single word is
    marked; else IOB2, where every entity begins with `B-`, or IOB1, where `B-` only divides two entities of one type:
    the one under which fewer tags are illegal.

    Args:
        sequences: The tags of each sentence.

    Returns:
        One of `SCHEMES`; `plain` for tags that mark no entities, such as parts of speech.
    """
    sequences = list(sequences)
    tags = {tag for sequence in sequences for tag in sequence}
    letters_only = OUTSIDE in tags and tags & {"B", "I"} and tags <= {OUTSIDE, *ROLES}
    if tags <= {OUTSIDE} or not (letters_only or all(len(tag) > 1 and marks_entity(tag) for tag in tags - {OUTSIDE})):
        return PLAIN
    if any(split_tag(tag)[0] in ("last", "unit") for tag in tags):
        return BILOU
    return min((IOB2, IOB1), key=lambda scheme: sum(count_illegal(sequence, scheme) for sequence in sequences))


def complete_labels(tags: Iterable[str], scheme: str) -> list[str]:
    """Return the labels of a model for these tags: `O` first, and of an entity scheme every role of every type.

    So a tag such as `I-LOC` that train happens not to have is known when the type is.

    >>> complete_labels(["O", "B-LOC", "B-PER", "I-PER"], "IOB2")
    ['O', 'B-LOC', 'I-LOC', 'B-PER', 'I-PER']
    """
    tags = set(tags)
    if scheme == PLAIN:
        return sorted(tags, key=lambda tag: (tag != OUTSIDE, tag))
    letters = {split_tag(tag)[0]: tag[0] for tag in sorted(tags - {OUTSIDE})}
    written = {"last": "E", "unit": "S"} if letters.get("last") == "E" or letters.get("unit") == "S" else {}
    letters = (
        {"begin": "B", "inside": "I"} | ({"last": "L", "unit": "U"} | written if scheme == BILOU else {}) | letters
    )
    types = sorted({split_tag(tag)[1] for tag in tags - {OUTSIDE}})
    return [OUTSIDE, *(letter if kind == "_" else f"{letter}-{kind}" for kind in types for letter in letters.values())]


def count_illegal(tags: Sequence[str], scheme: str) -> int:
    """Count the tags that may not follow the one before, and an entity that the sentence leaves open.

    >>> count_illegal(["O", "I-PER"], "IOB2"), count_illegal(["O", "I-PER"], "IOB1"), count_illegal(["B-X"], "BILOU")
    (1, 0, 1)
    """
    illegal, before = 0, ("outside", "")
    for role, kind in map(split_tag, tags) if scheme != PLAIN else ():
        is_open = before[0] in ("begin", "inside")
        if scheme == IOB2:
            illegal += role == "inside" and not (is_open and before[1] == kind)
        elif scheme == IOB1:
            illegal += role == "begin" and not (is_open and before[1] == kind)
        else:
            illegal += (role in ("inside", "last")) != is_open or (is_open and before[1] != kind)
        before = role, kind
    return illegal + (scheme == BILOU and before[0] in ("begin", "inside"))


def strict_entities(tags: Sequence[str], scheme: str) -> list[Entity]:
    """Return the entities that are written as the scheme demands; what is written otherwise is none.

    Under IOB2 `I-` without a beginning is none, under BILOU also `B-` without its end. Under IOB1, where `I-` may
    begin an entity, it is the reading of `lenient_entities`. (seqeval with `mode="strict"` agrees but for IOB1's
    illegal sequences.)

    Args:
        tags: Of one sentence.
        scheme: One of `SCHEMES`.

    Returns:
        In the order of the sentence; none for `plain`.
    """
    if scheme == IOB1:
        return lenient_entities(tags)
    found: list[Entity] = []
    start: int | None = None
    roles = [split_tag(tag) for tag in tags] if scheme != PLAIN else []
    for i, (role, kind) in enumerate([*roles, ("outside", "")]):
        goes_on = start is not None and role in ("inside", "last") and kind == roles[start][1]
        if start is not None and not goes_on and scheme == IOB2:
            found.append(Entity(roles[start][1], start, i))
        if goes_on and role == "last":
            found.append(Entity(kind, start, i + 1))
        if role == "unit":
            found.append(Entity(kind, i, i + 1))
        start = i if role == "begin" else start if goes_on and role == "inside" else None
    return found


def lenient_entities(tags: Sequence[str]) -> list[Entity]:
    """Return the entities as the CoNLL script reads any scheme: `I-` after `O`, or after another type, begins one.

    That is seqeval's default mode too.

    Args:
        tags: Of one sentence, of any scheme but plain tags.

    Source: conlleval, of the CoNLL-2000 shared task (Tjong Kim Sang and Buchholz, 2000).
    """
    found, start, before = [], 0, ("outside", "")
    for i, (role, kind) in enumerate([*map(split_tag, tags), ("outside", "")]):
        starts = role in ("begin", "unit") or before[0] in ("outside", "last", "unit") or before[1] != kind
        if before[0] != "outside" and (starts or role == "outside"):
            found.append(Entity(before[1], start, i))
        if starts and role != "outside":
            start = i
        before = role, kind
    return found


def write_tags(entities: Iterable[Entity], words: int, scheme: str, label_names: Sequence[str]) -> list[str]:
    """Return the tags that mean these entities: the inverse of `strict_entities`.

    Args:
        entities: In the order of the sentence; they do not overlap.
        words: Of the sentence.
        scheme: One of `SCHEMES` but `plain`.
        label_names: Which letters are written, BILOU or BIOES.

    Raises:
        KeyError: There is no label for the role that a word has.

    >>> write_tags([Entity("X", 0, 1), Entity("X", 1, 3)], 4, "IOB2", ["O", "B-X", "I-X"])
    ['B-X', 'B-X', 'I-X', 'O']
    >>> write_tags([Entity("X", 0, 1), Entity("X", 1, 4)], 4, "BILOU", ["O", "B-X", "I-X", "E-X", "S-X"])
    ['S-X', 'B-X', 'I-X', 'E-X']
    """
    written = {split_tag(label): label for label in label_names}
    tags, before = [OUTSIDE] * words, Entity("", 0, 0)
    for entity in entities:
        roles = ["begin", *["inside"] * (entity.end - entity.start - 1)]
        if scheme == IOB1 and (before.type, before.end) != (entity.type, entity.start):
            roles[0] = "inside"
        elif scheme == BILOU:
            roles[-1] = "last" if len(roles) > 1 else "unit"
        tags[entity.start : entity.end] = [written[role, entity.type] for role in roles]
        before = entity
    return tags
