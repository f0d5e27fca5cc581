"""The pictures of a run and its one-page report, which opens offline."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Mapping, Sequence
from typing import Any

from training.evaluation.features import singular_values
from training.evaluation.inspection import ModelView
from training.evaluation.metrics import COLUMNS, confusion_matrix, reliability
from training.report.plot_accuracy import plot_accuracy_over_frequency, plot_curves
from training.report.plot_features import (
    plot_feature_correlation,
    plot_singular_values,
    plot_weight_norms,
)
from training.report.plot_predictions import plot_confusion, plot_reliability
from training.report.progress import percent
from training.runs.folder import RunFolder, write_text

_CAPTIONS = {
    "accuracy_over_frequency": "Test accuracy per class over the number of training images.",
    "curves": "Loss, accuracy and learning rate per epoch.",
    "confusion": "Confusion matrix: which class is taken for which, in per cent of the true class.",
    "feature_correlation": (
        "Pearson correlation of the features before and after the layer in front of the "
        "classifier, in evaluation mode, on a balanced split. The layer uses the statistics of the "
        "long-tailed training data, so what is left after exact whitening is the difference "
        "between the two splits."
    ),
    "singular_values": "Singular values of the centred features before and after the same layer.",
    "weight_norms": "Norm of each class's weight vector in the linear classifier.",
    "reliability": "Accuracy over confidence, and the number of images, in 15 bins of confidence.",
}

_OPEN_ROWS = 30
_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem;
       color: #222; }
table { border-collapse: collapse; margin: 1rem 0; }
th, td { padding: 0.25rem 0.8rem; text-align: right; border-bottom: 1px solid #ddd; }
th:nth-child(-n+2), td:nth-child(-n+2) { text-align: left; }
.wide { overflow-x: auto; }
@media (max-width: 40rem) { body { margin: 1rem auto; } th, td { padding: 0.2rem 0.4rem; } }
figure { margin: 2rem 0; } img { max-width: 100%; } figcaption, .note { color: #555; }
pre { background: #f5f5f5; padding: 1rem; overflow-x: auto; font-size: 0.85rem; }
"""


def draw_plots(
    folder: RunFolder,
    summary: Mapping[str, Any],
    records: Sequence[Mapping[str, Any]],
    view: ModelView,
) -> None:
    """Draw all pictures of a run into its folder, as PNG and SVG.

    Args:
        folder: The run folder.
        summary: The content of summary.json.
        records: The lines of metrics.jsonl.
        view: What the model of one checkpoint makes of one split.
    """
    plot_accuracy_over_frequency(folder.plot("accuracy_over_frequency"), summary)
    plot_curves(folder.plot("curves"), records, summary["best"]["epoch"])
    checkpoint, inspection = view.checkpoint, view.inspection
    predictions = inspection.logits.argmax(1)
    confusion = confusion_matrix(inspection.labels, predictions, inspection.logits.shape[1])
    plot_confusion(
        folder.plot("confusion"), confusion.numpy(), summary, checkpoint, inspection.split
    )
    plot_feature_correlation(
        folder.plot("feature_correlation"),
        {name: matrix.numpy() for name, matrix in view.correlations.items()},
        view.mean_abs_correlation,
        summary["whitening"],
        inspection.split,
    )
    values = {"before": inspection.before, "after": inspection.after}
    plot_singular_values(
        folder.plot("singular_values"),
        {name: singular_values(features).numpy() for name, features in values.items()},
        summary["whitening"],
        inspection.split,
    )
    plot_weight_norms(folder.plot("weight_norms"), view.weight_norms.numpy(), summary, checkpoint)
    plot_reliability(
        folder.plot("reliability"),
        reliability(inspection.logits, inspection.labels),
        checkpoint,
        inspection.split,
    )


