"""compare: statistics by hand, and that unequal things are refused."""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from training.cli import run as run_command
from training.commands.compare import (
    Comparison,
    as_markdown,
    compare,
    paired_differences,
    run_compare,
    spread,
    write_tables,
)
from training.config import CompareConfig, TrainConfig, to_dict
from training.config.load import change_config
from training.errors import ConfigError
from training.runs.finished import Run, read_run

pytestmark = pytest.mark.slow

ACCURACIES = {"none": {0: 0.50, 1: 0.54, 2: 0.52}, "fused": {0: 0.60, 1: 0.58, 2: 0.68}}


def _write(
    root: Path,
    name: str,
    *,
    accuracy: float,
    few: float | None = 0.1,
    stage2: dict[str, Any] | None = None,
    commit: str = "abcdef0123",
    **changes: Any,
) -> Path:
    """A run folder as `train` writes it, with figures of our choice; best is 0.01 above last."""
    folder = root / name
    folder.mkdir(parents=True)
    config = change_config(TrainConfig(), {k.replace("__", "."): v for k, v in changes.items()})
    config.output.name = name  # differs between any two runs
    (folder / "config.yaml").write_text(yaml.safe_dump(to_dict(config)))
    (folder / "env.json").write_text(json.dumps({"commit": commit}))
    summary: dict[str, Any] = {"stage2": stage2} if stage2 else {}
    for kind, better in (("last", 0.0), ("best", 0.01)):
        result = {
            "many": 0.9,
            "medium": 0.5,
            "few": few,
            "accuracy": accuracy + better,
            "balanced_accuracy": accuracy / 2 + better,
        }
        summary[kind] = {"test": result, "validation": {**result, "accuracy": 0.25}}
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


@pytest.fixture
def grid(tmp_path: Path) -> Path:
    """Two whitenings, three seeds each."""
    for whitening, seeds in ACCURACIES.items():
        for seed, accuracy in seeds.items():
            _write(
                tmp_path / "runs",
                f"{whitening}-{seed}",
                accuracy=accuracy,
                whitening=whitening,
                seed=seed,
            )
    return tmp_path / "runs"


def _runs(root: Path) -> list[Run]:
    return [read_run(path) for path in sorted(root.iterdir())]


def _line(comparison: Comparison, key: tuple[Any, ...], part: str = "means", kind: str = "last"):
    lines = getattr(comparison, part)
    return next(line for line in lines if line.key == key and line.checkpoint == kind)


def test_means_and_deviations_by_hand(grid: Path):
    comparison = compare(_runs(grid), ["whitening"])
    found = _line(comparison, ("none",)).figures["accuracy"]
    # 0.50, 0.54, 0.52: mean 0.52; deviations -0.02, 0.02, 0; sum of squares 8e-4, over n - 1 = 2.
    assert (found.n, found.mean) == (3, pytest.approx(0.52))
    assert found.std == pytest.approx(0.02)
    found = _line(comparison, ("fused",)).figures["accuracy"]
    # 0.60, 0.58, 0.68: mean 0.62; deviations -0.02, -0.04, 0.06; sum of squares 56e-4.
    assert found.std == pytest.approx(math.sqrt(28e-4))
    assert _line(comparison, ("fused",), kind="best").figures["accuracy"].mean == pytest.approx(
        0.63
    )
    assert _line(comparison, ("fused",)).figures["balanced_accuracy"].mean == pytest.approx(0.31)
    assert comparison.differences == []


def test_paired_differences_by_hand(grid: Path):
    comparison = compare(_runs(grid), ["whitening"], baseline={"whitening": "none"})
    assert {line.key for line in comparison.differences} == {("fused",)}
    found = _line(comparison, ("fused",), "differences").figures["accuracy"]
    # 0.10, 0.04, 0.16: mean 0.10; deviations 0, -0.06, 0.06; std sqrt(72e-4 / 2) = 0.06.
    assert (found.n, found.mean, found.std) == (3, pytest.approx(0.1), pytest.approx(0.06))
    assert found.error == pytest.approx(0.06 / math.sqrt(3))
    # Student's t, 2 degrees of freedom, 97.5 %: 4.302653 (any table); 95 %: 2.919986.
    assert found.half_width(0.95) == pytest.approx(4.302653 * 0.06 / math.sqrt(3), rel=1e-6)
    assert found.half_width(0.90) == pytest.approx(2.919986 * 0.06 / math.sqrt(3), rel=1e-6)


