"""The source of a demo that answers questions; `ptft_recipes.spaces` writes it."""

# What it imports of this library travels with it: ptft-recipes is on no index.
IMPORTED = ("__init__.py", "answer_windows.py", "answers.py", "errors.py")
IMPORTS = """\
from ptft_recipes.answer_windows import token_spans, tokenize_questions
from ptft_recipes.answers import find_answers
from ptft_recipes.errors import InputError"""

PLAIN = """\
model = Auto{kind}.from_pretrained({model})
tokenizer = AutoTokenizer.from_pretrained({model})
"""
ADAPTER = """\
config = AutoConfig.from_pretrained({model})  # of the run
base = Auto{kind}.from_pretrained({base}, config=config)
model = PeftModel.from_pretrained(base, {model})
tokenizer = AutoTokenizer.from_pretrained({model})
"""
ANSWER = '''\
model.eval()
settings = model.config.question_answering


def predict(question, text):
    """Return the answer, its probability, and where it stands; a long text is read in windows, as in training."""
    lengths = {"max_length": settings["max_length"], "stride": settings["stride"]}
    try:
        windows = tokenize_questions(tokenizer, [question], [text], [0], **lengths)
    except InputError as error:
        raise gr.Error(str(error)) from None
    read = {name: windows[name] for name in tokenizer.model_input_names if name in windows}
    with torch.no_grad():
        output = model(**tokenizer.pad(read, return_tensors="pt"))
    logits = torch.stack([output.start_logits, output.end_logits], dim=-1).float().numpy()
    places = [
        {"first": first, "begin": begin, "tokens": tokens}
        for first, begin, tokens in zip(windows["first"], windows["begin"], windows["tokens"])
    ]
    longest = settings["max_answer_length"]
    found = find_answers(logits, places, token_spans(tokenizer, text), n_best=1, max_answer_length=longest)
    best = found.choose(settings["no_answer_threshold"])
    if best is None:
        return "(no answer)", found.no_answer, {"text": text, "entities": []}
    start, end, probability = best
    return text[start:end], probability, {"text": text, "entities": [{"entity": "answer", "start": start, "end": end}]}


output = [gr.Textbox(label="Answer"), gr.Number(label="Probability"), gr.HighlightedText(label="In the text")]
'''
