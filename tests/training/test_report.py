"""report: tables by hand, digests of real runs, and that the same files give the same text."""

from __future__ import annotations

import io
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from training.cli import run as run_command
from training.commands.ablate import run_ablate
from training.commands.diagnose import run_diagnose
from training.commands.report import run_report
from training.commands.stage2 import run_stage2
from training.config import AblateConfig, Stage2Config, TrainConfig
from training.config.commands import DiagnoseConfig, ReportConfig
from training.errors import ConfigError
from training.report.digest import LARGEST, METRICS
from training.report.results import build_results

ACCURACIES = {"ce": {0: 0.50, 1: 0.54, 2: 0.52}, "ours": {0: 0.60, 1: 0.58, 3: 0.90}}
VERDICTS = "## Verdicts\n\n* It *pays*:  <sub>n = 2</sub>\n\n| a |\n| - |"


def _digest(arm: str, seed: int, accuracy: float, **more: Any) -> dict[str, Any]:
    result = dict.fromkeys(METRICS, accuracy)
    return {
        "arm": arm,
        "dataset": "cifar10-jpeg-lt",
        "imbalance_factor": 100.0,
        "class_order_seed": None,
        "seed": seed,
        "epochs": 30,
        "weight_decay": 5e-4,
        "last": result,
        "best": {**result, "accuracy": accuracy + 0.01},
        "minutes": 1.5,
        **more,
    }


@pytest.fixture
def results(tmp_path: Path) -> Path:
    folder = tmp_path / "results" / "grid"
    folder.mkdir(parents=True)
    (folder / "grid.json").write_text(json.dumps({"baseline": "ce", "arms": ["ce", "ours"]}))
    conditions = {0: 10.0, 1: 1000.0, 3: None}
    for arm, seeds in ACCURACIES.items():
        for seed, accuracy in seeds.items():
            content = _digest(arm, seed, accuracy)
            if arm == "ours":
                content["mechanism"] = {
                    "correlation": 0.25,
                    "hessian_condition": conditions[seed],
                }
                softmax, pooled = 0.5 + seed / 100, 0.9 + seed / 50
                content["ood"] = {
                    "glyphs-lt": {"max_softmax": [softmax, 0.9], "mahalanobis_pooled": [pooled, 0]}
                }
            (folder / f"{arm}-{seed}.json").write_text(json.dumps(content))
    (tmp_path / "results" / "verdicts.md").write_text(VERDICTS + "\n")
    return tmp_path / "results"


def _row(text: str, start: str, table: int = 0) -> list[str]:
    lines = [line for line in text.splitlines() if line.startswith(f"| {start} ")]
    return [cell.strip() for cell in lines[table].strip("|").split("|")]


def test_means_paired_differences_and_intervals_by_hand(results: Path):
    text = build_results(results)
    assert "### CIFAR-10-LT (JPEG re-encoding), imbalance 100" in text
    # t(2 degrees, 97.5 %) = 4.303; the standard deviation of 50, 54, 52 is 2.
    half = f"{4.303 * 2 / math.sqrt(3):.1f}"
    assert _row(text, "ce")[:5] == ["ce", "0.0005", "30", "3", f"52.0 ± {half}"]
    assert _row(text, "ce")[5] == f"53.0 ± {half}"  # best
    # Seeds 0 and 1 are in both: +10 and +4; t(1, 97.5 %) = 12.706, standard deviation 3 sqrt(2).
    found = _row(text, "ours", table=1)
    assert found[:3] == ["ours", "2", f"+7.0 ± {12.706 * 3:.1f}"]
    found = _row(text, "ours", table=2)
    assert found[:7] == ["ours", "3", "-", "0.25", "-", "-", "100"]  # sqrt(10 * 1000)
    found = _row(text, "ours", table=3)
    assert found[2].startswith("51.3 ± ") and found[4].startswith("92.7 ± ")
    assert found[6] == "-" and found[7].startswith("+41.3 ± ")  # no layer, pooled


