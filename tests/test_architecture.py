"""Directions: recipes use the library, never back; inside the library only the edges listed here."""

import ast
import subprocess
import sys

from conftest import ROOT

EDGES = {
    "acceleration": {"cpu_kernels", "errors"},
    "adapters": {"architectures", "bottleneck", "embeddings", "errors"},
    "answer_metrics": set(),
    "answer_windows": {"errors"},
    "answers": set(),
    "architectures": {"errors"},
    "augmentation": {"adapters", "errors", "rewriting", "tag_schemes", "word_edits"},
    "batch_augmentation": {"augmentation", "errors", "tuning"},
    "batch_sizes": {"errors"},
    "blocks": {"errors"},
    "bottleneck": {"architectures", "errors"},
    "caching": set(),
    "calibration": {"labels", "metrics"},
    "card": {
        "card_metadata", "card_usage", "errors", "evaluation", "labels", "limitations", "markdown", "redaction",
        "reporting",
    },
    "card_metadata": {"errors", "evaluation", "modeling", "redaction"},
    "card_usage": {"labels", "markdown", "redaction", "tag_schemes"},
    "causal": {"errors", "infilling", "objectives", "perplexity", "pretraining", "sparse_head", "training", "tuning"},
    "causal_blocks": {"errors"},
    "checkpoint_report": {
        "calibration", "checkpoint_tasks", "errors", "evaluation", "labels", "metrics", "perplexity", "perturbations",
        "provenance", "reporting", "significance", "slices", "splits", "trained_checkpoints", "tuning",
    },
    "checkpoint_tasks": {
        "blocks", "checkpoint_texts", "collators", "data", "errors", "evaluation", "metrics", "mistakes", "objectives",
        "perplexity", "perturbations", "pretraining", "tagged_data", "tagging", "tokenization", "trained_checkpoints",
        "training", "windows",
    },
    "checkpoint_texts": {
        "answer_windows", "causal", "completion_scoring", "completions", "conversations", "errors", "generation",
        "languages", "mistakes", "objectives", "perplexity", "perturbations", "question_answering", "question_data",
        "samples", "text_metrics", "text_pairs", "trained_checkpoints", "windows",
    },
    "checkpoint_uploads": {"checkpoints", "errors", "hub", "outgoing"},
    "checkpoints": set(),
    "cli": {"acceleration", "batch_sizes", "config_files", "connections", "errors", "interruption", "reporting"},
    "collators": {"blocks", "errors", "modeling"},
    "commands": {"data", "dataset_push", "doctor", "errors", "hub", "hub_client", "planning", "shipped", "spaces"},
    "comparison": {"errors", "finished_runs", "significance", "study_files"},
    "comparison_tables": {"metrics", "reporting"},
    "completion_scoring": {
        "conversations", "errors", "evaluation", "generation_kwargs", "perplexity", "sharding", "text_metrics",
    },
    "completions": {"causal_blocks", "conversations", "errors"},
    "config_files": {"errors"},
    "conll": {"errors"},
    "connections": {"errors"},
    "conversations": {"data", "errors", "folds", "reading", "splits"},
    "corpora": {"blocks", "data", "errors", "streaming"},
    "cpu_kernels": set(),
    "data": {"demo", "errors", "folds", "labels", "reading", "safe_files", "splits"},
    "dataset_push": {"data", "errors", "hub", "labels", "markdown", "redaction", "tagged_data"},
    "demo": {"demo_smollm", "demo_translation", "errors"},
    "demo_smollm": {"errors"},
    "demo_translation": {"errors"},
    "doctor": {"acceleration", "errors", "processes"},
    "electra": {"errors", "modeling", "sparse_head"},
    "embeddings": {"errors", "modeling"},
    "energy": set(),
    "ensembles": {"data", "errors", "evaluation", "finished_runs", "labels", "metrics", "reporting", "significance"},
    "errors": set(),
    "evaluate_modules": {"metrics"},
    "evaluation": {"energy", "labels", "metrics", "perplexity", "provenance", "reporting", "significance"},
    "features": set(),
    "fertility": {"card", "evaluation", "provenance", "reporting", "significance"},
    "finished_runs": {
        "answer_metrics", "errors", "evaluation", "labels", "metrics", "perplexity", "resuming", "tag_metrics",
        "text_metrics",
    },
    "folds": {"errors"},
    "gap_filling": {"collators", "errors", "gaps", "modeling", "objectives", "perplexity", "pretraining", "tuning"},
    "gap_tokens": {"blocks", "modeling"},
    "gaps": {"blocks", "errors", "gap_tokens"},
    "generators": set(),
    "generation": {"errors", "evaluation", "generation_kwargs", "samples", "text_metrics", "training"},
    "generation_demo": set(),
    "generation_kwargs": {"errors"},
    "hub": {"card", "errors", "hub_client", "outgoing"},
    "hub_client": set(),
    "hyperparameter_search": {"errors", "evaluation", "logs", "reporting", "search_report", "search_space"},
    "infilling": {"causal_blocks", "embeddings", "errors", "tuning"},
    "interruption": {"errors"},
    "labels": {"errors"},
    "languages": {"errors"},
    "launching": {"errors", "interruption", "studies"},
    "limitations": {"evaluation", "markdown", "tag_schemes"},
    "live_tensors": set(),
    "logs": set(),
    "markdown": {"errors"},
    "memory": {"errors", "generators", "live_tensors", "provenance"},
    "merging": {"errors"},
    "metrics": {"labels"},
    "mistakes": {"labels", "metrics", "reporting"},
    "modeling": {"demo", "errors"},
    "objectives": {"errors", "labels"},
    "optimization": {"errors"},
    "outgoing": {"errors", "redaction", "reporting"},
    "perplexity": set(),
    "perturbations": set(),
    "planning": {"errors", "finished_runs", "launching", "shipped", "significance"},
    "pooling": {"errors", "evaluation", "finished_runs", "reporting"},
    "pretraining": {
        "collators", "embeddings", "errors", "modeling", "perplexity", "sampling", "sharding", "sparse_head",
        "streaming", "training", "tuning",
    },
    "processes": {"errors", "launching"},
    "provenance": {"acceleration", "redaction"},
    "question_answering": {"answer_metrics", "answer_windows", "answers", "errors", "evaluation", "training"},
    "question_data": {"data", "errors", "folds", "splits"},
    "question_demo": set(),
    "reading": {"conll", "errors", "safe_files", "squad"},
    "redaction": set(),
    "regularization": {"errors", "labels"},
    "repeated_rows": set(),
    "replaced_tokens": {"collators", "electra", "perplexity", "pretraining", "sharding"},
    "reporting": set(),
    "resampling": set(),
    "resources": {"errors"},
    "resuming": {"batch_sizes", "checkpoints", "errors", "reporting"},
    "rewriting": {"errors", "modeling", "sparse_head", "word_edits"},
    "safe_files": {"errors"},
    "samples": {"errors", "markdown", "reporting"},
    "sampling": {"acceleration"},
    "saved_adapters": {"adapters", "embeddings", "errors", "safe_files"},
    "sealed_trainer": {
        "checkpoints", "errors", "interruption", "modeling", "reporting", "resources", "resuming", "sharding",
    },
    "search_report": {"reporting", "search_space"},
    "search_space": {"cli", "data", "errors", "metrics", "shipped", "yaml_files"},
    "sentence_pairs": {"blocks", "collators", "errors"},
    "sentence_prediction": {"errors", "objectives", "perplexity", "pretraining", "sparse_head"},
    "sharding": {"errors", "optimization"},
    "shipped": {"errors"},
    "significance": {"resampling"},
    "slices": set(),
    "smaller_batches": {"batch_sizes", "errors", "generators", "resources"},
    "soups": {
        "card", "data", "ensembles", "errors", "evaluation", "finished_runs", "merging", "modeling", "provenance",
        "reporting", "trained_checkpoints",
    },
    "spaces": {"demo", "errors", "generation_demo", "outgoing", "question_demo", "tag_schemes"},
    "sparse_head": set(),
    "splits": {"caching", "errors", "folds"},
    "squad": {"errors"},
    "streaming": {"data", "errors", "reading", "safe_files"},
    "studies": {"errors", "evaluation", "reporting", "resuming", "study_files"},
    "study_files": {"errors", "shipped", "yaml_files"},
    "study_page": {"comparison", "comparison_tables", "metrics", "reporting", "studies", "study_files"},
    "tag_metrics": {"tag_schemes"},
    "tag_schemes": set(),
    "tagged_data": {"data", "errors", "folds", "splits", "tag_schemes"},
    "tagging": {"evaluation", "metrics", "reporting", "tag_metrics", "tag_schemes", "training", "windows"},
    "text_metrics": {"errors"},
    "text_pairs": {"data", "errors", "folds", "reading", "splits", "tokenization"},
    "tokenization": {"errors"},
    "trained_checkpoints": {"demo", "errors", "labels", "modeling", "saved_adapters"},
    "throughput": {"acceleration", "cli", "studies"},
    "training": {
        "acceleration", "adapters", "batch_augmentation", "batch_sizes", "checkpoint_uploads", "connections", "errors",
        "features", "hub", "logs", "memory", "merging", "metrics", "modeling", "optimization", "provenance",
        "regularization", "repeated_rows", "resuming", "sealed_trainer", "sharding", "smaller_batches", "tuning",
    },
    "tuning": {"adapters", "errors", "merging", "optimization", "saved_adapters"},
    "vocabulary": {"errors"},
    "windows": {"errors"},
    "word_edits": {"errors", "perturbations", "safe_files"},
    "yaml_files": {"config_files", "errors", "safe_files"},
}  # fmt: skip


