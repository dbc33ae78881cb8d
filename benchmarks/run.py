"""How fast the recipes are beside plain transformers: one command, one table.

    python benchmarks/run.py                                        all workloads, about 40 minutes on 2 cores
    ... --workloads cls-short mlm-128 --turns 7                     some of them, more often
    ... --output benchmarks/results/mine                            writes mine.md and mine.json

Each workload has up to three contenders, which are real runs in processes of their own: `defaults`, a plain Trainer as
the well-known scripts set it up; `flags`, the same with the best of Trainer's own flags; and the recipe. They take
turns of a few steps, so that a machine that is busy for a while is busy for all of them: what counts is the ratio of
two turns side by side, as median and range over the turns. Tokens are those that count; padding is not among them.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

import torch
import transformers
from datasets import Dataset, disable_progress_bars
from transformers import AutoConfig, AutoModelForMaskedLM, AutoTokenizer, TrainingArguments

from ptft_recipes.acceleration import has_native_bf16
from ptft_recipes.demo import dataset_rows, model_path
from ptft_recipes.provenance import describe_environment
from ptft_recipes.tokenization import tokenize

CONTENDER = Path(__file__).parent / "contender.py"
ALL = ("defaults", "flags", "recipe")
SHORT = {"task": "cls", "data": "short", "rows": 768, "length": 128, "batch": 32}
# Steps in a turn of each contender. Where batches are by length it is an epoch: the same rows for both.
WORKLOADS = {
    "cls-short": SHORT | {"steps": (2, 24, 24)},
    "cls-long": SHORT | {"data": "long", "rows": 384, "steps": (2, 12, 12)},
    "mlm-128": {"task": "mlm", "length": 128, "batch": 16, "steps": (2, 2, 4)},
    "mlm-512": {"task": "mlm", "length": 512, "batch": 4, "steps": (2, 2, 4)},
    "lora-short": SHORT | {"steps": (2, 24, 24), "flags": "lora"},
    "probe-short": SHORT | {"steps": (3, 24, 240), "flags": "linear_probe"},
    "evaluate-short": SHORT | {"steps": (1, 1, 1), "evaluate": True},
}
for family in ("bert", "roberta", "modernbert"):
    for size in ("small", "base"):
        if (family, size) != ("bert", "small"):  # MiniLM, above
            model = {"model": f"{family}-{size}"}
            # An epoch each of those that batch by length; small batches, or one step would take half a minute.
            few = {"rows": 48, "batch": 8, "steps": (1, 6, 6)} if size == "base" else {"steps": (1, 12, 12)}
            WORKLOADS[f"cls-long-{family}-{size}"] = WORKLOADS["cls-long"] | model | few
            WORKLOADS[f"mlm-128-{family}-{size}"] = WORKLOADS["mlm-128"] | model | {"steps": (1, 1, 2)}
# How the cost grows: the recipe alone, against itself.
MLM = {"task": "mlm", "length": 128, "batch": 16, "steps": (4,)}
GROWTH = {
    **{f"length-{n}": MLM | {"length": n, "batch": 2048 // n} for n in (64, 128, 256, 512)},
    **{f"batch-{n}": MLM | {"batch": n} for n in (4, 8, 16, 32)},
    **{f"model-{size}": MLM | {"model": f"bert-{size}"} for size in ("mini", "small", "base")},
    **{f"rows-{n}": SHORT | {"rows": n, "steps": (1,), "evaluate": True} for n in (500, 1000, 2000)},
}
SIZES = {"mini": (256, 4, 4), "small": (384, 6, 12), "base": (768, 12, 12)}  # hidden size, layers, heads


class Contender:
    """A process that waits for its turn."""

    def __init__(self, folder: Path, name: str, job: dict):  # noqa: D107
        self.name, self.pipe, self.log = name, folder / f"{name}.pipe", folder / f"{name}.log"
        os.mkfifo(self.pipe)
        command = [sys.executable, str(CONTENDER), str(self.pipe), json.dumps(job)]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=self.log.open("w"),
            stderr=subprocess.STDOUT,
            text=True,
            cwd=CONTENDER.parents[1],
            env=os.environ | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(folder / "cache" / name)},
        )
        self.reports = self.pipe.open()
        self.first = self._report()

    def _report(self) -> dict:
        line = self.reports.readline()
        if not line:
            sys.exit(f"{self.name} ended: {self.log.read_text()[-2000:]}")
        return json.loads(line)

    def turn(self, steps: int) -> dict:
        """Let it do some steps, and return what it did."""
        print(steps, file=self.process.stdin, flush=True)
        return self._report()

    def stop(self) -> None:
        """End the process."""
        print("stop", file=self.process.stdin, flush=True)
        self.process.wait()


def write_data(folder: Path) -> dict[str, dict[str, str]]:
    """Write the texts of the demo as files: short ones, long ones (several sentences), and whole papers."""
    rows = [row for split in dataset_rows("demo/aclsum_roles").values() for row in split]
    random.Random(0).shuffle(rows)
    long, texts = [], iter(rows)
    for row in texts:  # 1 to 6 sentences
        more = [next(texts, row)["text"] for _ in range(len(long) % 6)]
        long.append({"text": " ".join([row["text"], *more]), "label": row["label"]})
    papers = [row["text"] for row in dataset_rows("demo/aclsum_papers")["train"]]
    files = {}
    sizes = {workload["rows"] for workload in (WORKLOADS | GROWTH).values() if "rows" in workload}
    kinds = {f"{kind}-{n}": texts[:n] for kind, texts in (("short", rows), ("long", long)) for n in sizes}
    for name, kept in kinds.items():
        files[name] = {}
        for split, part in (("train", kept), ("validation", kept[:64]), ("test", kept[:2000])):
            path = folder / f"{name}-{split}.jsonl"
            path.write_text("".join(json.dumps({"text": row["text"], "label": row["label"]}) + "\n" for row in part))
            files[name][f"{split}_file"] = str(path)
    files["papers"] = {}
    for split, part in (("train", papers[:-2]), ("validation", [papers[-2][:4000]]), ("test", [papers[-1][:4000]])):
        path = folder / f"papers-{split}.txt"
        path.write_text("\n\n".join(" ".join(text.split()) for text in part) + "\n")
        files["papers"][f"{split}_file"] = str(path)
    return files


def build_model(folder: Path, name: str) -> str:
    """Save new weights of a shape such as `roberta-base`, with MiniLM's tokenizer, and return the folder."""
    if name == "demo/minilm" or (folder / name).exists():
        return name if name == "demo/minilm" else str(folder / name)
    family, size = name.split("-")
    hidden, layers, heads = SIZES[size]
    tokenizer = AutoTokenizer.from_pretrained(model_path("demo/minilm"))
    config = AutoConfig.for_model(
        family, vocab_size=len(tokenizer), hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads,
        intermediate_size=round(1.5 * hidden) if family == "modernbert" else 4 * hidden, max_position_embeddings=514,
        pad_token_id=0, bos_token_id=101, eos_token_id=102, cls_token_id=101, sep_token_id=102, type_vocab_size=2,
    )  # fmt: skip
    torch.manual_seed(0)
    AutoModelForMaskedLM.from_config(config).save_pretrained(folder / name)
    tokenizer.save_pretrained(folder / name)
    return str(folder / name)