def test_only_common_seeds_are_paired(grid: Path):
    _write(grid, "extra", accuracy=0.99, whitening="fused", seed=9)
    comparison = compare(_runs(grid), ["whitening"], baseline={"whitening": "none"})
    assert _line(comparison, ("fused",)).seeds == (0, 1, 2, 9)
    line = _line(comparison, ("fused",), "differences")
    assert line.seeds == (0, 1, 2)
    assert line.figures["accuracy"].mean == pytest.approx(0.1)


def test_the_baseline_of_a_line_shares_its_other_options(grid: Path):
    for whitening, accuracy in (("none", 0.3), ("fused", 0.4)):
        _write(grid, f"ce-{whitening}", accuracy=accuracy, whitening=whitening, loss="ce", seed=0)
    comparison = compare(_runs(grid), ["whitening", "loss"], baseline={"whitening": "none"})
    found = _line(comparison, ("fused", "ce"), "differences").figures["accuracy"]
    assert (found.n, found.mean) == (1, pytest.approx(0.1))
    assert math.isnan(found.std)
    assert math.isnan(found.half_width(0.95))


def test_an_empty_group_is_a_dash(tmp_path: Path):
    for seed in (0, 1):
        _write(tmp_path, f"a{seed}", accuracy=0.5, few=None, seed=seed)
    comparison = compare(_runs(tmp_path), ["loss"])
    assert _line(comparison, ("logit-adjusted",)).figures["few"].n == 0
    row = as_markdown(comparison, "test", 0.95).splitlines()[4]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells == ["logit-adjusted", "last", "2", *("90.0 ± 0.0", "50.0 ± 0.0", "-"), *cells[6:]]
    assert cells[6:] == ["25.0 ± 0.0", "50.0 ± 0.0"]


def test_missing_values_do_not_count():
    assert spread([]).n == 0
    assert math.isnan(spread([None, math.nan]).mean)
    assert spread([0.2, None, 0.4, math.nan]).mean == pytest.approx(0.3)
    assert paired_differences({0: 0.5, 1: None}, {0: 0.25, 1: 0.5, 2: 1.0}) == [0.25, None]


def test_the_validation_split(grid: Path):
    comparison = compare(_runs(grid), ["whitening"], split="validation")
    assert _line(comparison, ("none",)).figures["accuracy"].mean == 0.25


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"optim__lr": 0.5}, r"optim.lr is 0.1 in .*fused-0 and 0.5 in .*odd"),
        ({"whitening": "fused", "optim__lr": 0.5}, r"optim.lr is 0.1 in .*fused-0 and 0.5 in"),
        ({"imbalance_factor": 10.0}, "imbalance_factor is 50.0 in .* and 10.0 in"),
        ({"stage2": {"method": "ncm", "options": {}}}, r"stage2 is None in .* and 'ncm' in"),
    ],
)
def test_unequal_things_are_refused_by_name(grid: Path, changes: dict[str, Any], text: str):
    _write(grid, "odd", accuracy=0.5, seed=7, **{"whitening": "batchnorm", **changes})
    with pytest.raises(ConfigError, match=text):
        compare(_runs(grid), ["whitening"])


def test_what_is_grouped_or_ignored_may_differ(grid: Path):
    _write(grid, "odd", accuracy=0.5, seed=7, whitening="none", optim__lr=0.5, optim__epochs=9)
    with pytest.raises(ConfigError, match=r"optim.lr|optim.epochs"):
        compare(_runs(grid), ["whitening"], ignore=["optim.epochs"])
    assert len(compare(_runs(grid), ["whitening"], ignore=["optim"]).means) == 4
    grouped = compare(_runs(grid), ["whitening", "optim.lr", "optim.epochs"])
    assert ("none", 0.5, 9) in {line.key for line in grouped.means}
    # Ignored across the lines, but a section that is grouped must be equal within a line.
    assert len(compare(_runs(grid), ["whitening", "optim"]).means) == 6


def test_a_seed_twice_is_refused(grid: Path):
    _write(grid, "again", accuracy=0.5, whitening="none", seed=1)
    with pytest.raises(ConfigError, match=r"seed 1 of whitening none twice: .*again and .*none-1"):
        compare(_runs(grid), ["whitening"])