def test_runs_are_paired_within_the_order_of_the_classes(results: Path):
    """Every order has the same difference: unlike the accuracies it does not vary."""
    for order, shift in ((5, 0.1), (6, 0.2)):
        for arm, gain in (("ce", 0.0), ("ours", 0.05)):
            content = _digest(arm, 0, 0.5 + shift + gain, class_order_seed=order)
            path = results / "grid" / f"{arm}-{order}-order.json"
            path.write_text(json.dumps({**content, "dataset": "digits-lt"}))
    text = build_results(results)
    section = text[text.index("### digits-lt") :]
    assert _row(section, "ours", table=1)[1:3] == ["2", "+5.0 ± 0.0"]


def test_a_label_of_the_last_axis_is_the_baseline_within_every_setting(results: Path):
    arms = ["narrow-none", "narrow-fused", "wide-none", "wide-fused"]
    folder = results / "widths"
    folder.mkdir()
    (folder / "grid.json").write_text(json.dumps({"baseline": "none", "arms": arms}))
    for arm, accuracy in zip(arms, (0.5, 0.6, 0.7, 0.9), strict=True):
        (folder / f"{arm}.json").write_text(json.dumps(_digest(arm, 0, accuracy)))
    text = build_results(results)
    section = text[text.index("Difference to none, all else equal") :]
    assert _row(section, "narrow-fused")[2] == "+10.0 ± -"
    assert _row(section, "wide-fused")[2] == "+20.0 ± -"
    assert "| wide-none" not in section
    grid = {"baseline": "none", "arms": arms, "pairs": [["wide-none", "narrow-fused"]]}
    (folder / "grid.json").write_text(json.dumps(grid))
    text = build_results(results)
    assert _row(text[text.index("Differences:") :], "wide-none - narrow-fused")[2] == "+10.0 ± -"


def test_claims_are_differences_with_a_column_for_every_data_set(results: Path):
    other = results / "other"
    other.mkdir()
    (other / "grid.json").write_text(json.dumps({"baseline": "ce", "arms": ["ce"]}))
    (other / "ce-0.json").write_text(json.dumps(_digest("ce", 0, 0.5)))
    asked: dict[str, Any] = {
        "columns": {"photographs": ["other", "grid"], "more": ["other"]},
        "tables": {"Claims": [["ours, over plain", "ours", "ce"]], "Others": [["ce", "ce", "ce"]]},
    }
    path = results / "claims.json"
    path.write_text(json.dumps(asked))
    text = build_results(results)
    first, second = text.index("## Claims"), text.index("## Others")
    assert first < second < text.index(VERDICTS)
    # Of the first grid that has both, without the column that has none.
    row = ["ours, over plain", f"+7.0 ± {12.706 * 3:.1f} (2)"]
    assert _row(text[first:second], "ours, over plain") == row
    assert _row(text[second:], "ce") == ["ce", "+0.0 ± - (1)", "+0.0 ± - (1)"]
    path.write_text(json.dumps({**asked, "tables": {"": [["rival", "ours", "mixup"]]}}))
    with pytest.raises(ConfigError, match=r"no grid has both arms of \['rival'\]"):
        build_results(results)
    path.write_text(json.dumps({**asked, "columns": {"more": ["nothing"]}}))
    with pytest.raises(ConfigError, match=r"\['nothing'\] have none"):
        build_results(results)


def test_verdicts_are_taken_in_as_they_are_and_the_file_regenerates(
    results: Path, capsys: pytest.CaptureFixture[str]
):
    arguments = ["report", str(results)]
    assert run_command([*arguments, "--check"]) == 1
    assert run_command(arguments) == 0
    path = results.parent / "RESULTS.md"
    written = path.read_bytes()
    assert f"\n\n{VERDICTS}\n\n## grid" in written.decode()
    copy = results.parent / "elsewhere" / "results"
    shutil.copytree(results, copy)
    assert run_command(["report", str(copy)]) == 0
    assert (copy.parent / "RESULTS.md").read_bytes() == written
    picture = "grid/cifar10-jpeg-lt-100.png"
    assert f"(results/{picture})" in written.decode()
    assert (results / picture).read_bytes() == (copy / picture).read_bytes()
    assert run_command([*arguments, "--check"]) == 0
    (results / "grid" / "ce-0.json").unlink()
    assert run_command([*arguments, "--check"]) == 1
    assert path.read_bytes() == written


