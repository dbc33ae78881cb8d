"""A comparison of arms as tables: Markdown, CSV, JSON, and in words what the numbers are."""

import csv
import io
import json
from pathlib import Path
from typing import Any

from ptft_recipes.metrics import LOWER_IS_BETTER
from ptft_recipes.reporting import plot_forest, write_text

ALONE = "test examples alone"
ONE_SEED = "†"


def table_of(comparison: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return the headings and the rows of the table that people read.

    Args:
        comparison: As `compare_arms` returned it.
    """
    headings = ["arm", "seeds", comparison["metric"], f"difference to {comparison['baseline']}", "p (Holm)"]
    headings += ["time per run", "peak memory", "weights that move"]
    rows = []
    for row in comparison["arms"]:
        difference = "baseline"
        if row["arm"] != comparison["baseline"]:
            difference = format_value(row, "difference", "+") + ONE_SEED * (row["difference_over"] == ALONE)
        rows.append([
            row["arm"], str(len(row["seeds"])), format_value(row, "mean") + ONE_SEED * (row["over"] == ALONE),
            difference, format_p(row.get("p")),
            "≥ " * bool(row["resumed"]) + f"{row['seconds']:.0f} s", f"{row['peak_memory_gib']:.2f} GiB",
            _weights(row),
        ])  # fmt: skip
    return headings, rows


def format_value(row: dict[str, Any], name: str, sign: str = "") -> str:
    """Return a mean or a difference of a row with its interval.

    >>> format_value({"mean": 0.6512, "interval": [0.6421, 0.6604]}, "mean")
    '0.651 [0.642, 0.660]'
    >>> format_value({"difference": -0.0123, "difference_interval": [-0.03, 0.005]}, "difference", "+")
    '-0.012 [-0.030, +0.005]'
    """
    value, interval = row[name], row["interval" if name == "mean" else f"{name}_interval"]
    if value is None:
        return "undefined"
    digits = 3 if abs(value) < 10 else 1
    return f"{value:{sign}.{digits}f}" + (
        f" [{interval[0]:{sign}.{digits}f}, {interval[1]:{sign}.{digits}f}]" if None not in interval else ""
    )


def format_p(p: float | None) -> str:
    """Return a p-value.

    >>> format_p(0.0412), format_p(0.00003), format_p(None)
    ('0.041', '< 0.001', '')
    """
    return "" if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"


def _weights(row: dict[str, Any]) -> str:
    moving, total = row["trainable_parameters"], row["total_parameters"]
    return f"{moving:,} ({moving / total:.1%})" if moving and total else ""


def notes_of(comparison: dict[str, Any]) -> list[str]:
    """Say in words what the numbers of the table are, and what is not in it.

    Args:
        comparison: As `compare_arms` returned it, with its `remarks` and with what was `left_out`.
    """
    metric, share = comparison["metric"], f"{100 * comparison['confidence']:.0f} %"
    compared = [row for row in comparison["arms"] if row.get("p") is not None]
    lower = ", lower is better" if metric.rpartition("_")[2] in LOWER_IS_BETTER else ""
    notes = [
        f"{metric}{lower}: mean over seeds, on the {comparison['rows_of_test']:,} test rows of "
        f"{comparison['test']['name']} (fingerprint {comparison['test']['fingerprint']}). Brackets: {share} intervals "
        "that hold for other seeds and other test rows."
    ]
    if any(ALONE in (row["over"], row.get("difference_over")) for row in comparison["arms"]):
        notes.append(f"{ONE_SEED} One seed: over the test rows alone; other seeds may give something else.")
    if compared:
        notes.append(
            f"p: two-sided, of no difference to {comparison['baseline']}, on the same test rows; corrected for "
            f"{len(compared)} comparison{'s' * (len(compared) > 1)} by Holm's method."
        )
    seeds = next(row["seeds"] for row in comparison["arms"] if row["arm"] == comparison["baseline"])
    for row in compared:
        if row["paired_seeds"] and not row["paired_seeds"] == row["seeds"] == seeds:
            both = ", ".join(map(str, row["paired_seeds"]))
            notes.append(
                f"{row['arm']}: its difference is on the seeds that {comparison['baseline']} has too, {both}."
            )
        elif not row["paired_seeds"]:
            notes.append(f"{row['arm']}: not paired by seed, its seeds are not those of {comparison['baseline']}.")
    # 0 is of two arms that predict the same.
    if found := [row["detectable"] for row in compared if row["detectable"]]:
        low, high = f"{min(found):.2g}", f"{max(found):.2g}"
        notes.append(
            f"A true difference of {low if low == high else f'{low} to {high}'} would show on this test set with a "
            "chance of 80 % (at 5 %, before Holm's correction, with ever so many seeds); smaller ones need more rows."
        )
    if any(row["resumed"] for row in comparison["arms"]):
        notes.append("≥: some of these runs were interrupted, and have the seconds since then only.")
    return notes + comparison["remarks"] + [f"Left out: {why}" for why in comparison["left_out"]]


def markdown_of(comparison: dict[str, Any]) -> str:
    """Return the table with its notes as Markdown.

    Args:
        comparison: As for `notes_of`.
    """
    headings, rows = table_of(comparison)
    lines = [headings, ["---"] * len(headings), *rows]
    table = "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)
    return "\n\n".join([table, *notes_of(comparison)]) + "\n"


def csv_of(comparison: dict[str, Any]) -> str:
    """Return the numbers of the table as CSV, a row per arm.

    Args:
        comparison: As `compare_arms` returned it.
    """
    file = io.StringIO()
    names = ["arm", "seeds", "metric", "mean", "low", "high", "over", "difference", "difference_low",
             "difference_high", "difference_over", "p", "p_uncorrected", "detectable", "seconds", "peak_memory_gib",
             "trainable_parameters"]  # fmt: skip
    writer = csv.DictWriter(file, names, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for row in comparison["arms"]:
        low, high = row["interval"]
        row = row | {"metric": comparison["metric"], "low": low, "high": high}
        row["seeds"] = " ".join(map(str, row["seeds"]))
        row["difference_low"], row["difference_high"] = row.get("difference_interval", (None, None))
        writer.writerow(row)
    return file.getvalue()


def write_comparison(output_dir: str | Path, comparison: dict[str, Any]) -> None:
    """Write `table.md`, `table.csv`, `table.json` and `forest.png`.

    Args:
        output_dir: Folder; made if it is not there.
        comparison: As for `notes_of`.
    """
    output_dir = Path(output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    write_text(output_dir / "table.md", markdown_of(comparison))
    write_text(output_dir / "table.csv", csv_of(comparison))
    text = json.dumps(comparison, indent=2, ensure_ascii=False, allow_nan=False)
    write_text(output_dir / "table.json", f"{text}\n")
    plot_forest(comparison, output_dir / "forest.png")
