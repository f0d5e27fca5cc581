"""Entry point of ``python -m training``."""

from __future__ import annotations

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
    from training.cli import run  # after the check, so that a missing package gets one clear line

    return run(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