def flop_per_token(job: dict, source: str, fill: float) -> float:
    """Return the FLOP that a token needs, forward and backward: 6 per weight of a matrix, and attention's.

    The vocabulary head counts for masked tokens only, whatever a contender computes: it is what the task needs.

    Source: Chowdhery et al., PaLM (2022), appendix B.
    """
    config = AutoConfig.from_pretrained(model_path(source) if source.startswith("demo/") else source)
    hidden, layers = config.hidden_size, config.num_hidden_layers
    gated = 3 if config.model_type == "modernbert" else 2
    weights = layers * (4 * hidden**2 + gated * hidden * config.intermediate_size)
    if job["task"] == "mlm":
        weights += 0.15 * (hidden**2 + hidden * config.vocab_size)
    return 6 * weights + 12 * layers * hidden * job["length"] * fill


def measure(name: str, workload: dict, turns: int, files: dict, folder: Path) -> list[dict]:
    """Let the contenders of a workload take turns, and return a row for each of them."""
    job = {"task": workload["task"], "length": workload["length"], "batch": workload["batch"]}
    job |= {"evaluate": workload.get("evaluate", False), "bf16": has_native_bf16()}
    job["model"] = build_model(folder, workload.get("model", "demo/minilm"))
    data = (
        "papers" if job["task"] == "mlm" else workload["data"] + (f"-{workload['rows']}" if "rows" in workload else "")
    )
    contenders = []
    for who in ALL if len(workload["steps"]) == len(ALL) else ALL[-1:]:
        flags = {"lora": ["--tuning=lora", "--tuning_kwargs", "r=8", "lora_alpha=16", "target_modules=all-linear"]}
        flags["linear_probe"] = ["--tuning=linear_probe"]
        own = flags.get(workload.get("flags"), []) if who == "recipe" else [workload.get("flags")]
        place = Path(tempfile.mkdtemp(dir=folder))
        split = "train_file" if who == "recipe" or not job["evaluate"] else "test_file"
        own_files = files[data] if who == "recipe" else {"train_file": files[data][split]}
        contenders.append(Contender(place, who, job | {"who": who, "flags": own, "files": own_files}))
    for contender, steps in zip(contenders, workload["steps"], strict=True):
        contender.turn(steps)  # warm
    gemm = Contender(Path(tempfile.mkdtemp(dir=folder)), "gemm", {"who": "gemm"})
    reports, peaks = {contender.name: [] for contender in contenders}, []
    for turn in range(turns):
        peaks.append(gemm.turn(1))
        for contender, steps in zip(contenders, workload["steps"], strict=True):
            reports[contender.name].append(contender.turn(steps))
        print(f"\r{name}: turn {turn + 1} of {turns}", end="", file=sys.stderr, flush=True)
    rows = []
    for contender in contenders:
        done = reports[contender.name]
        rate = [report["rows"] / report["seconds"] for report in done]
        tokens = [report["tokens"] / report["seconds"] for report in done]
        row = {"workload": name, "contender": contender.name, "samples_per_second": rate, "tokens_per_second": tokens}
        row |= {"seconds_to_first_step": contender.first["since_start"], "peak_gib": done[-1]["peak_gib"]}
        if any(tokens) and not workload.get("flags") and not job["evaluate"]:
            fill = statistics.mean(r["tokens"] / r["rows"] for r in done) / job["length"]
            kind = "tokens" if contender.name != "defaults" and job["bf16"] else "rows"
            flop = flop_per_token(job, job["model"], fill)
            row["mfu"] = [flop * rate / peak[kind] for rate, peak in zip(tokens, peaks, strict=True)]
        rows.append(row)
        contender.stop()
    for row in rows:
        # Of samples: the contenders draw from the same rows, and a probe's features are no tokens.
        for other in rows:
            pairs = zip(row["samples_per_second"], other["samples_per_second"], strict=True)
            row[f"times_{other['contender']}"] = [mine / theirs for mine, theirs in pairs]
    gemm.stop()
    print(file=sys.stderr)
    peak = {
        kind: statistics.median(report[of] for report in peaks) for kind, of in (("bf16", "tokens"), ("fp32", "rows"))
    }
    return [row | {"gemm_peak": peak} for row in rows]


