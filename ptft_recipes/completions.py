"""Token ids of chats, with labels on what the assistant says and on nothing else."""

import logging
import re
from collections.abc import Sequence
from functools import partial
from typing import Any

from datasets import DatasetDict
from transformers import PreTrainedTokenizerBase

from ptft_recipes.causal_blocks import first_tokens
from ptft_recipes.conversations import ASSISTANT, read_messages
from ptft_recipes.errors import InputError, one_line

logger = logging.getLogger(__name__)

NO_LABEL = -100
GENERATION_MARK = re.compile(r"\{%-?\s*generation\b")
Encoded = tuple[list[int], list[int]]


def tokenize_conversations(
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[str],
    ids: Sequence[str],
    max_length: int,
    use_chat_template: bool = True,
) -> dict[str, list]:
    """Turn chats into token ids and labels.

    With a chat template, a row is what the template makes of the chat. Without one it is the prompt, the completion
    and the end-of-text token, one behind the other, with the beginning-of-text token in front where the tokenizer
    puts one there.

    A row that is too long loses its first turns, but not a system message in front of them; then the end of the
    message before the last answer; what is still too long is cut off at its end.

    Args:
        tokenizer: The model's.
        conversations: As JSON, see `conversations`.
        ids: Of the rows, for messages.
        max_length: Tokens per row.
        use_chat_template: Of a tokenizer that has one.

    Returns:
        Per row `input_ids`; `labels`, of as many tokens: the token itself where it is the assistant's, `NO_LABEL`
        elsewhere; `prompt_length`, the tokens before the last answer; `length`, `truncated` and `unknown`.

    Raises:
        InputError: A chat of several messages without a template, a template by which the answers cannot be told
            apart, or a row of whose last answer nothing is left.
    """
    if not tokenizer.is_fast:
        raise InputError(
            f"the tokenizer of {tokenizer.name_or_path} has no fast version, which knows where tokens are"
        )
    if max_length > tokenizer.model_max_length:
        raise InputError(f"--max_length {max_length}: this model reads at most {tokenizer.model_max_length} tokens")
    encode = partial(encode_chat if use_chat_template and tokenizer.chat_template else encode_plain, tokenizer)
    names = ("input_ids", "labels", "prompt_length", "length", "truncated", "unknown")
    columns: dict[str, list] = {name: [] for name in names}
    for text, row in zip(conversations, ids, strict=True):
        try:
            (input_ids, labels), truncated = _fit(encode, tokenizer, read_messages(text), max_length)
        except InputError as error:
            raise InputError(f"{row}: {error}") from None
        values = (input_ids, labels, _start_of_last(labels), len(input_ids), truncated)
        for name, value in zip(names, (*values, input_ids.count(tokenizer.unk_token_id)), strict=True):
            columns[name].append(value)
    return columns


def encode_plain(tokenizer: PreTrainedTokenizerBase, chat: list[dict[str, Any]]) -> Encoded:
    """Return ids and labels of a prompt and its completion, one behind the other."""
    if len(chat) != 2:
        raise InputError(
            f"a chat of {len(chat)} messages needs a chat template; the tokenizer of {tokenizer.name_or_path} has "
            "none, or --use_chat_template false leaves it out"
        )
    if tokenizer.eos_token_id is None:
        raise InputError(f"the tokenizer of {tokenizer.name_or_path} has no end-of-text token to end a completion by")
    prompt, completion = (tokenizer(message["content"], add_special_tokens=False)["input_ids"] for message in chat)
    prompt = [*first_tokens(tokenizer), *prompt]
    return [*prompt, *completion, tokenizer.eos_token_id], [NO_LABEL] * len(prompt) + [
        *completion,
        tokenizer.eos_token_id,
    ]


