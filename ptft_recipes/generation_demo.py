"""The source of demos that write texts; `ptft_recipes.spaces` writes it."""

from typing import Any

PLAIN = """\
model = Auto{kind}.from_pretrained({model})
tokenizer = AutoTokenizer.from_pretrained({model})
"""
ADAPTER = """\
config = AutoConfig.from_pretrained({model})  # of the run
base = Auto{kind}.from_pretrained({base}, config=config)
base.generation_config = GenerationConfig.from_pretrained({model})  # PEFT passes `generate` on to the base
model = PeftModel.from_pretrained(base, {model})
tokenizer = AutoTokenizer.from_pretrained({model})
"""
LANGUAGES = "tokenizer.src_lang, tokenizer.tgt_lang = {languages}\n"
WRITE = '''\
model.eval()


def predict(text):
    """Return what the model writes for a text, by the settings of its generation_config."""
    inputs = tokenizer({prefix}text, truncation=True, max_length={max_length}, return_tensors="pt")
    return tokenizer.batch_decode(model.generate(**inputs), skip_special_tokens=True)[0]


output = gr.Textbox(label="{label}", lines=4)
'''
CHAT = """\
    chat = [{"role": "user", "content": text}]
    ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=True, return_dict=True)["input_ids"]
"""
PROMPT = """\
    first = tokenizer("a")["input_ids"][:1]  # the beginning-of-text token, where the tokenizer puts one there
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    ids = [*(first if first == [tokenizer.bos_token_id] else []), *ids]
"""
COMPLETE = '''\
model.eval()


def predict(text):
    """Return how the model goes on, by the settings of its generation_config."""
{encode}\
    if not 0 < len(ids) < {max_length}:
        raise gr.Error(f"{{len(ids)}} tokens; the model was trained on {max_length}, what it writes included")
    inputs = {{"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids), dtype=torch.long)}}
    written = model.generate(**inputs)[0, len(ids) :]
    return tokenizer.decode(written, skip_special_tokens=True).strip()


output = gr.Textbox(label="Answer", lines=4)
'''


def source(is_decoder: bool, config: dict[str, Any], data: dict[str, Any]) -> str:
    """Return what follows when the model is loaded; what a stranger may have named is a literal in it.

    Args:
        is_decoder: Not an encoder-decoder.
        config: Of the run; its lengths are numbers.
        data: The report of its data.
    """
    if is_decoder:
        return COMPLETE.format(encode=CHAT if data.get("chat_template") else PROMPT, max_length=config["max_length"])
    languages = [str(config[name]) for name in ("source_lang", "target_lang") if config.get(name)]
    head = LANGUAGES.format(languages=", ".join(map(repr, languages))) if len(languages) == 2 else ""
    return head + WRITE.format(
        prefix=f"{str(config['source_prefix'])!r} + " if config.get("source_prefix") else "",
        label="Summary" if config.get("task") == "summarization" else "Translation",
        max_length=config["max_source_length"],
    )