def test_stage_2_is_grouped_with_its_options(tmp_path: Path):
    _write(tmp_path, "first", accuracy=0.5)
    for seed, tau in ((0, 0.5), (1, 1.0)):
        options = {"taus": [0.5, 1.0], "seed": seed}
        stage2 = {"method": "tau-norm", "options": options, "tau": tau}
        _write(tmp_path, f"tau{seed}", accuracy=0.6, stage2=stage2, seed=seed)
    comparison = compare(_runs(tmp_path), None, baseline={"stage2": None})
    stage2 = comparison.keys.index("stage2")
    assert {line.key[stage2] for line in comparison.means} == {None, "tau-norm"}
    assert comparison.differences[0].seeds == (0,)
    options = {"taus": [2.0], "seed": 2}
    _write(tmp_path, "odd", accuracy=0.6, stage2={"method": "tau-norm", "options": options}, seed=2)
    with pytest.raises(ConfigError, match=r"stage2.taus is \[2.0\] in .*odd and \[0.5, 1.0\] in"):
        compare(_runs(tmp_path))


def test_names_that_do_not_exist(grid: Path):
    runs = _runs(grid)
    with pytest.raises(ConfigError, match=r"group_by: expected names of options, got 'whitning'"):
        compare(runs, ["whitning"])
    with pytest.raises(ConfigError, match=r"ignore: expected names of options, got 'lr'"):
        compare(runs, ["whitening"], ignore=["lr"])
    with pytest.raises(ConfigError, match=r"baseline: expected grouped options \(whitening\)"):
        compare(runs, ["whitening"], baseline={"loss": "ce"})
    with pytest.raises(ConfigError, match="baseline: expected values that a group has"):
        compare(runs, ["whitening"], baseline={"whitening": "batchnorm"})


def test_other_code_is_noted(grid: Path):
    assert compare(_runs(grid), ["whitening"]).notes == []
    _write(grid, "new", accuracy=0.5, whitening="none", seed=5, commit="9876543210")
    notes = compare(_runs(grid), ["whitening"]).notes
    assert notes == ["the runs were made by different commits of the code: 98765432, abcdef01"]


def test_csv_holds_full_precision(grid: Path, tmp_path: Path):
    comparison = compare(_runs(grid), ["whitening"], baseline={"whitening": "none"})
    paths = write_tables(comparison, tmp_path / "out", "test", 0.95)
    assert [path.name for path in paths] == ["compare.md", "compare.csv", "differences.csv"]
    rows = list(csv.DictReader(io.StringIO(paths[2].read_text())))
    assert [(row["whitening"], row["checkpoint"]) for row in rows] == [
        ("fused", "last"),
        ("fused", "best"),
    ]
    found = _line(comparison, ("fused",), "differences").figures["accuracy"]
    assert float(rows[0]["accuracy_mean"]) == found.mean
    assert float(rows[0]["accuracy_half_width"]) == found.half_width(0.95)
    assert rows[0]["seeds"] == "0 1 2"


def test_the_command_finds_runs_and_names_unfinished_ones(grid: Path, tmp_path: Path):
    (grid / "fused-2" / "summary.json").unlink()
    console = Console(file=io.StringIO(), width=200)
    output = str(tmp_path / "out")
    run_compare(CompareConfig(root=str(grid), output=output), console)
    text = console.file.getvalue()
    assert f"left out, not finished: {grid / 'fused-2'}" in text
    assert "| digits-lt | 50               | fused     |" in text
    assert (tmp_path / "out" / "compare.md").read_text() in text + "\n"


def test_the_command_line(grid: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folders = [str(grid / name) for name in ("none-0", "fused-0")]
    options = ["--group-by", "[whitening]", "--baseline.whitening", "none"]
    assert run_command(["compare", *folders, *options]) == 0
    assert "+10.0 ± -" in capsys.readouterr().out
    assert run_command(["compare", *folders, "--group-by", "[loss]"]) == 2
    assert "whitening is 'none' in" in capsys.readouterr().err
    assert run_command(["compare"]) == 2
    assert "at least one run folder" in capsys.readouterr().err
    assert run_command(["compare", "--root", str(tmp_path / "nowhere")]) == 2
    assert "expected a folder with run folders" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert run_command(["compare", "--root", str(tmp_path / "empty")]) == 2
    assert "found none" in capsys.readouterr().err
    assert run_command(["compare", folders[0], "--confidence", "1"]) == 2
    assert "confidence: expected a value in (0, 1)" in capsys.readouterr().err
