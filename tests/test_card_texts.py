"""What a model wrote, on its card: spread over the split, cut, and harmless as Markdown."""

import json

from ptft_recipes.card_texts import written_texts


def test_texts_at_equal_distances_beside_their_references(tmp_path):
    path = tmp_path / "test.jsonl"
    lines = [{"source": f"s{i} | *x*", "gold": f"g{i}", "predicted": "word " * 100} for i in range(20)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    text = written_texts(path, {"bleu": "nrefs:1|tok:13a"})
    rows = [line for line in text.splitlines() if line.startswith("| s")][1:]
    assert [row.split()[1] for row in rows] == ["s0", "s3", "s6", "s9", "s12", "s15", "s18"]
    assert "s0 \\| \\*x\\*" in text
    assert all(len(row) < 220 for row in rows)
    assert "- bleu: `nrefs:1|tok:13a`" in text
