#!/usr/bin/env bash
# Measures the line coverage of the host's rooms by simulated seeds: `tests/sim/coverage.sh [SEEDS] [FROM]`. Needs
# the toolchain's `llvm-tools` (`rustup component add llvm-tools`) and jq. Only this workspace's packages are rebuilt.
set -euo pipefail
cd "$(dirname "$0")/../.."
seeds=${1:-300}
from=${2:-0}
tools=$(dirname "$(find "$(rustc --print sysroot)" -name llvm-profdata -print -quit)")
[ -x "$tools/llvm-cov" ] || { echo "no llvm-cov: rustup component add llvm-tools" >&2; exit 1; }
work=target/coverage
rm -rf "$work"
mkdir -p "$work"
printf '#!/bin/sh\nexec "$@" -C instrument-coverage\n' > "$work/rustc"
chmod +x "$work/rustc"
# Build scripts and macros are instrumented too; without this they would write profiles to their working directories.
export LLVM_PROFILE_FILE="$PWD/$work/build-%p.profraw"
RUSTC_WORKSPACE_WRAPPER="$PWD/$work/rustc" cargo build --release --workspace --locked
cp target/release/annulus-tests "$work/annulus-tests"
LLVM_PROFILE_FILE="$PWD/$work/seeds.profraw" "$work/annulus-tests" sim --seeds "$seeds" --from "$from" --no-shrink
"$tools/llvm-profdata" merge -sparse "$work/seeds.profraw" -o "$work/seeds.profdata"
"$tools/llvm-cov" export --summary-only --instr-profile "$work/seeds.profdata" "$work/annulus-tests" > "$work/summary.json"
for room in cluster handoff vnode request modules node; do
    jq -r --arg room "/host/$room/src/" '
        [.data[0].files[] | select(.filename | contains($room)) | select(.filename | test("/tests?[/.]") | not)]
        | [map(.summary.lines.covered), map(.summary.lines.count)] | map(add)
        | "\($room)\t\(.[0]) of \(.[1]) lines\t\(100 * .[0] / .[1] | floor) %"' "$work/summary.json"
done
