#!/usr/bin/env bash
# Runs the C++ kernels under AddressSanitizer with UndefinedBehaviorSanitizer, then under ThreadSanitizer (2-4 minutes).
# Needs g++ alone.
#   bash tests/kernels/sanitize.sh
#   SANITIZERS=thread bash tests/kernels/sanitize.sh
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
src="$here/../../mindspeed_llm/kernels/cpu/src"
CXX=${CXX:-g++}
SANITIZERS=${SANITIZERS:-address,undefined thread}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

for sanitizer in $SANITIZERS; do
  flags="-std=c++17 -O1 -g -fopenmp-simd -fno-omit-frame-pointer -fno-sanitize-recover=all -fsanitize=$sanitizer -I$src"
  printf '%s\n' "$src"/{pool,gemm,low_rank,ops,attention,decode,isa_base,isa_avx2,isa_avx512,isa_avx512_bf16,isa_amx}.cc "$here/sanitize_main.cc" |
    xargs -P 2 -I{} sh -c "$CXX $flags -Wno-maybe-uninitialized -c {} -o $work/\$(basename {} .cc).o"
  # shellcheck disable=SC2086
  $CXX $flags "$work"/*.o -lpthread -o "$work/kernels"
  echo "== $sanitizer"
  ASAN_OPTIONS=detect_leaks=0 TSAN_OPTIONS=halt_on_error=1 "$work/kernels"
  rm -f "$work"/*.o
done
