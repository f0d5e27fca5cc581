#!/usr/bin/env bash
# The Triton kernels with the oldest and the newest supported Triton: tools/triton_versions.sh
#
# The tests run with the version of constraints.txt. Each of the others is put into a folder of its
# own (pip --target), which comes before the environment's on PYTHONPATH: torch is the same. A thin
# set of tests is interpreted (of whole passes, groups with all options), and the largest shape class
# compiled for sm_80 and sm_90.
#
# ptxas differs with the version, so registers do: at most 24 bytes spilled are promised for the
# version of tools/triton_resources.json only. Elsewhere a few values more may be (the largest
# seen: 56 bytes of stack a thread, the factor of order 64 in Triton 3.9.0 for sm_90).
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
export PIP_DISABLE_PIP_VERSION_CHECK=1

check() { # VERSION
  local version=$1
  echo "== triton $version"
  "$python" -m pip install --quiet --no-deps --target "$folder/$version" "triton==$version"
  export PYTHONPATH=$folder/$version TRITON_CACHE_DIR=$folder/cache-$version
  "$python" -c "import sys, triton; sys.exit(triton.__version__ != sys.argv[1])" "$version"
  TRITON_INTERPRET=1 "$python" -m pytest -q -p no:cacheprovider -W ignore -m interpret \
    tests/kernels/test_jacobi.py tests/kernels/test_intensity.py tests/kernels/test_tuning.py \
    tests/backends/test_whole_passes.py -k 'not equal_their_stages or True-3'
  "$python" tools/triton_resources.py --largest --allow-stack 72
  unset PYTHONPATH TRITON_CACHE_DIR
}

check 3.6.0
check 3.9.0
