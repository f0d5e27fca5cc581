"""Whitening layers, classifiers, weights of the statistics, and which batches update them."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn import functional

from fastwhiten import ChannelWhitening
from training.config import TrainConfig
from training.engine.batch_rules import BatchRules
from training.models import CosineClassifier, build_model, class_balanced_weights
from training.models.peers import CholeskyWhitening, EagerWhitening, IterNorm
from training.models.whitening import apply_whitening, build_whitening, keep_statistics

LAYERS = {
    "batchnorm": nn.BatchNorm1d,
    "eager": EagerWhitening,
    "cholesky": CholeskyWhitening,
    "iternorm": IterNorm,
    "fused": ChannelWhitening,
}


def _config(whitening: str, **options: object) -> TrainConfig:
    config = TrainConfig(whitening=whitening)
    config.model.width = 2
    for name, value in options.items():
        setattr(config.whitening_options, name, value)
    return config


def _layer(name: str, features: int = 8, **options: object) -> nn.Module:
    return build_whitening(name, features, _config(name, **options).whitening_options)


def _features(rows: int = 64, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(8, 8, generator=generator)
    return torch.randn(rows, 8, generator=generator) @ mixing + 3.0  # [rows, 8]


def _buffers(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.named_buffers()}


def _equal(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


@pytest.mark.parametrize("name", LAYERS)
def test_names_build_their_layer_with_its_options(name: str):
    layer = _layer(name, eps=0.25, momentum=0.5)
    assert type(layer) is LAYERS[name]
    assert (layer.eps, layer.momentum) == (0.25, 0.5)
    if name != "batchnorm":
        assert _layer(name, groups=4).groups == 4
    if name == "iternorm":
        assert _layer(name, iterations=9).iterations == 9
    assert isinstance(_layer("none"), nn.Identity)


@pytest.mark.parametrize("name", ["eager", "cholesky", "iternorm", "fused"])
def test_whitening_layers_whiten(name: str):
    y = apply_whitening(_layer(name, eps=1e-6, groups=2).train(), _features(512))
    for group in (y[:, :4], y[:, 4:]):
        # IterNorm's five Newton steps leave small directions under-whitened.
        tolerance = 0.75 if name == "iternorm" else 1e-3
        assert (group.T @ group / 512 - torch.eye(4)).abs().max() < tolerance


@pytest.mark.parametrize("name", LAYERS)
def test_statistics_are_kept_without_changing_the_output(name: str):
    layer = _layer(name).train()
    apply_whitening(layer, _features(seed=1))
    other = copy.deepcopy(layer)
    before = _buffers(layer)
    x = _features(seed=2).requires_grad_(True)
    y = apply_whitening(layer, x, update_statistics=False)
    assert _equal(before, _buffers(layer))
    updated = apply_whitening(other, x)
    assert torch.equal(y, updated)
    assert not _equal(before, _buffers(other))
    weight = torch.randn(64, 8, generator=torch.Generator().manual_seed(3))
    left, right = (torch.autograd.grad((v * weight).sum(), x)[0] for v in (y, updated))
    assert torch.equal(left, right)
    # The next ordinary batch updates as ever.
    apply_whitening(layer, _features(seed=4))
    assert layer.num_batches_tracked == 2


@pytest.mark.parametrize("name", LAYERS)
def test_evaluation_is_the_same_either_way(name: str):
    layer = _layer(name).train()
    apply_whitening(layer, _features(seed=1))
    layer.eval()
    x = _features(seed=2)
    assert torch.equal(
        apply_whitening(layer, x), apply_whitening(layer, x, update_statistics=False)
    )
    assert apply_whitening(layer, x[:1], update_statistics=False).shape == (1, 8)


def test_blending_uses_the_running_covariance_while_it_is_kept():
    layer = _layer("fused", batch_weight=0.5).train()
    apply_whitening(layer, 10 * _features(seed=1))
    other = copy.deepcopy(layer)
    x = _features(seed=2)
    kept = apply_whitening(layer, x, update_statistics=False)
    assert torch.equal(kept, other(x))
    assert not torch.allclose(kept, _layer("fused").train()(x), atol=1e-3)


@pytest.mark.parametrize("name", ["batchnorm", "fused", "iternorm"])
def test_a_batch_that_is_not_finite_leaves_no_trace(name: str):
    layer = _layer(name).train()
    before = _buffers(layer)
    x = _features()
    x[3, 2] = float("inf")
    y = apply_whitening(layer, x, update_statistics=False)
    assert y.isnan().any()
    assert _equal(before, _buffers(layer))


def test_the_flag_comes_back_after_an_error():
    layer = _layer("fused").train()
    with pytest.raises(ValueError):
        keep_statistics(layer, torch.zeros(1, 8))
    assert layer.track_running_stats


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_whitening_is_float32_under_autocast(name: str, dtype: torch.dtype):
    layer = _layer(name).train()
    x = _features().to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = apply_whitening(layer, x)
    expected = _layer(name).train()(x.float())
    assert y.dtype == dtype
    assert torch.equal(y, expected.to(dtype))
    layer.eval()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = apply_whitening(layer, x)
    assert torch.equal(inside, layer(x.float()).to(dtype))


def _model(whitening: str, layers: str = "whitening", loss: str = "logit-adjusted") -> nn.Module:
    config = _config(whitening)
    config.statistics_layers = layers
    config.loss = loss
    return build_model(config, 1, 3, seed=0).train()


IMAGES = torch.randn(16, 1, 8, 8, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("layers", ["whitening", "all"])
def test_which_layers_keep_their_statistics(layers: str):
    model = _model("fused", layers)
    before = _buffers(model)
    model(IMAGES, update_statistics=False)
    changed = {
        name for name, value in _buffers(model).items() if not torch.equal(value, before[name])
    }
    assert not any(name.startswith("whitening") for name in changed)
    assert bool(changed) == (layers == "whitening")
    model(IMAGES)
    assert not torch.equal(model.whitening.running_cov, before["whitening.running_cov"])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fused", "batchnorm", "cholesky"])
def test_two_compiled_graphs_do_for_both_kinds_of_batches(name: str):
    torch._dynamo.reset()
    model = _model(name, "all")
    plain = copy.deepcopy(model)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    weight = {"sample_weight": torch.linspace(0.5, 2, 16)} if name == "fused" else {}
    for update in (True, False, False, True):
        before = _buffers(model)
        arguments = {**weight, **({} if update else {"update_statistics": False})}
        assert torch.allclose(compiled(IMAGES, **arguments), plain(IMAGES, **arguments), atol=1e-4)
        assert _equal(before, _buffers(model)) != update
    assert counter.frame_count == 2
    torch._dynamo.reset()


def test_kept_statistics_under_data_parallel(tmp_path: Path):
    store = f"file://{tmp_path / 'store'}"
    torch.distributed.init_process_group("gloo", init_method=store, rank=0, world_size=1)
    try:
        model = _model("fused", "all")
        parallel = nn.parallel.DistributedDataParallel(model)
        before = _buffers(model)
        weight = torch.linspace(0.5, 2, 16)
        kept = parallel(IMAGES, sample_weight=weight, update_statistics=False)
        kept.sum().backward()
        assert _equal(before, _buffers(model))
        assert torch.equal(parallel(IMAGES, sample_weight=weight), kept)
        assert not _equal(before, _buffers(model))
    finally:
        torch.distributed.destroy_process_group()


def test_class_balanced_weights_by_hand():
    labels = torch.tensor([0, 0, 0, 1])
    weights = class_balanced_weights(labels, torch.bincount(labels, minlength=3))
    assert weights.tolist() == pytest.approx([2 / 3, 2 / 3, 2 / 3, 2.0])
    # Of a data set of 6, 3 and 1 images: 10 / 3 images per class on average.
    weights = class_balanced_weights(torch.tensor([2, 0]), torch.tensor([6, 3, 1]))
    assert weights.tolist() == pytest.approx([10 / 3, 10 / 18])


def test_weighted_statistics_give_every_class_the_same_weight():
    labels = torch.tensor([0] * 40 + [1] * 16 + [2] * 8)
    x = _features()
    weight = class_balanced_weights(labels, torch.bincount(labels))
    layer = _layer("fused", momentum=1.0).train()
    y = apply_whitening(layer, x, weight)
    means = torch.stack([x[labels == k].mean(0) for k in range(3)])  # [3, 8]
    assert torch.allclose(layer.running_mean, means.mean(0), atol=1e-5)
    centred = x - means.mean(0)
    seconds = [
        centred[labels == k].T @ centred[labels == k] / (labels == k).sum() for k in range(3)
    ]
    assert torch.allclose(layer.running_cov[0], sum(seconds) / 3, rtol=1e-4, atol=1e-4)
    balanced = sum(y[labels == k].T @ y[labels == k] / (labels == k).sum() for k in range(3)) / 3
    assert (balanced - torch.eye(8)).abs().max() < 0.02  # eps of 1e-3 on small eigenvalues


def test_rules_follow_the_configuration():
    counts = torch.tensor([6, 3, 1])
    labels = torch.tensor([0, 0, 0, 1])
    rules = BatchRules.from_config(TrainConfig(), counts)
    assert rules.arguments(labels, "ordinary") == rules.arguments(labels, "balanced") == {}
    for statistics in ("ordinary", "balanced"):
        rules = BatchRules.from_config(TrainConfig(statistics_batches=statistics), counts)
        for kind in ("ordinary", "balanced"):
            expected = {} if kind == statistics else {"update_statistics": False}
            assert rules.arguments(labels, kind) == expected
    config = TrainConfig(whitening_weights="class-balanced")
    found = BatchRules.from_config(config, counts).arguments(labels, "ordinary")
    assert found["sample_weight"].tolist() == pytest.approx([2 / 3, 2 / 3, 2 / 3, 2.0])
    config.whitening_options.weights_from = "dataset"
    found = BatchRules.from_config(config, counts).arguments(labels, "ordinary")
    assert found["sample_weight"].tolist() == pytest.approx([5 / 9, 5 / 9, 5 / 9, 10 / 9])


def test_weights_of_ranks_are_those_of_the_whole_batch():
    labels = torch.tensor([0, 1, 0, 0, 2, 0, 1])
    config = TrainConfig(whitening_weights="class-balanced")
    rules = BatchRules.from_config(config, torch.tensor([60, 30, 10]))
    whole = rules.arguments(labels, "ordinary")["sample_weight"]
    total = torch.bincount(labels, minlength=3)
    for rank in range(2):
        seen = []

        def all_reduce(counts: torch.Tensor, seen: list = seen) -> torch.Tensor:
            seen.append(counts)
            return total

        part = rules.arguments(labels[rank::2], "ordinary", all_reduce)["sample_weight"]
        assert torch.equal(part, whole[rank::2])
        assert torch.equal(seen[0], torch.bincount(labels[rank::2], minlength=3))


def test_cosine_classifier_by_hand():
    head = CosineClassifier(2, 2, scale=10.0)
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[3.0, 0.0], [1.0, 1.0]]))
    logits = head(torch.tensor([[0.0, 5.0], [-7.0, 0.0]]))
    root = 0.5**0.5
    assert logits.flatten().tolist() == pytest.approx([0.0, 10 * root, -10.0, -10 * root])


def test_cosine_classifier_ignores_norms():
    head = CosineClassifier(8, 3, scale=30.0)
    assert torch.allclose(head.weight.norm(dim=1), torch.ones(3))
    x = _features()
    assert torch.allclose(head(x), head(7 * x), atol=1e-4)
    assert torch.allclose(head(x) / 30, functional.cosine_similarity(x[:, None], head.weight, 2))


@pytest.mark.parametrize("loss", ["ldam", "ldam-drw"])
def test_ldam_gets_the_normalised_head(loss: str):
    classifier = _model("fused", loss=loss).classifier
    assert isinstance(classifier, CosineClassifier)
    assert classifier.scale == 30.0
    assert isinstance(_model("fused").classifier, nn.Linear)


def _with_classifier(name: str | None, loss: str = "ce", **options: object) -> nn.Module:
    config = _config("none")
    config.loss, config.model.classifier = loss, name
    for option, value in options.items():
        setattr(config.model, option, value)
    return build_model(config, 1, 3, seed=0).classifier


def test_batchnorm_on_the_logits_standardises_each_class():
    head = _with_classifier("batchnorm").train()
    features = _features(64)
    logits = head(features)
    assert torch.allclose(logits.mean(0), torch.zeros(3), atol=1e-5)
    assert torch.allclose(logits.var(0, correction=0), torch.ones(3), atol=1e-3)
    # A class whose weights are long, as frequent classes' are, gains nothing by that.
    with torch.no_grad():
        head.weight[0] *= 100
    assert torch.allclose(head(features), logits, atol=1e-3)
    head.eval()
    assert torch.allclose(head(features[:1]), head(features)[:1])  # running statistics


def test_a_cosine_classifier_for_any_loss():
    head = _with_classifier("cosine", scale=16.0)
    assert isinstance(head, CosineClassifier) and head.scale == 16.0
    assert _with_classifier(None, loss="ldam").scale == 30.0


def test_the_classifier_s_statistics_are_kept_with_those_of_all_layers():
    config = _config("none")
    config.statistics_layers, config.model.classifier = "all", "batchnorm"
    model = build_model(config, 1, 3, seed=0).train()
    before = _buffers(model)
    model(IMAGES, update_statistics=False)
    assert _equal(before, _buffers(model))
    model(IMAGES)
    changed = before["classifier.normalisation.running_mean"]
    assert not torch.equal(changed, model.classifier.normalisation.running_mean)


def test_kaiming_is_what_the_code_of_ldam_draws():
    config = TrainConfig(whitening="none", loss="ce")
    config.model.name = "resnet-32"
    deviations = {}
    for init in ("torch", "kaiming"):
        config.model.classifier_init = init
        deviations[init] = build_model(config, 3, 100, seed=0).classifier.weight.std().item()
    assert deviations["torch"] == pytest.approx((1 / (3 * 64)) ** 0.5, rel=0.03)  # .072
    assert deviations["kaiming"] == pytest.approx((2 / 64) ** 0.5, rel=0.03)  # .177


def test_one_seed_gives_the_same_weights_with_every_layer():
    states = {name: _model(name).state_dict() for name in ("none", *LAYERS)}
    for state in states.values():
        for name, value in states["none"].items():
            assert torch.equal(state[name], value)


def test_the_loop_passes_kind_and_epoch_on(config: TrainConfig):
    """One epoch of BET: every batch reaches model and loss with its own kind."""
    from training.data import build_dataset
    from training.engine.trainer import build_trainer
    from training.reproducibility import resolve_seeds

    config.whitening, config.sampler, config.bet_period = "fused", "b3rs", 2
    config.statistics_batches, config.whitening_weights = "ordinary", "class-balanced"
    seeds = resolve_seeds(0, config.seeds)
    dataset = build_dataset(config, seeds.split)
    trainer = build_trainer(config, dataset, seeds, torch.device("cpu"))
    seen = SimpleNamespace(updates=[], kinds=[], epochs=[], weights=[])
    forward, loss = trainer.model.forward, trainer.loss.forward

    def record_model(images, sample_weight=None, update_statistics=True):
        seen.updates.append(update_statistics)
        seen.weights.append(sample_weight)
        return forward(images, sample_weight, update_statistics)

    def record_loss(logits, labels, batch_kind="ordinary"):
        seen.kinds.append(batch_kind)
        weights = seen.weights[-1]
        sums = torch.zeros(10).index_add_(0, labels, weights)
        assert sums[sums > 0].std() < 1e-4  # every class in the batch weighs the same
        return loss(logits, labels, batch_kind)

    trainer.model.forward, trainer.loss.forward = record_model, record_loss
    trainer.loss.set_epoch = seen.epochs.append
    trainer.cursor.next_epoch()
    trainer.run_epoch()
    expected = [batch.kind for batch in trainer.sampler.batches(2)]
    assert set(expected) == {"ordinary", "balanced"}
    assert seen.kinds == expected
    assert seen.updates == [kind == "ordinary" for kind in expected]
    assert seen.epochs == [2]
    assert trainer.model.whitening.num_batches_tracked == expected.count("ordinary")
