#!/usr/bin/env bash
# Everything that needs a GPU, in one go and within ten minutes: tools/gpu_check.sh [PART...]
#
#   build      installs fastwhiten (editable) with its CUDA module into the active environment
#   tests      pytest tests/gpu: CUDA C++ kernels, and Triton's, compiled
#   sanitizer  compute-sanitizer's memcheck, racecheck and synccheck on small cases
#   benchmarks forward + backward against the peers, then CUDA C++ beside Triton stage by stage,
#              L2-cold, in CUDA graphs where they can be captured
#   summary    a short table of all of it
#
# Results go to $OUT, by default ./gpu-results: a log per part, JSON for tests and benchmarks. A part
# that has passed is not run again in the same folder (remove PART.done to repeat it). --dry-run
# does on a machine without a GPU what can be done there, with the CPU's kernels and Triton's
# interpreter.
set -uo pipefail
cd "$(dirname "$0")/.."

dry=false
if [ "${1:-}" = --dry-run ]; then
  dry=true
  shift
  export FASTWHITEN_TEST_DEVICE=cpu
fi
parts=("$@")
[ ${#parts[@]} -gt 0 ] || parts=(build tests sanitizer benchmarks summary)
export OUT=${OUT:-$PWD/gpu-results}
# Triton kernels, those of torch.compile too, are to be compiled here; without a GPU, interpreted.
export TRITON_INTERPRET=0
mkdir -p "$OUT"
python=${PYTHON:-python}
cuda_bin=${CUDA_HOME:-/usr/local/cuda}/bin

build() {
  $dry && { "$python" -c 'import fastwhiten._C'; return; }
  "$python" -m pip install --quiet --disable-pip-version-check setuptools ninja pytest pytest-benchmark &&
    FASTWHITEN_CUDA=1 "$python" -m pip install --disable-pip-version-check --no-build-isolation \
      --no-deps -e . &&
    "$python" -m fastwhiten.info --json >"$OUT/info.json" &&
    "$python" -c 'import fastwhiten.backends as b; reason = b.available()["cuda"]; assert reason is None, reason'
}

tests() {
  local interpret=0
  $dry && interpret=1
  TRITON_INTERPRET=$interpret "$python" -m pytest -q -p no:cacheprovider \
    --junit-xml="$OUT/tests.xml" tests/gpu
}

# Small cases: the tools make kernels a hundred times slower.
sanitizer() {
  $dry && { echo 'a dry run: no compute-sanitizer'; return; }
  local tool sanitizer
  sanitizer=$(PATH="$PATH:$cuda_bin" command -v compute-sanitizer) || {
    echo "expected compute-sanitizer on PATH or in $cuda_bin; it comes with the CUDA toolkit"
    return 1
  }
  for tool in memcheck racecheck synccheck; do
    echo "== $tool"
    # PyTorch's allocator would hide what runs over a tensor's end.
    PYTORCH_NO_CUDA_MEMORY_CACHING=1 timeout 120 "$sanitizer" --tool "$tool" --error-exitcode 9 \
      "$python" tools/gpu_cases.py || return 1
  done
}

benchmarks() {
  local options=()
  $dry && options=(--device cpu --scene '(128, 64)')
  "$python" -m benchmarks.gpu --output "$OUT/benchmarks.json" ${options[@]+"${options[@]}"}
}

summary() { "$python" tools/gpu_summary.py "$OUT"; }

status=0
for part in "${parts[@]}"; do
  if [ "$part" != summary ] && [ -e "$OUT/$part.done" ]; then
    echo "$part: done before"
    continue
  fi
  started=$SECONDS
  if [ "$part" = summary ]; then
    summary
  elif "$part" >"$OUT/$part.log" 2>&1; then
    touch "$OUT/$part.done"
    echo "$part: passed ($((SECONDS - started)) s)"
  else
    status=1
    echo "$part: FAILED ($((SECONDS - started)) s), the end of $OUT/$part.log:"
    tail -n 15 "$OUT/$part.log"
    [ "$part" = build ] && break
  fi
done
exit $status
