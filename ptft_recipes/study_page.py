"""A study as one HTML page for someone who did not run it: complete in itself, without scripts."""

import json
import math
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from ptft_recipes.comparison import Arms
from ptft_recipes.comparison_tables import format_p, format_value, notes_of, table_of
from ptft_recipes.metrics import LOWER_IS_BETTER
from ptft_recipes.reporting import write_text
from ptft_recipes.studies import FAILED, Cell, format_seconds, main_score
from ptft_recipes.study_files import Study

WIDTH, HEIGHT, MARGIN = 210, 26, 14  # of the drawing in a row, in pixels
BASELINE = ' class="baseline"'
STYLE = """
:root { color-scheme: light dark; --back: #fff; --text: #1d2330; --dim: #5c6675; --line: #dfe3e8; --soft: #f5f6f8;
        --mark: #1f5fbf; --seed: #1f5fbf; --bad: #b3261e; --good: #1b7f3b; }
@media (prefers-color-scheme: dark) {
  :root { --back: #14171c; --text: #e4e7ec; --dim: #9aa4b2; --line: #2c323b; --soft: #1c2027; --mark: #7fb0ff;
          --seed: #7fb0ff; --bad: #ff8a80; --good: #7bd88f; } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--text); background: var(--back); margin: 0 auto;
       max-width: 76rem; padding: 1rem 1.25rem 3rem; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 1rem 0 .25rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2.25rem 0 .5rem; }
p, li { max-width: 46rem; } .dim, figcaption { color: var(--dim); }
ul { padding-left: 1.2rem; } li { margin: .2rem 0; }
.wide { overflow-x: auto; border: 1px solid var(--line); border-radius: 6px; }
table { border-collapse: collapse; width: 100%; font-size: .875rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .3rem .7rem; white-space: nowrap; border-bottom: 1px solid var(--line); }
tr:last-child > * { border-bottom: 0; } thead th { background: var(--soft); vertical-align: bottom; }
tbody th { font-weight: 600; } td.number { text-align: right; } td.plot, th.plot { padding: 0 .4rem; }
td.wrap { white-space: normal; min-width: 16rem; overflow-wrap: anywhere; }
tr.baseline { background: var(--soft); } .better { color: var(--good); } .worse, .failed { color: var(--bad); }
thead th:first-child, tbody th { position: sticky; left: 0; background: var(--back); }
thead th:first-child, tr.baseline > th { background: var(--soft); }
svg { display: block; } svg text { font: 10px system-ui, sans-serif; fill: var(--dim); }
svg .grid { stroke: var(--line); }
svg .zero { stroke: var(--dim); stroke-dasharray: 3 2; }
svg .interval { stroke: var(--mark); stroke-width: 2; }
svg .value { fill: var(--mark); } svg .seed { fill: var(--seed); opacity: .4; }
pre { background: var(--soft); border: 1px solid var(--line); border-radius: 6px; padding: .8rem; overflow-x: auto;
      font-size: .8125rem; line-height: 1.4; } code { font-size: .875em; overflow-wrap: anywhere; }
details > summary { cursor: pointer; }
"""


def write_page(
    path: Path,
    study: Study,
    comparison: dict[str, Any],
    arms: Arms,
    cells: list[Cell],
    states: dict[Cell, str],
) -> None:
    """Write the page.

    Args:
        path: Of the HTML file.
        study: As read.
        comparison: Of its arms, as for `notes_of`.
        arms: As `read_arms` returned them.
        cells: Of the study.
        states: As `run_cells` returned them.
    """
    title = f"{study.output_dir.name}: {_count(study.arms, 'arm')}, {_count(study.seeds, 'seed')}"
    versions = {json.dumps(run.run["versions"]): run.run["versions"] for runs in arms.values() for run in runs}
    sections = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="dim">{escape(_test_set(comparison, arms))}</p>',
        "<h2>What was found</h2>",
        _list(_findings(comparison)),
        f"<h2>{escape(comparison['metric'])} and its differences</h2>",
        _forest(comparison),
        '<p class="dim">Squares: means over seeds. Lines: intervals. Pale dots: single seeds.</p>',
        _list(escape(note) for note in notes_of(comparison)),
        "<h2>What an arm costs</h2>",
        _costs(comparison),
        "<h2>Every run</h2>",
        _cells(cells, states),
        "<h2>Configuration</h2>",
        f"<p>The study, as it was run (<code>{escape(str(study.output_dir / 'study.yaml'))}</code>):</p>",
        f"<pre>{escape(study.text)}</pre>",
        "<details><summary>The configuration of one run of each arm, as its recipe resolved it</summary>",
        *(_configuration(name, runs[0].run) for name, runs in arms.items()),
        "</details>",
        "<h2>Versions and hardware</h2>",
        *(_table(["package", "version"], map(list, of.items())) for of in versions.values()),
        _list(escape(line) for line in _provenance(arms)),
    ]
    head = (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
    )
    write_text(path, head + "\n".join(sections) + "\n</body>\n</html>\n")


