"""What the README shows works, and what it links to exists."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


def test_examples_run():
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert blocks
    names: dict[str, object] = {}  # a reader goes from one to the next
    for block in blocks:
        exec(compile(block, "README.md", "exec"), names)


def test_links_lead_somewhere():
    links = re.findall(r"\]\(([^)#]+)\)", README)
    missing = [link for link in links if "://" not in link and not (ROOT / link).exists()]
    assert links and not missing


def test_speed_tables_are_the_committed_runs():
    """They are written by benchmarks.report, never typed."""
    from benchmarks import report

    runs = report.committed()
    assert report.section(runs) in README
    assert report.machines(runs) == (ROOT / "benchmarks/results/README.md").read_text()
