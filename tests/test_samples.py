"""What a model wrote, for people: spread over the split, cut, and harmless as Markdown."""

from ptft_recipes.samples import write_samples


def test_texts_at_equal_distances_beside_their_references(tmp_path):
    lines = [{"source": f"s{i} | *x*", "gold": f"g{i}", "predicted": "word " * 100} for i in range(50)]
    write_samples(tmp_path / "samples.md", lines)
    text = (tmp_path / "samples.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("| s")][1:]
    assert [row.split()[1] for row in rows] == [f"s{i}" for i in range(0, 50, 3)]
    assert text.startswith("17 of 50 test texts")
    assert "s0 \\| \\*x\\*" in text
    assert all(len(row) < 350 for row in rows)
    write_samples(tmp_path / "samples.md", [{"source": "a", "gold": None, "predicted": ""}])
    assert (tmp_path / "samples.md").read_text().startswith("1 of 1 test texts")
