"""Entry point of ``python -m training``."""

from __future__ import annotations

import ctypes
import importlib.util
import sys

# Import name -> name to install; `fastwhiten` itself never needs these.
_REQUIRED = {
    "jsonargparse": "jsonargparse",
    "matplotlib": "matplotlib",
    "rich": "rich",
    "sklearn": "scikit-learn",
    "yaml": "pyyaml",
}


# Parameters of mallopt, from glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3


def keep_freed_memory() -> None:
    """Let the C library keep the memory that torch frees on a CPU, for the next step.

    glibc gives blocks of a few megabytes, as activations are, back to the system at once, and the
    system clears every page of them before they come again.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library, which has its own ways
        return
    # Before 2.35 it refuses more than 32 MiB.
    mallopt(_MMAP_THRESHOLD, 1 << 30) or mallopt(_MMAP_THRESHOLD, 1 << 25)
    mallopt(_TRIM_THRESHOLD, (1 << 31) - 1)


def main() -> int:
    """Run the command line; return the exit status."""
    missing = [name for name in _REQUIRED if importlib.util.find_spec(name) is None]
    if missing:
        names = ", ".join(_REQUIRED[name] for name in missing)
        print(
            f"training: expected {names} to be installed, found none; "
            "run: pip install 'fastwhiten[train]'",
            file=sys.stderr,
        )
        return 2
    keep_freed_memory()
    from training.cli import run  # after the check, so that a missing package gets one clear line

    return run(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
