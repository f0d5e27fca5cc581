#!/usr/bin/env bash
# What depends on the kernels alone and takes long: tools/kernel_checks.sh [--all] [NAME...]
#
#     triton-resources  every Triton kernel compiled for sm_80 and sm_90, against the table
#     triton-versions   the oldest and the newest Triton
#     triton-launches   what tests/gpu launch, compiled with this Triton and with that of torch 2.11
#     cuda              a CUDA build of torch, the CUDA module with it, against csrc/cuda/resources.csv
#     kernel-model      the CUDA kernels' times as a model has them, against csrc/cuda/model.csv
#     sanitizers        address and undefined behaviour, over the stages on the CPU
#
# A check, of all or of those that are named, runs if what it depends on has changed since it passed
# last (tools/stamps.json); with --all always. What passes is stamped: commit tools/stamps.json with the
# change. Needs the environment that `make test` makes, active or named by PYTHON; for "cuda" and
# "kernel-model" also an nvcc, and no GPU.
set -euo pipefail
cd "$(dirname "$0")/.."
python=$(command -v "${PYTHON:-python}")
all=
[ "${1:-}" != --all ] || { all=1; shift; }
[ $# -gt 0 ] || set -- triton-resources triton-versions triton-launches cuda kernel-model sanitizers
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
export PIP_DISABLE_PIP_VERSION_CHECK=1

triton_resources() {
  "$python" tools/triton_resources.py
  # And what FASTWHITEN_AUTOTUNE=1 may choose instead: no local memory there either.
  "$python" tools/triton_resources.py --candidates
}

triton_versions() { PYTHON=$python tools/triton_versions.sh; }

triton_launches() {
  local launches=$folder/launches.json
  "$python" tools/triton_launches.py --write "$launches"
  "$python" tools/triton_launches.py --read "$launches"
  "$python" -m pip install --quiet --no-deps --target "$folder/triton" triton==3.6.0
  # Another ptxas: see tools/triton_versions.sh.
  PYTHONPATH=$folder/triton "$python" tools/triton_launches.py --read "$launches" --allow-stack 72
}

cuda() {
  # The wheel index has CUDA builds; a few minutes of download, five of compiling. One job at a
  # time shows what belongs to which kernel.
  "$python" -c 'import sys, setuptools.build_meta as build; build.build_sdist(sys.argv[1])' \
    "$folder" >/dev/null
  "$python" -m venv "$folder/cuda"
  "$folder/cuda/bin/pip" install --quiet "torch>=2.10"
  (
    cd "$folder"
    FASTWHITEN_CUDA=1 FASTWHITEN_NVCC_STRICT=1 cuda/bin/pip install --verbose --no-deps \
      "$folder"/fastwhiten-*.tar.gz >cuda.log 2>&1 || { tail -n 40 cuda.log; exit 1; }
    cuda/bin/python - <<'PYTHON'
import fastwhiten, torch
from fastwhiten import backends
from fastwhiten.backends import stages

assert torch.version.cuda is not None, "expected a CUDA build of torch"
assert backends.available()["cuda"] is None, backends.available()["cuda"]
has = torch._C._dispatch_has_kernel_for_dispatch_key
missing = [name for name in stages.STAGES if not has(f"fastwhiten::{name}", "CUDA")]
assert not missing, f"no CUDA kernels for {missing}"
PYTHON
    # The kernels before their schemas.
    cuda/bin/python -c 'import torch, fastwhiten_cuda, fastwhiten; fastwhiten.whiten(torch.randn(8, 3))'
  )
  "$python" tools/kernel_resources.py --check --log "$folder/cuda.log"
  "$python" tools/release.py symbols "$folder"/cuda/lib/python3*/site-packages/fastwhiten_cuda.abi3.so
}

kernel_model() { "$python" tools/kernel_model.py --check; }

sanitizers() {
  local copy=$folder/sanitized runtime
  mkdir "$copy"
  cp -r csrc fastwhiten tests tools setup.py pyproject.toml README.md LICENSE "$copy"
  runtime="$(g++ -print-file-name=libasan.so) $(g++ -print-file-name=libubsan.so)"
  (
    cd "$copy"
    FASTWHITEN_SANITIZE=address,undefined "$python" setup.py build_ext --inplace \
      >build.log 2>&1 || { cat build.log; exit 1; }
    LD_PRELOAD=$runtime ASAN_OPTIONS=detect_leaks=0 \
      UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 \
      "$python" -m pytest -q -s -p no:cacheprovider --tier all -k 'not reference and not triton' \
      tests/backends/test_stages.py tests/backends/test_stages_apply.py \
      tests/backends/test_whole_passes.py tests/backends/test_eigensolver.py \
      tests/backends/test_large_products.py tests/test_sides.py tests/test_nonfinite.py
  )
}

for name; do
  status=0
  "$python" tools/stamps.py stale "$name" || status=$?
  [ "$status" -le 1 ] || exit "$status"
  if [ "$status" = 0 ] || [ -n "$all" ]; then
    start=$SECONDS
    "${name//-/_}"
    "$python" tools/stamps.py write "$name"
    echo "$name: passed in $((SECONDS - start)) s"
  fi
done
