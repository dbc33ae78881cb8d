"""Labels are on the assistant's tokens and on no others, whatever the template; nothing is cut off in silence."""

import json

import pytest
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from ptft_recipes.completions import NO_LABEL, encode_chat, end_tokens, tokenize_conversations
from ptft_recipes.errors import InputError

CHATML = (  # SmolLM2's
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou help.<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
MARKED = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# As of models that think: the thoughts of an earlier answer are left out once another message follows.
FORGETS = CHATML.replace(
    "message['content']", "(message['content'] if loop.last else message['content'].split('#')[-1])"
)
CHAT = [
    {"role": "user", "content": "Hello <assistant>?"},
    {"role": "assistant", "content": "thought#Yes."},
    {"role": "user", "content": "More, ünd  2!"},
    {"role": "assistant", "content": "No more."},
]


@pytest.fixture
def byte_tokenizer():
    """A tokenizer whose tokens are bytes and ChatML's special tokens: every border in a text is one of tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({character: i for i, character in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>", model_max_length=1000)
    fast.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    fast.chat_template = CHATML
    return fast


def labelled(tokenizer, ids, labels) -> list[str]:
    """Return the runs of labels as text, after checking that a label is its token."""
    runs, last = [], False
    for token, label in zip(ids, labels, strict=True):
        assert label in (token, NO_LABEL)
        if label != NO_LABEL:
            runs = [*runs[:-1], [*runs[-1], token]] if last else [*runs, [token]]
        last = label != NO_LABEL
    return [tokenizer.decode(run) for run in runs]


@pytest.mark.parametrize("template", [CHATML, MARKED])
def test_every_answer_and_its_end_has_labels_and_nothing_else_has(byte_tokenizer, template):
    byte_tokenizer.chat_template = template
    ids, labels = encode_chat(byte_tokenizer, CHAT)
    text = byte_tokenizer.apply_chat_template(CHAT, tokenize=False)
    assert byte_tokenizer.decode(ids) == text
    assert labelled(byte_tokenizer, ids, labels) == ["thought#Yes.<|im_end|>", "No more.<|im_end|>"]
    assert ("You help." in text) == (template == CHATML)


@pytest.mark.parametrize("template", [CHATML, MARKED])
def test_the_prompt_of_generation_is_what_the_template_asks_with(byte_tokenizer, template):
    byte_tokenizer.chat_template = template
    rows = tokenize_conversations(byte_tokenizer, [json.dumps(CHAT)], ["a"], 300)
    prompt = rows["input_ids"][0][: rows["prompt_length"][0]]
    asked = byte_tokenizer.apply_chat_template(CHAT[:-1], tokenize=False, add_generation_prompt=True)
    assert byte_tokenizer.decode(prompt) == asked


def test_a_template_that_rewrites_earlier_turns_is_refused_but_for_single_answers(byte_tokenizer):
    byte_tokenizer.chat_template = FORGETS
    with pytest.raises(InputError, match=r"row 7: the chat template of .* writes message 2 of 4 otherwise"):
        tokenize_conversations(byte_tokenizer, [json.dumps(CHAT)], ["row 7"], 300)
    ids, labels = encode_chat(byte_tokenizer, CHAT[:2])
    assert labelled(byte_tokenizer, ids, labels) == ["thought#Yes.<|im_end|>"]


def test_a_template_that_asks_otherwise_than_it_answers_is_refused(byte_tokenizer):
    for template, message in ((MARKED, "begins an answer otherwise"), (CHATML, "writes message 2 of 2 otherwise")):
        byte_tokenizer.chat_template = template.replace("'<|im_start|>assistant\n' }", "'<|im_start|>assistant:' }")
        with pytest.raises(InputError, match=message):
            encode_chat(byte_tokenizer, CHAT[:2])
    byte_tokenizer.chat_template = "{{ raise_exception('no such role') }}"
    with pytest.raises(InputError, match="refuses user, assistant: no such role"):
        encode_chat(byte_tokenizer, CHAT[:2])


def test_without_a_template_the_completion_and_its_end_have_labels(byte_tokenizer):
    byte_tokenizer.chat_template = None
    row = json.dumps([{"role": "user", "content": "2+2="}, {"role": "assistant", "content": "4"}])
    rows = tokenize_conversations(byte_tokenizer, [row], ["a"], 300)
    assert byte_tokenizer.decode(rows["input_ids"][0]) == "2+2=4<|endoftext|>"
    assert labelled(byte_tokenizer, rows["input_ids"][0], rows["labels"][0]) == ["4<|endoftext|>"]
    assert rows["prompt_length"] == [4]
    with pytest.raises(InputError, match="a chat of 4 messages needs a chat template; the tokenizer of  has none"):
        tokenize_conversations(byte_tokenizer, [json.dumps(CHAT)], ["a"], 300)


def test_a_long_row_loses_the_end_of_its_last_prompt_and_keeps_its_answer(byte_tokenizer):
    long = [{"role": "user", "content": "word " * 60}, CHAT[3]]
    whole = len(encode_chat(byte_tokenizer, long)[0])
    rows = tokenize_conversations(byte_tokenizer, [json.dumps(long)] * 2, ["a", "b"], whole - 40)
    assert rows["truncated"] == [True, True]
    assert rows["length"] == [whole - 40] * 2
    text = byte_tokenizer.decode(rows["input_ids"][0])
    assert text.endswith("<|im_start|>assistant\nNo more.<|im_end|>\n")
    assert text.count("word") == 52
    assert labelled(byte_tokenizer, rows["input_ids"][0], rows["labels"][0])[-1] == "No more.<|im_end|>"


def test_a_long_chat_loses_its_first_turns_and_keeps_what_the_system_said(byte_tokenizer):
    system = {"role": "system", "content": "Be short."}
    chat = [system, *CHAT[:2], *CHAT[:2], *CHAT[2:]]
    want = encode_chat(byte_tokenizer, [system, *CHAT])
    rows = tokenize_conversations(byte_tokenizer, [json.dumps(chat)] * 2, ["a", "b"], len(want[0]))
    assert (rows["input_ids"][0], rows["labels"][0]) == want
    assert rows["truncated"] == [True, True]
    rows = tokenize_conversations(byte_tokenizer, [json.dumps(chat)], ["a"], len(want[0]) - 1)
    assert (rows["input_ids"][0], rows["labels"][0]) == encode_chat(byte_tokenizer, [system, *CHAT[2:]])


def test_a_long_answer_is_cut_and_one_of_which_nothing_is_left_is_refused(byte_tokenizer):
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "a" * 100}]
    start = len(
        byte_tokenizer.apply_chat_template([chat[0] | {"content": "H"}], add_generation_prompt=True)["input_ids"]
    )
    rows = tokenize_conversations(byte_tokenizer, [json.dumps(chat)], ["a"], start + 10)
    assert labelled(byte_tokenizer, rows["input_ids"][0], rows["labels"][0]) == ["a" * 10]
    assert rows["truncated"] == [True]
    with pytest.raises(InputError, match=rf"train.csv:3: {start} tokens stand before the last answer"):
        tokenize_conversations(byte_tokenizer, [json.dumps(chat)], ["train.csv:3"], start)


def test_generation_stops_at_the_token_that_ends_the_answers(byte_tokenizer):
    dataset = {"train": Dataset.from_dict(tokenize_conversations(byte_tokenizer, [json.dumps(CHAT)], ["a"], 300))}
    assert byte_tokenizer.convert_ids_to_tokens(end_tokens(dataset, byte_tokenizer)) == ["<|im_end|>"]
    byte_tokenizer.chat_template = CHATML.replace("<|im_end|>", "|").replace("<|im_start|>", "|")
    dataset = {"train": Dataset.from_dict(tokenize_conversations(byte_tokenizer, [json.dumps(CHAT)], ["a"], 300))}
    with pytest.raises(InputError, match="no answer of train ends in a special token"):
        end_tokens(dataset, byte_tokenizer)


def test_rows_of_which_the_prompt_was_cut_tell_how_answers_end_and_cut_answers_do_not(byte_tokenizer):
    chat = [{"role": "user", "content": "Hello " * 9}, {"role": "assistant", "content": "Yes, and no."}]
    shortest = len(encode_chat(byte_tokenizer, [{"role": "user", "content": "H"}, chat[1]])[0])
    of_prompt, of_answer = (
        {"train": Dataset.from_dict(tokenize_conversations(byte_tokenizer, [json.dumps(chat)], ["a"], length))}
        for length in (shortest + 9, shortest - 5)
    )
    assert of_prompt["train"]["truncated"] == of_answer["train"]["truncated"] == [True]
    assert byte_tokenizer.convert_ids_to_tokens(end_tokens(of_prompt, byte_tokenizer)) == ["<|im_end|>"]
    with pytest.raises(InputError, match=r"would learn no end\. .*raise --max_length"):
        end_tokens(of_answer, byte_tokenizer)
