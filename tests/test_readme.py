"""What the README shows works, and what it links to exists."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


def test_examples_run():
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert blocks
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {})


def test_links_lead_somewhere():
    links = re.findall(r"\]\(([^)#]+)\)", README)
    missing = [link for link in links if "://" not in link and not (ROOT / link).exists()]
    assert links and not missing


def test_speed_table_is_the_committed_run():
    """The table is written by benchmarks.report, never typed."""
    from benchmarks import report

    committed = ROOT / "benchmarks" / "results" / "cpu-2-cores.json"
    run = report.json.loads(committed.read_text())
    table = report.speed_table(report.collect(run["benchmarks"]), run["machine_info"]["ceilings"])
    assert table in README
