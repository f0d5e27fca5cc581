"""Presets: names, order, and that every one of them is a configuration that makes sense."""

from __future__ import annotations

import io
import math
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from jsonargparse import ArgumentParser
from rich.console import Console

from training.cli import build_parser, parse, run
from training.commands.ablate.choose import trial_config
from training.commands.ablate.plan import plan
from training.commands.presets import PresetsConfig, run_presets
from training.config import TrainConfig, to_dict, validate
from training.engine.optim import schedule_factor
from training.models import check_groups
from training.presets import FOLDER, expand_presets, methods, preset_files, protocols
from training.samplers import InstanceSampler


@pytest.fixture(scope="module")
def parser() -> ArgumentParser:
    return build_parser()


@pytest.mark.slow
@pytest.mark.parametrize("protocol", protocols())
def test_every_preset_is_a_configuration_that_makes_sense(protocol: str, parser: ArgumentParser):
    root = [] if protocol == "digits-lt" else ["--data.root=/data"]
    for method in methods():
        arguments = expand_presets(["train", "--config", f"{protocol}/{method}", *root])
        values = vars(parser.instantiate(parser.parse_args(arguments)).train)
        values.pop("config")
        config = TrainConfig(**values)
        validate(config)
        check_groups(config)
        heads = {"ours": "fused", "bet": "fused", "batchnorm": "batchnorm"}
        expected = heads.get(method, "none")
        assert config.whitening == expected, f"methods/{method}.yaml"


def test_the_published_numbers():
    config = parse(["train", "--config", "cifar100-lt-50/ldam-drw", "--data.root", "/data"])[1]
    assert (config.dataset, config.imbalance_factor, config.loss) == ("cifar100-lt", 50, "ldam-drw")
    optim = config.optim
    assert (optim.epochs, optim.lr, optim.weight_decay) == (200, 0.1, 2e-4)
    assert (optim.milestones, optim.factors) == ([160, 180], [0.01, 0.01])
    assert (config.model.name, config.model.classifier_init) == ("resnet-32", "kaiming")
    for method, period in (("ours", None), ("bet", 8)):
        config = parse(["train", "--config", f"imagenet-lt/{method}", "--data.root", "/data"])[1]
        found = (config.sampler, config.bet_period, config.whitening_options.groups)
        assert found == ("b3rs", period, 32)


@pytest.mark.parametrize(("name", "steps"), [("imagenet-lt", 226), ("inaturalist18", 854)])
def test_the_rate_and_the_steps_of_kang(name: str, steps: int):
    config = parse(["train", "--config", f"{name}/crt", "--data.root", "/data"])[1]
    images = {"imagenet-lt": 115_846, "inaturalist18": 437_513}[name]
    assert len(InstanceSampler(images, 512, 0, config.data.drop_last)) == steps
    rates = [0.2 * schedule_factor(step, config.optim, steps) for step in (0, steps - 1, steps)]
    assert rates == pytest.approx([0.2, 0.2, 0.1 * (1 + math.cos(math.pi / 90))], rel=1e-12)


def test_rivals_are_what_their_papers_call_so():
    made = {
        name: parse(["train", "--config", f"cifar100-lt-100/{name}", "--data.root", "/data"])[1]
        for name in ("los", "post-hoc", "mixup", "cosine", "batchnorm-logits")
    }
    assert all(
        (c.loss, c.whitening, c.sampler) == ("ce", "none", "instance") for c in made.values()
    )
    assert made["los"].optim.weight_decay == made["post-hoc"].optim.weight_decay == 5e-3
    assert made["mixup"].mixup == 1.0
    assert made["cosine"].model.classifier == "cosine"
    assert made["batchnorm-logits"].model.classifier == "batchnorm"
    # The protocol's part stays.
    assert {c.model.name for c in made.values()} == {"resnet-32"}
    assert made["los"].optim.milestones == [160, 180]


def test_digits_run_with_our_preset_file_and_what_is_typed_wins(tmp_path: Path):
    config = parse(["train", "--config", "digits-lt/ce", "--loss", "logit-adjusted"])[1]
    assert (config.dataset, config.whitening, config.loss) == (
        "digits-lt",
        "none",
        "logit-adjusted",
    )