def _count(things, name: str) -> str:
    return f"{len(things)} {name}{'s' * (len(things) != 1)}"


def _test_set(comparison: dict[str, Any], arms: Arms) -> str:
    recipes = sorted({run.run["recipe"] for runs in arms.values() for run in runs})
    return (
        f"Recipe {', '.join(recipes)}; scored on the {comparison['rows_of_test']:,} test rows of "
        f"{comparison['test']['name']}. The baseline is {comparison['baseline']}."
    )


def _findings(comparison: dict[str, Any]) -> list[str]:
    """Say of each arm, as HTML, whether it is better than the baseline."""
    metric, baseline = comparison["metric"], comparison["baseline"]
    sign = -1 if metric.rpartition("_")[2] in LOWER_IS_BETTER else 1
    base = next(row for row in comparison["arms"] if row["arm"] == baseline)
    lines = [f"<strong>{escape(baseline)}</strong> has a {escape(metric)} of {format_value(base, 'mean')}."]
    level = 1 - comparison["confidence"]
    for row in comparison["arms"]:
        if row["arm"] == baseline:
            continue
        told = f"{format_value(row, 'difference', '+')}, p {format_p(row.get('p')) or 'undefined'}"
        if row.get("p") is None or row["p"] >= level:
            what = "cannot be told from the baseline"
        else:
            better = sign * row["difference"] > 0
            what = f'is <span class="{"better" if better else "worse"}">{"better" if better else "worse"}</span>'
        lines.append(f"<strong>{escape(row['arm'])}</strong> {what} ({escape(told)}).")
    return lines


def _forest(comparison: dict[str, Any]) -> str:
    rows = comparison["arms"]
    score = _Scale([row["interval"] for row in rows] + [row["scores"] for row in rows])
    difference = _Scale([row["difference_interval"] for row in rows if "difference" in row] + [[0.0]])
    cells = table_of(comparison)[1]
    lines = []
    for row, cell in zip(rows, cells, strict=True):
        drawn = ""
        if row["arm"] != comparison["baseline"]:
            drawn = difference.draw(row["difference"], row["difference_interval"], zero=True)
        lines.append(
            f"<tr{BASELINE * (not drawn)}><th>{escape(cell[0])}</th><td class='number'>{escape(cell[1])}</td>"
            f'<td class="number">{escape(cell[2])}</td>'
            f'<td class="plot">{score.draw(row["mean"], row["interval"], row["scores"])}</td>'
            f'<td class="number">{escape(cell[3])}</td><td class="number">{escape(cell[4])}</td>'
            f'<td class="plot">{drawn}</td></tr>'
        )
    head = (
        f"<tr><th>arm</th><th>seeds</th><th>{escape(comparison['metric'])}</th><th class='plot'>{score.axis()}</th>"
        f"<th>difference</th><th>p (Holm)</th><th class='plot'>{difference.axis(zero=True)}</th></tr>"
    )
    return f'<div class="wide"><table><thead>{head}</thead><tbody>{"".join(lines)}</tbody></table></div>'