def test_what_cannot_be_reported_is_named(results: Path, tmp_path: Path):
    shutil.copy(results / "grid" / "ce-0.json", results / "grid" / "ce-00.json")
    with pytest.raises(ConfigError, match="ce has seed 0 twice"):
        build_results(results)
    with pytest.raises(ConfigError, match=r"digests of runs, .* has none"):
        build_results(tmp_path / "nothing")
    with pytest.raises(ConfigError, match="two arms in each"):
        run_report(ReportConfig(str(results), collect=str(tmp_path), pairs=[["ce"]]))
    with pytest.raises(ConfigError, match="folder of an `ablate` grid"):
        run_report(ReportConfig(str(results), collect=str(tmp_path)))


@pytest.mark.slow
def test_the_digests_of_a_grid_with_a_second_stage_and_a_diagnosis(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    train = TrainConfig()
    train.model.width = 2
    train.optim.epochs = 1
    train.optim.warmup_epochs = 0
    train.output.plots = False
    ablation = AblateConfig(
        axes={"data.class_order_seed": [1], "whitening": ["none", "batchnorm"]},
        seeds=[4],
        train=train,
        root=str(tmp_path),
        name="small",
    )
    console = Console(file=io.StringIO(), width=120)
    assert run_ablate(ablation, console) == 0
    grid = tmp_path / "small"
    name = "digits-lt-class_order_seed=1-batchnorm-4"
    run = str(grid / "runs" / name)
    run_stage2(Stage2Config(method="ncm", run=run), console)
    run_diagnose(DiagnoseConfig(run, hessian_rows=50), console)
    results = tmp_path / "results"
    config = ReportConfig(str(results), collect=str(grid), baseline="batchnorm")
    assert run_report(config, console) == 0
    files = sorted(path.name for path in (results / "small").glob("*.json"))
    assert files == [
        f"{name}-ncm.json",
        f"{name}.json",
        "digits-lt-class_order_seed=1-none-4.json",
        "grid.json",
    ]
    assert all((results / "small" / file).stat().st_size <= LARGEST for file in files)
    stage1, stage2 = (
        json.loads((results / "small" / file).read_text()) for file in (files[1], files[0])
    )
    summary = json.loads((grid / "runs" / name / "summary.json").read_text())
    assert stage1["last"]["worst_class_accuracy"] == pytest.approx(
        summary["last"]["test"]["worst_class_accuracy"], abs=1e-6
    )
    diagnosis = json.loads((grid / "runs" / name / "diagnostics" / "last-test.json").read_text())
    assert stage1["mechanism"]["effective_rank"] == pytest.approx(
        diagnosis["after"]["effective_rank"], rel=1e-5
    )
    assert (stage1["arm"], stage2["arm"], stage1["class_order_seed"]) == (
        "batchnorm",
        "batchnorm+ncm",
        1,
    )
    assert stage2["minutes"] > stage1["minutes"]
    found = json.loads((results / "small" / "grid.json").read_text())
    arms = ["none", "batchnorm", "batchnorm+ncm"]
    assert found == {"baseline": "batchnorm", "arms": arms, "pairs": []}
    assert "Difference to batchnorm:" in (tmp_path / "RESULTS.md").read_text()
    with pytest.raises(ConfigError, match="expected one of the arms none, batchnorm"):
        run_report(ReportConfig(str(results), collect=str(grid), baseline="nothing"), console)

    # Another seed, of fewer arms, from another machine: what was collected before stays.
    more = replace(ablation, seeds=[5], root=str(tmp_path / "elsewhere"))
    more.axes["whitening"] = ["batchnorm"]
    assert run_ablate(more, console) == 0
    config = ReportConfig(str(results), collect=str(tmp_path / "elsewhere" / "small"))
    assert run_report(config, console) == 0
    assert json.loads((results / "small" / "grid.json").read_text()) == found
    row = _row((tmp_path / "RESULTS.md").read_text(), "batchnorm")
    assert row[3] == "2"  # n


def test_the_committed_results_are_those_of_their_digests() -> None:
    root = Path(__file__).resolve().parents[2]
    found = (root / "RESULTS.md").read_text(encoding="utf-8")
    assert found == build_results(root / "results")