def test_the_orders_of_the_classes_are_one_arm_and_choose_one_weight_decay():
    config = parse(["ablate", "--config", str(FOLDER / "grids" / "fashion-mnist-lt-100.yaml")])[1]
    decays = {"optim.weight_decay": [2e-4, 5e-4, 1e-3, 5e-3]}
    config = replace(config, choose=decays, choose_seeds=[1000])
    trial = plan(trial_config(config))
    assert len(trial.runs) == 6 * 3 * 4 and len({run.arm for run in trial.runs}) == 6
    chosen = {("fashion-mnist-lt", run.arm): {"optim.weight_decay": 1e-3} for run in trial.runs}
    grid = plan(config, chosen)
    assert len(grid.runs) == 6 * 3 * len(config.seeds)
    assert {run.config.data.class_order_seed for run in grid.runs} == {0, 1, 2}
    assert {run.config.optim.weight_decay for run in grid.runs} == {1e-3}


@pytest.mark.slow
def test_the_grid_has_the_protocol_and_the_methods_of_the_presets():
    root = ["--train.data.root", "/data"]
    path = FOLDER / "grids" / "cifar10-lt-100.yaml"
    config = parse(["ablate", "--config", str(path), *root])[1]
    grid = plan(replace(config, seeds=[4]))
    assert len(grid.runs) * len(config.seeds) == 60
    methods = {}
    for arm in ("ce", "logit-adjusted", "ldam-drw", "class-balanced", "bet", "ours"):
        arguments = ["train", "--config", f"cifar10-lt-100/{arm}", "--data.root", "/data"]
        methods[f"image-folder-{arm}-4"] = published = parse(arguments)[1]
    for planned in grid.runs:
        assert (planned.config.optim, planned.config.model) == (published.optim, published.model)
        ours, theirs = (to_dict(config)["data"] for config in (planned.config, published))
        different = {name for name in ours if ours[name] != theirs[name]}
        assert different == {"resident", "imbalance_type", "validation_from"}  # it is cut already
        method = methods.pop(planned.name, planned.config)
        for name in ("whitening", "loss", "loss_options", "sampler", "bet_period"):
            assert getattr(planned.config, name) == getattr(method, name), name
    assert not methods


def test_a_name_stands_for_its_files_in_order():
    files = [f"--config={path}" for path in preset_files("imagenet-lt/ours")]
    assert [Path(f).name for f in files] == ["protocol.yaml", "ours.yaml", "ours.yaml"]
    for arguments in (["--config", "imagenet-lt/ours"], ["--config=imagenet-lt/ours"]):
        assert expand_presets(["train", *arguments, "--seed", "1"]) == [
            "train", *files, "--seed", "1"
        ]  # fmt: skip


def test_a_file_of_that_name_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits-lt").mkdir()
    (tmp_path / "digits-lt" / "ce").write_text("seed: 7\n")
    assert parse(["train", "--config", "digits-lt/ce"])[1].seed == 7


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cifar100-lt/ours", "no protocol 'cifar100-lt'. Did you mean 'cifar100-lt-"),
        ("digits-lt/ldm", "no method 'ldm'. Did you mean 'ldam'?"),
        ("nothing/ours", "Known ones: cifar10-jpeg-lt, "),
    ],
)
def test_an_unknown_name_is_one_clear_line(
    name: str, message: str, capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(SystemExit) as stopped:
        run(["train", "--config", name])
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert "config: expected a file or a preset PROTOCOL/METHOD" in error and message in error


def test_every_file_says_what_it_is_and_where_its_numbers_come_from():
    for path in FOLDER.glob("*/*.yaml"):
        lines = path.read_text().splitlines()
        assert lines[0].startswith("# ") and max(map(len, lines)) <= 100, path
        assert isinstance(yaml.safe_load("\n".join(lines)), dict), path
    for name in protocols():
        text = (FOLDER / name / "protocol.yaml").read_text()
        assert "et al." in text or "Not a published protocol" in text


def test_the_command_lists_every_protocol_and_method():
    console = Console(file=io.StringIO(), width=80)
    run_presets(PresetsConfig(), console)
    lines = console.file.getvalue().splitlines()
    for name in (*protocols(), *methods()):
        assert any(line.startswith(f"  {name} ") and len(line) > 30 for line in lines), name
    assert len(protocols()) == 12 and {"ours", "ldam-drw", "tau-norm"} < set(methods())


def test_presets_needs_no_option(capsys: pytest.CaptureFixture[str]):
    assert run(["presets"]) == 0
    assert "cifar100-lt-100" in capsys.readouterr().out
