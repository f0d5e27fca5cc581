"""What benchmarks/gpu.py promises: verified first, a failure is that one's alone, nothing twice."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import gpu, gpu_cases, products
from benchmarks.gpu_timing import NotMeasured, NotServed, measure

CPU = torch.device("cpu")


def raising(error: Exception):
    def raises(*_):
        raise error

    return raises


def test_who_fails_is_written_down_and_the_others_are_timed() -> None:
    runs = {"count": 0}

    def count() -> None:
        runs["count"] += 1

    def late() -> None:
        if runs["count"] > 2:
            raise ValueError("only in the second round")

    found = measure(
        {
            "good": lambda: (count, {"error": 1e-7}),
            "wrong": raising(AssertionError("output wrong by 0.5\nand more")),
            "late": lambda: (late, {}),
            "absent": raising(NotMeasured("no GPU")),
            "too large": raising(NotServed("order 128")),
        },
        CPU,
        rounds=4,
    )
    assert found["good"].pop("eager_us") > 0 and found["good"] == {"error": 1e-7}
    assert found["wrong"] == {"failed": "AssertionError: output wrong by 0.5"}
    assert found["late"] == {"failed": "ValueError: only in the second round"}
    assert found["absent"] == {"not_measured": "no GPU"}
    assert found["too large"] == {"not_measured": "order 128", "by_design": True}
    assert runs["count"] == 5, "once before the rounds"


@pytest.mark.parametrize("stage", products.STAGES)
@pytest.mark.parametrize("shape", [(70, 9), (5, 8, 3, 4)])
def test_a_product_is_compared_before_it_is_timed(shape, stage, monkeypatch) -> None:
    found = measure(products.prepares(shape, stage, CPU), CPU, rounds=1)
    assert all("eager_us" in entry for entry in found.values()), found
    rows, channels = 70 if len(shape) == 2 else 60, shape[1]
    count = 2 if stage == "backward_apply" else 1
    assert found["ours"]["operations"] == 2 * count * rows * channels**2
    right = products.native

    def wrong(stage: str, arguments: tuple) -> object:
        run = right(stage, arguments)

        def off():
            result = run()
            first, *rest = [result] if isinstance(result, torch.Tensor) else result
            return (1.001 * first, *rest) if rest else 1.001 * first

        return off

    monkeypatch.setattr(products, "native", wrong)
    found = measure(products.prepares(shape, stage, CPU), CPU, rounds=1)
    assert "relative error 1.0e-03" in found["ours"]["failed"]
    assert "eager_us" in found["library"]


def test_a_wrong_gradient_is_no_result(monkeypatch) -> None:
    scene = next(s for s in gpu_cases.SCENES if s.name == "(128, 64)")

    class Wrong(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            return 1.01 * grad

    make = gpu_cases.providers.make

    def broken(name, *rest):
        whiten = make(name, *rest)
        return (lambda x: Wrong.apply(whiten(x))) if name == "fused" else whiten

    monkeypatch.setattr(gpu_cases.providers, "make", broken)
    found = measure(gpu_cases.whole(scene, CPU), CPU, rounds=1)
    assert "gradient wrong by 1.0e-02" in found["fused"]["failed"]
    assert found["closed-form"]["grad_error"] < gpu_cases.GRADIENT_TOLERANCE
    assert "residual" in found["cholesky"] and "eager_us" in found["iternorm"]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Run the program on two cases of two names; the first case's second name may fail."""
    measured: list[str] = []

    def case(name: str, fails: bool) -> gpu_cases.Case:
        def prepare(device: torch.device):
            measured.append(name)
            bad = raising(RuntimeError("broken"))
            return {"a": lambda: (int, {}), "b": bad if fails else (lambda: (int, {}))}

        return gpu_cases.Case("whole", name, ("a", "b"), prepare)

    def main(*arguments: str, fails: bool = False) -> tuple[int, list[str], dict]:
        measured.clear()
        monkeypatch.setattr(gpu, "plan", lambda small: [case("x", fails), case("y", False)])
        monkeypatch.setattr(
            sys,
            "argv",
            ["gpu", "--output", str(tmp_path / "b.json"), "--device", "cpu", *arguments],
        )
        status = gpu.main()
        results = json.loads((tmp_path / "b.json").read_text())
        return status, list(measured), results

    before = torch.get_num_threads()
    yield main
    torch.set_num_threads(before)


def test_what_is_measured_is_not_measured_again_unless_it_failed(run) -> None:
    status, measured, results = run(fails=True)
    assert status == 1 and measured == ["x", "y"]
    assert results["measured"]["whole"]["x"]["b"] == {"failed": "RuntimeError: broken"}
    assert results["expected"] == {"whole": {"x": ["a", "b"], "y": ["a", "b"]}}
    status, measured, results = run()
    assert status == 0 and measured == ["x"]
    assert "eager_us" in results["measured"]["whole"]["x"]["b"]
    assert run("--sources", "other")[1] == ["x", "y"], "other sources, other times"


def test_the_file_is_written_after_every_case(run, tmp_path, monkeypatch) -> None:
    saved: list[int] = []
    save = gpu.save

    def spy(path: Path, results: dict) -> None:
        save(path, results)
        saved.append(len(json.loads(path.read_text())["measured"].get("whole", {})))

    monkeypatch.setattr(gpu, "save", spy)
    run()
    assert saved == [0, 1, 2]


def test_no_case_begins_after_its_time(run) -> None:
    status, measured, results = run("--seconds", "-1")
    assert status == 1 and measured == []
    assert results["measured"] == {} and "x" in results["expected"]["whole"]
