"""The command line: precedence, and errors that name what is allowed."""

from __future__ import annotations

import io
import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from training.cli import parse, run
from training.console import say


def test_defaults_need_no_arguments():
    command, config = parse(["train"])
    assert command == "train"
    assert config.dataset == "digits-lt"
    assert config.imbalance_factor is None  # the data set decides
    assert config.data.batch_size == 128


def test_command_line_overrides_yaml(tmp_path: Path):
    path = tmp_path / "a.yaml"
    path.write_text("seed: 3\noptim:\n  lr: 0.5\n  epochs: 7\n")
    config = parse(["train", "--config", str(path), "--optim.lr", "0.25"])[1]
    assert (config.seed, config.optim.lr, config.optim.epochs) == (3, 0.25, 7)


@pytest.mark.parametrize("option", ["--imbalance-factor", "--imbalance_factor"])
def test_hyphens_and_underscores_are_the_same(option: str):
    assert parse(["train", option, "10"])[1].imbalance_factor == 10
    assert parse(["train", f"{option}=10"])[1].imbalance_factor == 10


def test_a_value_keeps_its_hyphens():
    assert parse(["train", "--loss", "logit-adjusted"])[1].loss == "logit-adjusted"
    assert parse(["train", "--output.name=a-b"])[1].output.name == "a-b"


def test_false_is_false():
    assert parse(["train", "--data.drop_last", "false"])[1].data.drop_last is False


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["train", "--whitening", "zca"], "'none', 'batchnorm', 'eager', 'cholesky', 'iternorm'"),
        (["train", "--loss=mse"], "'ce', 'focal', 'cb', 'ldam', 'ldam-drw', 'balanced-softmax'"),
        (
            ["train", "--sampler=uniform"],
            "'instance', 'class-balanced', 'sqrt', 'progressive', 'b3rs'",
        ),
        (["train", "--whitening_options.kind", "svd"], "'zca', 'pca', 'cholesky'"),
        (["train", "--imbalance-facto", "3"], "Did you mean 'imbalance_factor'?"),
        (["train", "--optim.lrr", "3"], "Did you mean 'optim.lr'?"),
        (["train", "--output.tensorboard=false"], "Did you mean 'output.loggers'?"),
        (["train", "--seed", "one"], "seed"),
        (["trian"], "'train'"),
        (["train", "--whitening_options.foo", "1"], "Did you mean 'whitening_options."),
        ([], "train"),
    ],
)
def test_wrong_arguments_name_what_is_allowed(
    arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(SystemExit) as stopped:
        parse(arguments)
    assert stopped.value.code == 2
    assert expected in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("optim:\n  lrr: 1.0\n", "Did you mean 'optim.lr'?"),
        ("whiteningg: none\n", "Did you mean 'whitening'?"),
        ("whitening: zca\n", "'none', 'batchnorm', 'eager', 'cholesky', 'iternorm', 'fused'"),
    ],
)
def test_wrong_yaml_names_what_is_allowed(
    text: str, expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    path = tmp_path / "a.yaml"
    path.write_text(text)
    with pytest.raises(SystemExit):
        parse(["train", "--config", str(path)])
    assert expected in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--wrong", "--optim.lrr", "--optim.lr=x"])
def test_a_complaint_is_short_and_says_where_all_options_are(
    option: str, capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(SystemExit):
        parse(["train", option, "1"])
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) <= 3
    assert lines[-1].endswith(" train --help lists what there is.")
    assert "[options]" not in lines[-1]  # what is named is a command that runs


@pytest.mark.parametrize("command", ["eval", "diagnose", "plot", "export", "stage2 crt"])
def test_every_command_takes_a_run_the_same_way(command: str):
    assert parse([*command.split(), "folder"])[1].run == "folder"


def test_a_configuration_out_of_range_is_reported_without_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    root = tmp_path / "runs"
    assert run(["train", "--imbalance-factor", "0.5", "--output.root", str(root)]) == 2
    assert capsys.readouterr().err == ("error: imbalance_factor: expected a value >= 1, got 0.5.\n")
    assert not root.exists()


def test_help_of_the_module_runs():
    result = subprocess.run(
        [sys.executable, "-m", "training", "train", "--help"],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        check=False,
    )
    assert result.returncode == 0
    assert "--whitening {none,batchnorm,eager,cholesky,iternorm,fused}" in result.stdout


def test_a_terminal_shows_at_once_that_something_happens(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert run(["train", "--optim.lr=-1"]) == 2
    assert capsys.readouterr().err.startswith("train: starting\n")


def test_text_is_printed_as_it_is():
    console = Console(file=io.StringIO(), width=20)
    path = "/a folder/[bold]/" + "x" * 40
    say(console, path)
    assert console.file.getvalue() == f"{path}\n"


def test_nothing_prints_text_in_another_way():
    """A line that is broken, or brackets taken for markup, make a path useless."""
    for file in Path(__file__).parents[2].glob("training/**/*.py"):
        if file.name != "console.py":
            printed = re.findall(r"console\.print\((.*)", file.read_text())
            assert all(re.match(r"(_\w*)?(table|features|batches)", text) for text in printed), file


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_large_blocks_are_not_given_back_to_the_system():
    """A block that is mapped on its own goes back as soon as it is freed: there is none."""
    code = (
        "import ctypes\n"
        "from training.__main__ import keep_freed_memory\n"
        "class Info(ctypes.Structure):\n"
        "    _fields_ = [(name, ctypes.c_size_t) for name in 'a b c d mapped f g h i j'.split()]\n"
        "library = ctypes.CDLL(None)\n"
        "library.mallinfo2.restype = Info\n"
        "library.malloc.argtypes = [ctypes.c_size_t]\n"
        "keep_freed_memory()\n"
        "before = library.mallinfo2().mapped\n"
        "library.malloc(2**24)\n"
        "print(library.mallinfo2().mapped - before)\n"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "0\n"