class _Scale:
    """Draws values as SVG on one scale for all rows."""

    def __init__(self, values: Sequence[Sequence[float | None]]):
        known = [value for some in values for value in some if value is not None] or [0.0, 1.0]
        self.low, self.high = min(known), max(known)
        if self.low == self.high:
            self.low, self.high = self.low - 0.5, self.high + 0.5

    def x(self, value: float) -> str:
        share = (value - self.low) / (self.high - self.low)
        return f"{MARGIN + share * (WIDTH - 2 * MARGIN):.1f}"

    def _ticks(self) -> list[float]:
        rough = (self.high - self.low) / 4
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
        return [step * i for i in range(math.ceil(self.low / step), math.floor(self.high / step) + 1)]

    def _svg(self, inside: str, label: str) -> str:
        return (
            f'<svg width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
            f'aria-label="{escape(label)}">{inside}</svg>'
        )

    def axis(self, zero: bool = False) -> str:
        ticks = self._ticks()
        digits = max(0, math.ceil(-math.log10(ticks[1] - ticks[0]))) if len(ticks) > 1 else 3
        texts = "".join(
            f'<text x="{self.x(tick)}" y="{HEIGHT - 6}" text-anchor="middle">{tick:{"+" * zero}.{digits}f}</text>'
            for tick in ticks
        )
        return self._svg(texts, "scale")

    def draw(
        self, value: float | None, interval: Sequence[float | None], seeds: Sequence = (), zero: bool = False
    ) -> str:
        middle = HEIGHT / 2
        parts = [f'<line class="grid" x1="{self.x(t)}" x2="{self.x(t)}" y1="0" y2="{HEIGHT}"/>' for t in self._ticks()]
        if zero:
            parts.append(f'<line class="zero" x1="{self.x(0)}" x2="{self.x(0)}" y1="0" y2="{HEIGHT}"/>')
        known = [seed for seed in seeds if seed is not None and len(seeds) > 1]
        parts += [f'<circle class="seed" cx="{self.x(seed)}" cy="{middle + 7}" r="2.5"/>' for seed in known]
        if value is not None and None not in interval:
            low, high = map(self.x, interval)
            parts.append(f'<line class="interval" x1="{low}" x2="{high}" y1="{middle}" y2="{middle}"/>')
        if value is not None:
            parts.append(
                f'<rect class="value" x="{float(self.x(value)) - 3.5:.1f}" y="{middle - 3.5}" width="7" height="7"/>'
            )
        return self._svg("".join(parts), "undefined" if value is None else f"{value:.4f}")


def _costs(comparison: dict[str, Any]) -> str:
    headings, rows = table_of(comparison)
    return _table([headings[0], *headings[5:]], [[row[0], *row[5:]] for row in rows])


def _cells(cells: list[Cell], states: dict[Cell, str]) -> str:
    rows = []
    for cell in cells:
        score, seconds = f"logs/{cell.name}.log" * (states[cell] == FAILED), ""
        if cell.is_finished():
            results = json.loads((cell.output_dir / "results.json").read_text(encoding="utf-8"))
            score, seconds = main_score(results), format_seconds(results["run"]["seconds"]["total"])
        needs = cell.needs.name if cell.needs else ""
        rows.append([cell.name, cell.recipe.stem, str(cell.seed), needs, states[cell], score, seconds])
    return _table(["run", "recipe", "seed", "starts from", "state", "test score, or the log", "time"], rows)


def _configuration(name: str, run: dict[str, Any]) -> str:
    settings = "\n".join(f"{key}: {value}" for key, value in run["config"].items())
    return f"<p><strong>{escape(name)}</strong>, {escape(run['recipe'])}</p><pre>{escape(settings)}</pre>"


def _provenance(arms: Arms) -> list[str]:
    runs = [run.run for of_arm in arms.values() for run in of_arm]

    def differing(texts) -> str:
        return "; ".join(dict.fromkeys(texts))

    commits = ((run["commit"] or "not in a repository") + " (changed)" * bool(run["dirty"]) for run in runs)
    return [
        "Hardware: " + differing(run["hardware"] for run in runs),
        "Processes and precision: " + differing(f"{run['processes']}, {run['precision']}" for run in runs),
        "Commit: " + differing(commits),
    ]


def _table(headings: Sequence[str], rows) -> str:
    head = "".join(f"<th>{escape(heading)}</th>" for heading in headings)
    body = ""
    for first, *others in rows:
        cells = "".join(f"<td>{escape(cell)}</td>" for cell in others)
        body += f"<tr><th>{escape(first)}</th>{cells}</tr>"
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _list(lines) -> str:
    return f"<ul>{''.join(f'<li>{line}</li>' for line in lines)}</ul>"