def encode_chat(tokenizer: PreTrainedTokenizerBase, chat: list[dict[str, Any]]) -> Encoded:
    """Return ids and labels of a chat as the tokenizer's template writes it.

    Which tokens are the assistant's is told by the template where it marks them (`{% generation %}`). Elsewhere the
    chat is written once up to each answer, as a prompt, and once with it: what the second has more is the answer. That
    both are the beginning of the whole chat, token by token, is checked and not assumed. Of an answer, what follows
    its last special token is left out: a line break that the template puts behind the end of a turn is never written.

    Args:
        tokenizer: With a chat template.
        chat: Whose last message is the assistant's.

    Raises:
        InputError: The template refuses the chat, or writes the same messages in another way once others follow.
    """
    ids, marked = _apply(tokenizer, chat)
    turns = [i for i, message in enumerate(chat) if message["role"] == ASSISTANT]
    prompts = {i: _apply(tokenizer, chat[:i], add_generation_prompt=True)[0] for i in turns}
    labels = [NO_LABEL] * len(ids)
    if any(marked):
        labels = [token if is_answer else NO_LABEL for token, is_answer in zip(ids, marked, strict=True)]
        if ids[: (start := _start_of_last(labels))] != prompts[turns[-1]]:
            raise InputError(
                f"the chat template of {tokenizer.name_or_path} begins an answer otherwise than it asks for one: "
                f"{tokenizer.decode(ids[:start])[-40:]!r}, but {tokenizer.decode(prompts[turns[-1]])[-40:]!r}"
            )
        return ids, labels
    special = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    for i, start in prompts.items():
        end = ids if i == turns[-1] else _apply(tokenizer, chat[: i + 1])[0]
        if ids[: len(start)] != start or ids[: len(end)] != end or len(start) >= len(end):
            raise InputError(
                f"the chat template of {tokenizer.name_or_path} writes message {i + 1} of {len(chat)} otherwise "
                "when it asks for it, or once others follow, so that its tokens cannot be told; use a template with "
                "{% generation %} marks, or rows of one answer"
            )
        last = next((n for n in range(len(end) - 1, len(start) - 1, -1) if ids[n] in special), len(end) - 1)
        labels[len(start) : last + 1] = ids[len(start) : last + 1]
    return ids, labels


def _apply(tokenizer, chat: list[dict[str, Any]], add_generation_prompt: bool = False) -> tuple[list[int], list[int]]:
    """Return the ids that the template makes of a chat, and 1 for each that it marks as the assistant's."""
    marks = GENERATION_MARK.search(tokenizer.get_chat_template())
    options = {"return_assistant_tokens_mask": True} if marks and not add_generation_prompt else {}
    try:
        batch = tokenizer.apply_chat_template(
            chat, add_generation_prompt=add_generation_prompt, tokenize=True, return_dict=True, **options
        )
    except Exception as error:  # a template raises what it likes; jinja has kinds of its own
        roles = ", ".join(message["role"] for message in chat)
        raise InputError(f"the chat template of {tokenizer.name_or_path} refuses {roles}: {one_line(error)}") from None
    return list(batch["input_ids"]), list(batch.get("assistant_masks", ()))


def _fit(encode, tokenizer, chat: list[dict[str, Any]], max_length: int) -> tuple[Encoded, bool]:
    """Encode a chat in at most `max_length` tokens, and say whether something was cut off."""
    ids, labels = encode(chat)
    if len(ids) <= max_length:
        return (ids, labels), False
    system = [message for message in chat[:1] if message["role"] == "system"]
    turns = [chat[i:] for i, message in enumerate(chat) if message["role"] == "user"]
    for later in turns[1:]:
        chat = [*system, *later]
        ids, labels = encode(chat)
        if len(ids) <= max_length:
            return (ids, labels), True
    before = chat[-2]
    ends = [
        end
        for _, end in tokenizer(before["content"], add_special_tokens=False, return_offsets_mapping=True)[
            "offset_mapping"
        ]
    ]
    keep = len(ends)
    while len(ids) > max_length and keep > 1:
        keep = max(keep - (len(ids) - max_length), 1)
        shorter = before | {"content": before["content"][: ends[keep - 1]]}
        ids, labels = encode([*chat[:-2], shorter, chat[-1]])
    start = _start_of_last(labels)
    if start >= max_length:
        raise InputError(
            f"{start} tokens stand before the last answer and cannot be cut, so that --max_length {max_length} leaves "
            "nothing of it; raise --max_length, or leave the row out"
        )
    return (ids[:max_length], labels[:max_length]), True


def _start_of_last(labels: Sequence[int]) -> int:
    """Return where the last run of labels starts."""
    start = len(labels)
    while start and labels[start - 1] == NO_LABEL:
        start -= 1
    while start and labels[start - 1] != NO_LABEL:
        start -= 1
    return start


def end_tokens(dataset: DatasetDict, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the special tokens that end an answer in the training rows, at which generation is to stop.

    Args:
        dataset: As `tokenize_conversations` made it.
        tokenizer: That made it.

    Raises:
        InputError: None does: a model that learns from them would never stop.
    """
    special = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    rows = dataset["train"].select_columns(["labels"])
    last = {next(label for label in reversed(row["labels"]) if label != NO_LABEL) for row in rows}
    if not last & special:  # an answer that was cut off ends in any token
        raise InputError(
            f"no answer of train ends in a special token, but in {tokenizer.decode(sorted(last)[:1])!r}: the model "
            "would learn no end. Use a chat template that ends a turn by a token of its own, or raise --max_length"
        )
    return sorted(last & special)
