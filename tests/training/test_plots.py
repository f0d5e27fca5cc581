"""The pictures, the report and the commands plot and diagnose."""

from __future__ import annotations

import base64
import io
import itertools
import json
import math
import re
import shutil
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from rich.console import Console
from torchmetrics.classification import MulticlassCalibrationError

from training.cli import run
from training.commands.diagnose import run_diagnose
from training.commands.plot import run_plot
from training.config import TrainConfig
from training.config.commands import DiagnoseConfig, PlotConfig
from training.data import build_dataset
from training.errors import ConfigError
from training.evaluation.diagnose import batch_diagnostics, feature_diagnostics
from training.evaluation.features import covariance_matrix
from training.evaluation.gradients import weight_norms
from training.evaluation.inspection import inspect_split, view_model
from training.evaluation.metrics import reliability
from training.models import build_model
from training.report.plot_accuracy import plot_accuracy_over_frequency, plot_curves
from training.report.plot_features import plot_singular_values, plot_weight_norms
from training.report.plot_predictions import plot_confusion
from training.report.plot_style import class_order
from training.report.report import _CAPTIONS, write_report
from training.runs.finished import load_run, read_run
from training.runs.folder import RunFolder


@pytest.fixture
def folder(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


def _quiet() -> Console:
    return Console(file=io.StringIO(), width=100)


def test_all_pictures_and_a_report_that_opens_offline(folder: Path):
    run_plot(PlotConfig(str(folder), "best", "validation"), _quiet())
    for name in _CAPTIONS:
        png = (folder / "plots" / f"{name}.png").read_bytes()
        assert png.startswith(b"\x89PNG")
        ElementTree.parse(folder / "plots" / f"{name}.svg")  # well-formed
    report = (folder / "report.html").read_text()
    assert "http" not in report and "src=" in report
    assert "width=device-width" in report
    assert report.count("<tr><td>") == 4 + 10  # last and best on two splits; the classes
    assert "1,797 images found, kept 342 to train on" in report
    pictures = re.findall(r'src="data:image/png;base64,([^"]*)"', report)
    assert [base64.b64decode(p) for p in pictures] == [
        (folder / "plots" / f"{name}.png").read_bytes() for name in _CAPTIONS
    ]


@pytest.mark.parametrize("largest", [3, 123, 54321])
@pytest.mark.parametrize("size", [2, 10, 30])
def test_counts_are_legible_and_no_legend_covers_them(size: int, largest: int, monkeypatch):
    counts = [max(1, int(largest * 50 ** (-k / (size - 1)))) for k in range(size)]
    groups = {"many": [k for k in range(size) if k % 2], "few": list(range(0, size, 2))}
    result = {"epoch": 1, "test": {"per_class": [0.5] * size, "balanced_accuracy": 0.5}}
    summary = {"dataset": "d", "imbalance_factor": 50.0, "whitening": "none", "loss": "ce"}
    summary |= {"class_counts": counts, "class_names": [f"class {k}" for k in range(size)]}
    summary |= {"shot_groups": groups, "last": result, "best": result}
    drawn = []
    monkeypatch.setattr(
        "training.report.plot_accuracy.save_figure", lambda f, path: drawn.append(f)
    )
    plot_accuracy_over_frequency(Path("unused"), summary)
    (figure,) = drawn
    figure.canvas.draw()
    for axis in figure.axes:
        legend = axis.get_legend().get_window_extent()
        assert legend.y0 >= axis.get_window_extent().y1 - 1
        titles = [text.get_window_extent() for text in (axis.title,) if text.get_text()]
        assert not any(legend.overlaps(title) for title in titles)
    numbers = [text.get_window_extent() for text in figure.axes[1].texts]
    assert len(numbers) == size
    assert max(number.y1 for number in numbers) <= figure.axes[1].get_window_extent().y1
    assert not any(a.overlaps(b) for a, b in itertools.pairwise(numbers))


def test_no_legend_covers_a_picture_and_panels_are_as_wide_as_the_page(folder: Path, monkeypatch):
    drawn = {}
    save = Figure.savefig

    def keep(figure: Figure, path: Path, **options: object) -> None:
        drawn[Path(path).stem] = figure
        save(figure, path, **options)

    monkeypatch.setattr(Figure, "savefig", keep)
    run_plot(PlotConfig(str(folder)), _quiet())
    assert set(drawn) == set(_CAPTIONS)
    legends = 0
    for figure in drawn.values():
        figure.canvas.draw()
        for axis in (axis for axis in figure.axes if axis.get_legend()):
            legend = axis.get_legend().get_window_extent()
            assert legend.y0 >= axis.get_window_extent().y1 - 1
            assert not axis.get_title() or not legend.overlaps(axis.title.get_window_extent())
            legends += 1
    assert legends == 8  # two of the accuracy, three of the curves, one each of three others
    panels = [axis.get_position() for axis in drawn["curves"].axes]
    assert len(panels) == 3 and all(panel.width > 0.8 for panel in panels)


@pytest.mark.filterwarnings("error")  # that the pictures are no larger than nothing is a warning
@pytest.mark.parametrize("size", [2, 30])
def test_long_names_leave_room_for_the_picture(size: int, tmp_path: Path, monkeypatch):
    result = {"epoch": 1, "test": {"per_class": [0.5] * size, "balanced_accuracy": 0.5}}
    summary = {"dataset": "d", "imbalance_factor": 1.0, "whitening": "none", "loss": "ce"}
    summary |= {
        "class_counts": [9] * size,
        "class_names": [f"{k} {'x' * 250}" for k in range(size)],
    }
    summary |= {"shot_groups": {"few": list(range(size))}, "last": result, "best": result}
    drawn = []
    for part in ("accuracy", "predictions", "features"):
        name = f"training.report.plot_{part}.save_figure"
        monkeypatch.setattr(name, lambda figure, path: drawn.append(figure))
    plot_accuracy_over_frequency(tmp_path, summary)
    plot_confusion(tmp_path, np.eye(size, dtype=int), summary, "last", "test")
    plot_weight_norms(tmp_path, np.ones(size), summary, "last")
    for figure in drawn:
        figure.canvas.draw()
        main = figure.axes[0].get_window_extent()
        assert main.width > figure.bbox.width / 2 and main.height > figure.bbox.height / 4


def test_a_picture_has_the_same_bytes_every_time(tmp_path: Path):
    summary = {"class_counts": [9, 2], "class_names": ["a", "b"], "shot_groups": {"few": [0, 1]}}
    for name in ("1", "2"):
        plot_weight_norms(tmp_path / f"{name}.png", np.array([1.0, 2.0]), summary, "last")
    for ending in ("png", "svg"):
        first, second = ((tmp_path / f"{name}.{ending}").read_bytes() for name in ("1", "2"))
        assert first == second


def test_names_are_no_formulas(folder: Path, tmp_path: Path):
    summary = json.loads((folder / "summary.json").read_text())
    summary["dataset"] = "$a_{b$"
    summary["class_names"][0] = r"$\frac$"
    plot_accuracy_over_frequency(tmp_path / "a.png", summary)
    plot_confusion(tmp_path / "b.png", np.eye(10, dtype=int), summary, "last", "test")


def test_everything_is_escaped_in_the_report(folder: Path):
    run_folder = RunFolder(folder)
    for name in _CAPTIONS:
        run_folder.plot(name).write_bytes(b"picture")
    summary = json.loads((folder / "summary.json").read_text())
    summary["dataset"] = '<script>alert("x")</script>'
    summary["selection"]["metric"] = "<i>"
    with run_folder.config.open("a") as file:
        file.write("# <b>&\n")
    with run_folder.environment.open("a") as file:
        file.write("<u>")
    write_report(run_folder, summary)
    report = (folder / "report.html").read_text()
    assert not re.search("<(script|i|b|u)>", report)
    for text in ("&lt;script&gt;", "&lt;i&gt;", "# &lt;b&gt;&amp;", "&lt;u&gt;"):
        assert text in report


def test_what_is_drawn_comes_from_the_chosen_checkpoint(folder: Path):
    loaded = load_run(read_run(folder), "last", torch.device("cpu"))
    view = view_model(loaded.model, loaded.dataset, "test", "last")
    with torch.no_grad():
        images = loaded.dataset.normalise(loaded.dataset.test.images)
        expected = loaded.model.eval()(images)
    torch.testing.assert_close(view.inspection.logits, expected, rtol=1e-4, atol=1e-5)
    accuracy = (view.inspection.logits.argmax(1) == view.inspection.labels).double().mean().item()
    assert accuracy == pytest.approx(loaded.run.summary["last"]["test"]["accuracy"])
    norms = weight_norms(loaded.model.classifier.weight)
    assert torch.equal(view.weight_norms, norms)
    assert view.mean_abs_correlation == pytest.approx(loaded.run.summary["mean_abs_correlation"])


def test_classes_lie_most_frequent_first():
    classes = class_order(
        {
            "class_counts": [5, 200, 50, 200],
            "class_names": ["a", "b", "c", "d"],
            "shot_groups": {"many": [1, 3], "medium": [2], "few": [0]},
        }
    )
    assert classes.order.tolist() == [1, 3, 2, 0]
    assert classes.names == ["b", "d", "c", "a"]
    assert classes.colours == ["#0072B2", "#0072B2", "#E69F00", "#D55E00"]


def test_many_classes_empty_rows_zeros_and_missing_epochs_are_drawn(tmp_path: Path):
    size = 120
    summary = {
        "class_counts": list(range(size, 0, -1)),
        "class_names": [f"a long class name {k}" for k in range(size)],
        "shot_groups": {
            "many": list(range(20)),
            "medium": list(range(20, 101)),
            "few": list(range(101, size)),
        },
    }
    confusion = np.eye(size, dtype=int)
    confusion[3] = 0
    plot_confusion(tmp_path / "a.png", confusion, summary, "last", "test")
    plot_weight_norms(tmp_path / "b.png", np.zeros(size), summary, "last")
    values = {"before": np.array([1.0, 1e-3, 0.0]), "after": np.zeros(3)}
    plot_singular_values(tmp_path / "c.png", values, "none", "test")
    half = {"loss": 1.0, "accuracy": 0.5, "balanced_accuracy": 0.5, "few": None}
    records = [
        {"epoch": e, "learning_rate": 0.1, "train": half, "validation": None, "test": test}
        for e, test in ((1, None), (2, half))
    ]
    plot_curves(tmp_path / "d.png", records, best_epoch=2)
    assert len(list(tmp_path.iterdir())) == 8


def test_calibration_error_is_torchmetrics():
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(500, 7, generator=generator)
    labels = torch.randint(7, (500,), generator=generator)
    logits[:5, 0], logits[5:9] = 1e9, 0.0  # confidences of 1 exactly, some right and some wrong
    expected = MulticlassCalibrationError(7, n_bins=15, norm="l1")(logits.softmax(1), labels)
    found = reliability(logits, labels)
    assert found.error == pytest.approx(expected.item(), abs=1e-6)
    assert found.images.sum() == 500
    used = found.images > 0
    edges = torch.arange(15) / 15
    assert (found.confidence[used] >= edges[used]).all()
    assert (found.confidence[used] <= edges[used] + 1 / 15).all()


def test_diagnose_prints_and_writes_figures(folder: Path):
    console = _quiet()
    result = run_diagnose(DiagnoseConfig(str(folder)), console)
    written = json.loads((folder / "diagnostics" / "last-test.json").read_text())
    assert written == result
    summary = json.loads((folder / "summary.json").read_text())
    for name in ("before", "after"):
        expected = summary["mean_abs_correlation"][name]
        assert written[name]["mean_abs_correlation"] == pytest.approx(expected, rel=1e-6)
        assert len(written[name]["singular_values"]) == 16
    batches = written["batches"]["all"]
    assert batches["batches"] == 342 // 64
    assert 1 < batches["distinct_classes"] <= 10
    assert batches["distance_to_running"] > 0
    assert len(batches["gradient_norms"]) == len(written["classifier"]["weight_norms"]) == 10
    assert written["classifier"]["hessian_condition"] > 1
    text = console.file.getvalue()
    for words in ("effective rank", "condition number of E(x x^T)", "distinct classes per batch"):
        assert words in text


def test_whitening_with_a_splits_own_statistics_decorrelates_it(trained: Path):
    loaded = load_run(read_run(trained), "last", torch.device("cpu"))
    before = inspect_split(loaded.model, loaded.dataset, "train").before
    layer = loaded.model.whitening
    layer.eps = 1e-9
    layer.running_mean.copy_(before.mean(0))
    layer.running_cov[0].copy_(covariance_matrix(before))
    after = feature_diagnostics(inspect_split(loaded.model, loaded.dataset, "train").after)
    assert feature_diagnostics(before)["mean_abs_correlation"] > 0.1
    assert after["mean_abs_correlation"] < 1e-4
    assert after["effective_rank"] == pytest.approx(16, abs=1e-3)
    assert after["second_moment_condition"] == pytest.approx(1, abs=1e-3)
    assert after["gaussian_entropy"] == pytest.approx(8 * math.log(2 * math.pi * math.e), abs=1e-2)


@pytest.mark.parametrize("command", ["plot", "diagnose"])
def test_a_folder_that_is_no_run(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert run([command, str(tmp_path)]) == 2
    assert "expected a run folder, with a config.yaml" in capsys.readouterr().err


def test_a_wrong_line_in_the_metrics_is_named(folder: Path):
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 3,\n')
    with pytest.raises(ConfigError, match=r"metrics.jsonl, line 3: expected JSON"):
        run_plot(PlotConfig(str(folder)), _quiet())


def test_too_few_rows_for_the_hessian(folder: Path):
    with pytest.raises(ConfigError, match="hessian_rows: expected a value >= 2, got 1"):
        run_diagnose(DiagnoseConfig(str(folder), hessian_rows=1), _quiet())


def test_batches_are_those_of_the_runs_sampler_loss_and_epoch():
    config = TrainConfig(loss="ldam-drw", sampler="b3rs", bet_period=3)
    config.model.width = 4
    config.data.batch_size = 32
    config.optim.epochs = 10  # class weights from epoch 9 on
    dataset = build_dataset(config, 0)
    model = build_model(config, dataset.channels, dataset.num_classes, seed=0)
    train = inspect_split(model, dataset, "train")
    found = {e: batch_diagnostics(config, model, dataset, train, e) for e in (7, 8, 9)}
    assert list(found[8]) == ["all", "balanced", "ordinary"]
    counts = {name: figures["batches"] for name, figures in found[8].items()}
    assert counts["all"] == counts["balanced"] + counts["ordinary"] == 342 // 32
    # Every third of the 30 batches of three epochs, counted over the run: 3, 3 and 4.
    assert sum(figures["balanced"]["batches"] for figures in found.values()) == 10
    # A balanced batch holds more of the rare classes.
    assert found[8]["balanced"]["distinct_classes"] > found[8]["ordinary"]["distinct_classes"]
    # Few images of the last class, each with a large weight: its gradient grows in epoch 9.
    last = {epoch: figures["all"]["gradient_norms"][-1] for epoch, figures in found.items()}
    assert last[9] > 2 * max(last[7], last[8])


def test_every_batch_alike_does_not_fluctuate():
    config = TrainConfig(loss="ce")
    config.model.width = 4
    config.data.batch_size = 342  # one batch with every training image
    dataset = build_dataset(config, 0)
    model = build_model(config, dataset.channels, dataset.num_classes, seed=0)
    train = inspect_split(model, dataset, "train")
    figures = batch_diagnostics(config, model, dataset, train, epoch=1)["all"]
    assert (figures["batches"], figures["distinct_classes"]) == (1, 10)
    assert figures["covariance_fluctuation"] == 0
    assert figures["distance_to_split"] == pytest.approx(0, abs=1e-12)
