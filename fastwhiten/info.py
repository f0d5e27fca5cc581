"""What is installed, how it was built, and which backend serves which case.

Run it with ``python -m fastwhiten.info`` (``--json`` for programs), and put its output into a bug
report.
"""

from __future__ import annotations

import argparse
import json
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from . import __version__, backends
from ._ops import ops
from .backends import cuda_module, native

ABSENT = "absent"


def versions() -> dict[str, str]:
    """Return the versions of what results depend on; "absent" for a package that is missing.

    Example:
        >>> import fastwhiten.info
        >>> sorted(fastwhiten.info.versions())
        ['fastwhiten', 'numpy', 'python', 'torch', 'triton']
    """
    found = {
        "fastwhiten": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    for package in ("numpy", "triton"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = ABSENT
    return found


def machine() -> dict[str, str]:
    """Return the package's folder, platform, processor with its vector extension, threads, GPUs."""
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "package": str(Path(__file__).parent),
        "platform": platform.platform(),
        "processor": f"{_processor()}, {torch.backends.cpu.get_cpu_capability()}",
        "threads": str(torch.get_num_threads()),
        "cuda": torch.version.cuda or f"{ABSENT} (a CPU build of torch)",
        "gpus": ", ".join(gpus) or "none",
    }


def _processor() -> str:
    # platform.processor() is empty on most Linux distributions.
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def build() -> dict[str, str]:
    """Return which compiled modules were loaded, how they were built, and who solves for them.

    Empty where there are none; the reason stands under :func:`collect`'s "backends".
    """
    how = native.build
    if not how:
        return {}
    return {
        "fastwhiten_cpu": how["file"],
        "fastwhiten_cuda": cuda_module.build.get("file", ABSENT),
        "fingerprint": how["sources"]["fastwhiten_cpu"],
        "torch at build": how["torch"],
        "stable ABI target": how["torch_target"],
        "compiler": how["compiler"],
        "flags": how["flags"],
        "cuda": how["cuda"],
        "cuda architectures": ", ".join(how["cuda_archs"]) or ABSENT,
        "linear algebra": ops.linear_algebra_provider(),
        "wide groups on a GPU": (ops.library_eigensolver() if cuda_module.build else ABSENT),
    }


def collect() -> dict[str, Any]:
    """Return everything that ``python -m fastwhiten.info`` prints, ready for ``json.dumps``.

    Returns:
        A dictionary of sections.
        "versions", "machine" and "build": name to text; "backends": name to None, or to the
        reason why it cannot be used here; "cases": for each case the backend that
        ``backend="auto"`` takes and why.

    Example:
        >>> import fastwhiten.info
        >>> fastwhiten.info.collect()["backends"]["reference"] is None
        True
    """
    cases = [
        {"case": case, "backend": backend, "reason": reason}
        for case, backend, reason in backends.explain()
    ]
    return {
        "versions": versions(),
        "machine": machine(),
        "build": build(),
        "backends": backends.available(),
        "cases": cases,
    }


def render(info: dict[str, Any]) -> str:
    """Return the text form of what :func:`collect` found: one section per key, aligned."""
    sections = {
        **{name: info[name] for name in ("versions", "machine", "build")},
        "backends": {
            name: "available" if reason is None else f"{ABSENT}: {reason}"
            for name, reason in info["backends"].items()
        },
        'which backend "auto" takes': {
            entry["case"]: f"{entry['backend']}: {entry['reason']}" for entry in info["cases"]
        },
    }
    lines: list[str] = []
    for title, entries in sections.items():
        lines.append(title)
        width = max((len(name) for name in entries), default=0)
        lines += [f"  {name:<{width}}  {text}" for name, text in entries.items()]
        if not entries:
            lines.append(f"  {ABSENT}")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    """Print the report; ``arguments`` are the command line's by default."""
    parser = argparse.ArgumentParser(prog="python -m fastwhiten.info", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(arguments)
    info = collect()
    print(json.dumps(info, indent=2) if options.json else render(info))


if __name__ == "__main__":
    main()