def format_table(rows: list[dict]) -> str:
    """Return the rows as a Markdown table."""

    def spread(values: list[float], digits: int = 2) -> str:
        middle = statistics.median(values)
        return f"{middle:.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"

    head = [
        "workload",
        "contender",
        "samples/s",
        "tokens/s",
        "times defaults",
        "times flags",
        "MFU",
        "first step",
        "peak",
    ]
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * 2}{'---:|' * 7}"]
    for row in rows:
        tokens = statistics.median(row["tokens_per_second"])
        times = [spread(row[key]) if key in row else "" for key in ("times_defaults", "times_flags")]
        cells = [row["workload"], row["contender"], f"{statistics.median(row['samples_per_second']):.1f}"]
        cells += [
            f"{tokens:,.0f}" if tokens else "",
            *times,
            f"{statistics.median(row['mfu']):.0%}" if "mfu" in row else "",
        ]
        cells += [f"{row['seconds_to_first_step']:.1f} s", f"{row['peak_gib']:.1f} GiB"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def measure_tokenization(folder: Path) -> dict[str, float]:
    """Measure the recipes' tokenization against the tokenizer alone on all cores, and a second start."""
    tokenizer = AutoTokenizer.from_pretrained(model_path("demo/minilm"))
    texts = [row["text"] for split in dataset_rows("demo/aclsum_roles").values() for row in split] * 8
    Dataset.from_dict({"text": texts}).save_to_disk(folder / "texts")
    rows = Dataset.load_from_disk(folder / "texts")
    seconds = {}
    for name in ("alone", "recipe", "again"):
        start = time.perf_counter()
        if name == "alone":
            for place in range(0, len(texts), 1000):
                tokenizer(texts[place : place + 1000], truncation=True, max_length=128)
        else:
            rows.map(tokenize_rows, batched=True, fn_kwargs={"tokenizer": tokenizer})
        seconds[name] = time.perf_counter() - start
    return {"rows": len(texts), **seconds}


def tokenize_rows(rows, tokenizer):
    """Tokenize a batch of rows as the recipes do."""
    return tokenize(tokenizer, rows["text"], max_length=128)


def describe(rows: list[dict], tokenization: dict[str, float], turns: int) -> list[str]:
    """Return what a reader needs to trust or repeat the table."""
    recipe = CONTENDER.parents[1] / "recipes" / "finetune_cls.py"
    start = time.perf_counter()
    subprocess.run([sys.executable, str(recipe), "--help"], stdout=subprocess.DEVNULL, check=True)
    seconds_of_help = time.perf_counter() - start
    use_cpu = not torch.cuda.is_available()
    run = describe_environment(__file__, TrainingArguments(tempfile.gettempdir(), use_cpu=use_cpu))
    versions = ", ".join(f"{name} {number}" for name, number in run["versions"].items())
    peaks = {kind: statistics.median(row["gemm_peak"][kind] for row in rows) / 1e9 for kind in ("fp32", "bf16")}
    return [
        f"{date.today()}, commit {(run['commit'] or 'unknown')[:7]}, {run['hardware']}, {torch.get_num_threads()} "
        f"thread(s), {'bfloat16' if has_native_bf16() else 'float32'} the fastest precision; {versions}.",
        f"Matrix products: {peaks['fp32']:.0f} GFLOP/s in float32, {peaks['bf16']:.0f} in bfloat16 (MFU is measured "
        f"against the one that a contender computes in). `--help`: {seconds_of_help:.1f} s.",
        f"Tokenization of {tokenization['rows']:,} sentences: {tokenization['recipe']:.1f} s, the tokenizer alone "
        f"{tokenization['alone']:.1f} s, a second start {tokenization['again']:.1f} s.",
        f"Medians of {turns} turns side by side; in brackets the lowest and highest.",
    ]


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = [*WORKLOADS, *GROWTH]
    parser.add_argument("--workloads", nargs="+", choices=known, default=known, metavar="NAME", help=", ".join(known))
    parser.add_argument("--turns", type=int, default=5, help="per contender, after one that warms up")
    parser.add_argument("--output", help="writes OUTPUT.md and OUTPUT.json")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder, rows = Path(name), []
        tokenization = measure_tokenization(folder)
        files = write_data(folder)
        for workload in args.workloads:
            new = measure(workload, (WORKLOADS | GROWTH)[workload], args.turns, files, folder)
            rows += new
            print(format_table(new), flush=True)
            notes = describe(rows, tokenization, args.turns) if workload == args.workloads[-1] else []
            if args.output:  # after each workload: what was measured is kept
                Path(f"{args.output}.md").write_text("\n\n".join([*notes, format_table(rows)]) + "\n")
                Path(f"{args.output}.json").write_text(json.dumps({"notes": notes, "rows": rows}, indent=1) + "\n")
    print("\n" + "\n\n".join([*notes, format_table(rows)]))


if __name__ == "__main__":
    transformers.logging.set_verbosity_error()
    disable_progress_bars()
    main()
