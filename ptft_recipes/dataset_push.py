"""Prepared splits as a data set of the Hub."""

import io
from typing import Any

from datasets import DatasetDict
from huggingface_hub import DatasetCardData

from ptft_recipes.errors import PushError, one_line
from ptft_recipes.hub import check_login, make_repository, push_files
from ptft_recipes.outgoing import without_local_paths


def push_dataset(raw: DatasetDict, report: dict[str, Any], repo_id: str, private: bool = True) -> str:
    """Push splits as the recipes would train on them: cut, checked, with their labels; and a card that counts them.

    Pushing the same splits again makes no commit.

    Args:
        raw: As `load_splits` or `load_tagged_splits` returned it.
        report: Likewise.
        repo_id: Where to; a name alone is one of the user's own.
        private: The repository is made private, and a public one is refused.

    Returns:
        The address of the commit.

    Raises:
        InputError: No login, or no right to push there.
        PushError: The upload failed, for whatever reason.
    """
    repo_id = check_login(repo_id, private, "dataset")
    files = {"README.md": _card(raw, without_local_paths(report), repo_id).encode()}
    for split, dataset in raw.items():
        buffer = io.BytesIO()
        dataset.to_parquet(buffer)  # with its features, by which `load_dataset` has the names of the labels
        files[_path(split)] = buffer.getvalue()
    try:
        make_repository(repo_id, private, "dataset")
        return push_files(repo_id, files, f"{report['name']}, prepared by ptft-recipes", "dataset")
    except PushError:
        raise
    except Exception as error:  # the client raises many kinds
        reason = one_line(f"{type(error).__name__}: {error}")
        raise PushError(f"the push of the data to {repo_id} failed ({reason}); the same call tries again") from error


def _path(split: str) -> str:
    return f"data/{split}-00000-of-00001.parquet"


def _card(raw: DatasetDict, report: dict[str, Any], repo_id: str) -> str:
    files = [{"split": split, "path": _path(split)} for split in raw]
    data = DatasetCardData(configs=[{"config_name": "default", "data_files": files}], tags=["ptft-recipes"])
    lines = ["| split | rows | dropped | also in train | fingerprint |", "|---|---|---|---|---|"]
    for split, dataset in raw.items():
        overlap = report["overlap_with_train"].get(split, {}).get("normalised", "")
        cut = " (cut from train)" if split in report["cut"] else ""
        dropped, fingerprint = report["dropped"][split], report["fingerprint"][split]
        lines.append(f"| {split}{cut} | {len(dataset):,} | {dropped} | {overlap} | `{fingerprint}` |")
    table = "\n".join(lines)
    labels = ", ".join(f"`{one_line(label)}`" for label in report.get("label_names", []))
    return (
        f"---\n{data.to_yaml()}\n---\n\n# {repo_id.partition('/')[2]}\n\nThe splits of `{report['name']}`, prepared "
        f"by ptft-recipes: checked, cut where they were missing, with labels as numbers in `labels`.\n\n{table}\n\n"
        + f"Labels: {labels}\n\n" * bool(labels)
        + f'```python\nfrom datasets import load_dataset\n\ndata = load_dataset("{repo_id}")\n```\n'
    )
