#!/usr/bin/env bash
# Everything that needs a GPU, in one go and within ten minutes: tools/gpu_check.sh [PART...]
# tools/gpu_check.py says which parts there are and does them; --help shows its options.
set -uo pipefail
cd "$(dirname "$0")/.."

# The interpreter that has PyTorch: $PYTHON, else that of the active environment.
for python in ${PYTHON:-python python3}; do
  if "$python" -c 'import importlib.util as u; raise SystemExit(u.find_spec("torch") is None)' \
    2>/dev/null; then
    exec "$python" tools/gpu_check.py "$@"
  fi
done
echo "gpu_check: expected a Python with torch, tried ${PYTHON:-python python3}; set PYTHON to one" >&2
exit 2
