"""Builds what is released, and checks that one file serves every Python and every torch.

Usage:
    python tools/release.py build FOLDER         an sdist, and from it the wheel: make wheel
    python tools/release.py repair WHEEL FOLDER  what cibuildwheel calls when it has built one
    python tools/release.py audit WHEEL...       by abi3audit and torch-abi-audit (Python 3.11)
    python tools/release.py symbols MODULE...    compiled modules use torch's stable ABI alone
    python tools/release.py try                  the installed package whitens, with gradients

The wheel has the kernels for the CPU; CUDA's are compiled where the sdist is installed. auditwheel
names it after the oldest glibc that its symbols allow: where the system is newer than manylinux's,
the tag is too. torch's libraries stay out of it, the environment has them.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
OF_TORCH = ("libc10*", "libtorch*", "libcudart*")


def run(command: str, *arguments: str | Path, **options: object) -> None:
    """Run a command of this environment, else of PATH; end with its status where it fails."""
    beside = Path(sys.executable).with_name(command)
    line = [str(beside) if beside.exists() else command, *map(str, arguments)]
    status = subprocess.run(line, **options).returncode
    if status:
        sys.exit(f"fastwhiten: `{' '.join(line)}` ended with status {status}")


def unstable_symbols(module: Path) -> list[str]:
    """Return what a compiled module asks of torch beside the stable ABI (csrc/common/stable.h)."""
    command = ["nm", "-D", "--demangle", "--undefined-only", str(module)]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    if "aoti_torch" not in shown:
        raise ValueError(f"expected a module that uses torch, got {module}")
    return re.findall(r"\b(?:at|c10|torch)::.*", shown)


def symbols(*modules: str | Path) -> None:
    """End with a message where a module uses other symbols of torch than the stable ones."""
    for module in map(Path, modules):
        found = unstable_symbols(module)
        if found:
            lines = "\n".join(found)
            sys.exit(f"fastwhiten: expected torch's stable ABI alone in {module}, got\n{lines}")


def modules_of(wheel: Path, folder: Path) -> list[Path]:
    """Unpack the compiled modules of a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if name.endswith(".so")]
        return [Path(archive.extract(name, folder)) for name in names]


def repair(wheel: str | Path, folder: str | Path) -> None:
    """Check the symbols, and write the wheel to `folder` under the tag that it deserves."""
    with tempfile.TemporaryDirectory() as work:
        symbols(*modules_of(Path(wheel), Path(work)))
    run("auditwheel", "show", wheel)
    excluded = [option for name in OF_TORCH for option in ("--exclude", name)]
    run("auditwheel", "repair", *excluded, "--wheel-dir", folder, wheel)


def audit(*wheels: str | Path) -> None:
    """Have others check the wheels: for Python's limited API, and for torch's stable ABI."""
    for wheel in wheels:
        run("abi3audit", "--strict", "--summary", wheel)
        with tempfile.TemporaryDirectory() as work:
            for module in modules_of(Path(wheel), Path(work)):
                run("torch-abi-audit", "--verbose", "--check", "both", module)


def build(folder: str) -> None:
    """Build an sdist and from that, as pip does, the wheel; repair and audit it."""
    out = Path(folder).resolve()
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as work:
        code = "import sys, setuptools.build_meta as b; b.build_sdist(sys.argv[1])"
        run("python", "-c", code, work, cwd=ROOT, stdout=subprocess.DEVNULL)
        (sdist,) = Path(work).glob("fastwhiten-*.tar.gz")
        options = ["--no-deps", "--no-build-isolation", "--wheel-dir", work]
        environment = {**os.environ, "FASTWHITEN_CUDA": "0"}
        run("python", "-m", "pip", "wheel", *options, sdist, env=environment)
        (wheel,) = Path(work).glob("fastwhiten-*.whl")
        repaired = Path(work) / "repaired"
        repair(wheel, repaired)
        audit(*repaired.iterdir())
        for path in (sdist, *repaired.iterdir()):
            (out / path.name).write_bytes(path.read_bytes())
            print(out / path.name)


def try_installed() -> None:
    """Whiten forward and backward with the compiled kernels of the installed package."""
    import torch

    import fastwhiten

    assert Path(fastwhiten.__file__).parent != ROOT / "fastwhiten", fastwhiten.__file__
    x = torch.randn(64, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
    y = fastwhiten.whiten(x, eps=1e-6, backend="native")
    y.pow(3).sum().backward()
    assert torch.allclose(y.T @ y / 64, torch.eye(8), atol=1e-4)
    assert x.grad is not None and x.grad.isfinite().all()
    print(f"{fastwhiten.__file__}: whitens with torch {torch.__version__}")


if __name__ == "__main__":
    command, *arguments = sys.argv[1:]
    functions = {"build": build, "repair": repair, "audit": audit, "symbols": symbols}
    {**functions, "try": try_installed}[command](*arguments)