def write_report(folder: RunFolder, summary: Mapping[str, Any]) -> None:
    """Write report.html; the pictures are inside the file, nothing is loaded from elsewhere."""
    title = html.escape(
        f"{summary['dataset']}: whitening {summary['whitening']}, loss {summary['loss']}, "
        f"seed {summary['seed']}"
    )
    figures = "\n".join(_figure(folder, name, text) for name, text in _CAPTIONS.items())
    config = html.escape(folder.config.read_text(encoding="utf-8"))
    environment = html.escape(folder.environment.read_text(encoding="utf-8"))
    write_text(
        folder.report,
        f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>{_STYLE}</style></head>
<body><h1>{title}</h1>
<p>{_data_sentence(summary)}</p>
{_table(summary)}
<p>Accuracies in per cent; many, medium and few are the classes with more than 100, 20 to 100 and
fewer than 20 training images, a dash is a group without classes. {_selection_sentence(summary)}
{summary["wall_seconds"]:.1f} seconds in all, {summary["images_per_second"]:.0f} images per
second in training.</p>
{_class_table(summary)}
{ood_tables(folder)}
{figures}
<p class="note">The recipe is a reimplementation from the abstracts and public reviews of
arXiv 2112.05958 and arXiv 2408.17197; it does not claim to reproduce their numbers. One run on a
small data set is an illustration, not evidence for one layer over another.</p>
<details><summary>Configuration</summary><pre>{config}</pre></details>
<details><summary>Environment</summary><pre>{environment}</pre></details>
</body></html>
""",
    )


def _data_sentence(summary: Mapping[str, Any]) -> str:
    sizes = summary["split_sizes"]
    counts = summary["class_counts"]
    return (
        f"{len(counts)} classes, imbalance factor {summary['imbalance_factor']:g}: "
        f"{sizes['train']} training images ({max(counts)} of the most frequent class, "
        f"{min(counts)} of the rarest), {sizes['validation']} for validation, "
        f"{sizes['test']} for testing. {html.escape(summary.get('cut', ''))}"
    )


def _selection_sentence(summary: Mapping[str, Any]) -> str:
    selection = summary["selection"]
    if selection["metric"] is None:
        return "No split was held out to choose an epoch, so the best one is the last one."
    metric = html.escape(selection["metric"].replace("_", " "))
    return (
        f'"Best" is the epoch with the highest {metric} on the {html.escape(selection["split"])} '
        "split, which was not trained on. "
        "The test split chose nothing."
    )


def _table(summary: Mapping[str, Any]) -> str:
    heads = "".join(f"<th>{heading}</th>" for heading in COLUMNS.values())
    rows = []
    for kind in ("last", "best"):
        for split in ("validation", "test"):
            result = summary[kind][split]
            if result is None:  # the data set has no such split
                continue
            cells = "".join(f"<td>{percent(result[name])}</td>" for name in COLUMNS)
            rows.append(
                f"<tr><td>{kind} (epoch {summary[kind]['epoch']})</td><td>{split}</td>{cells}"
                f"<td>{result['loss']:.3f}</td></tr>"
            )
    return (
        f'<div class="wide"><table><tr><th>checkpoint</th><th>split</th>{heads}<th>loss</th></tr>'
        + "".join(rows)
        + "</table></div>"
    )


def _class_table(summary: Mapping[str, Any]) -> str:
    """One row per class, most frequent first: its images, its group, its test accuracies."""
    groups = {k: name for name, members in summary["shot_groups"].items() for k in members}
    counts = summary["class_counts"]
    kinds = [kind for kind in ("last", "best") if summary[kind]["test"] is not None]
    rows = []
    for k in sorted(range(len(counts)), key=lambda k: (-counts[k], k)):
        cells = [percent(summary[kind]["test"]["per_class"][k]) for kind in kinds]
        name = html.escape(summary["class_names"][k])
        rows.append(
            f"<tr><td>{name}</td><td>{groups[k]}</td>"
            + "".join(f"<td>{cell}</td>" for cell in (counts[k], *cells))
            + "</tr>"
        )
    heads = "".join(f"<th>test, {kind} (%)</th>" for kind in kinds)
    return (
        f"<details{' open' if len(counts) <= _OPEN_ROWS else ''}><summary>Every class</summary>"
        f'<div class="wide"><table><tr><th>class</th><th>group</th><th>training images</th>{heads}'
        f"</tr>{''.join(rows)}</table></div></details>"
    )


_SCORES = {
    "max_softmax": "maximum softmax probability",
    "mahalanobis_layer": "Mahalanobis, the layer's running statistics",
    "mahalanobis_pooled": "Mahalanobis, pooled covariance, unit norm",
    "mahalanobis_raw": "Mahalanobis, covariance per class",
}


def ood_tables(folder: RunFolder) -> str:
    """A table of each foreign data set that `diagnose --ood` has tried; nothing if it has not."""
    tables = []
    for path in sorted((folder.path / "diagnostics").glob("*.json")):
        diagnosis = json.loads(path.read_text(encoding="utf-8"))
        for name, scores in diagnosis.get("ood", {}).items():
            rows = "".join(
                f"<tr><td>{text}</td><td>{percent(scores[score]['auroc'])}</td>"
                f"<td>{percent(scores[score]['fpr95'])}</td></tr>"
                for score, text in _SCORES.items()
                if score in scores
            )
            tables.append(
                f"<h2>Out of distribution: {html.escape(name)}</h2><p>{diagnosis['checkpoint']} "
                f"checkpoint, {diagnosis['images']} images of the {diagnosis['split']} split "
                f"against {scores['images']}.</p><table><tr><th>score</th><th>AUROC (%)</th>"
                f"<th>FPR at 95 % TPR (%)</th></tr>{rows}</table>"
            )
    return "".join(tables)


def _figure(folder: RunFolder, name: str, caption: str) -> str:
    picture = base64.b64encode(folder.plot(name).read_bytes()).decode("ascii")
    return (
        f'<figure><img alt="{html.escape(caption)}" src="data:image/png;base64,{picture}">'
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
    )