def imported(path) -> set[str]:
    """Return every module that a file imports, at any depth of the code."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.add(node.module)
            if node.module == "ptft_recipes":
                names |= {f"ptft_recipes.{alias.name}" for alias in node.names}
    return names


def test_the_edges_inside_the_library_are_exactly_these():
    found = {}
    for path in sorted((ROOT / "ptft_recipes").glob("*.py")):
        if path.stem != "__init__":
            edges = {name.split(".")[1] for name in imported(path) if name.startswith("ptft_recipes.")}
            found[path.stem] = edges
    assert found == EDGES


def test_the_library_never_imports_a_recipe():
    files = sorted((ROOT / "ptft_recipes").rglob("*.py"))
    assert len(files) > 15
    assert not [path for path in files for name in imported(path) if name.split(".")[0] == "recipes"]


def test_a_module_is_short():
    lengths = {path.stem: len(path.read_text().splitlines()) for path in (ROOT / "ptft_recipes").glob("*.py")}
    assert {name: length for name, length in lengths.items() if length > 320} == {}


def heavy_imports(module: str) -> set[str]:
    code = f"import sys, {module}; print(*(name for name in sys.modules if '.' not in name))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return {"torch", "transformers", "datasets", "evaluate", "peft", "matplotlib"} & set(done.stdout.split())


def test_importing_the_package_costs_nothing():
    assert heavy_imports("ptft_recipes") == set()


def test_the_command_starts_without_deep_learning():
    assert heavy_imports("ptft_recipes.commands") == set()


def test_statistics_need_no_deep_learning():
    assert heavy_imports("ptft_recipes.significance") == set()
    assert "transformers" not in heavy_imports("ptft_recipes.metrics")
