#!/usr/bin/env bash
# All figures of a GPU in one run, meant to end within six minutes:
#     bash tests/benchmarks/gpu_figures.sh WORK EARLIER
# WORK: folder for models and caches. EARLIER: a checkout to compare with, `git worktree add EARLIER COMMIT`.
# Prints the tables; what the tests say on this machine is in WORK/tests.txt, seconds and tables in WORK/*.txt.
set -uo pipefail
work=$1 earlier=$2
here=$(cd "$(dirname "$0")/../.." && pwd)
cd "$here" && mkdir -p "$work"
# One number of steps throughout: it says how many pictures there are, and with them which caches.
speed="python tests/benchmarks/train_speed.py --work $work --steps 8"

# The tests take what the preparation leaves of the machine, and end before anything is timed.
timeout 100 python -m pytest -q --tb=line tests/lavi_core tests/training >"$work/tests.txt" 2>&1 &
tests=$!
timeout 120 $speed --prepare t5-large-sd14 t5-large-pixart t5-large-sdxl
kill "$tests" 2>/dev/null
wait "$tests" 2>/dev/null

timeout 90 $speed --earlier "$earlier" t5-large-sd14 | tee "$work/sd14.txt"
timeout 40 $speed --loops ours --set compile=true t5-large-sd14 | tee "$work/compiled.txt"
timeout 50 $speed --earlier "$earlier" --loops ours earlier t5-large-pixart | tee "$work/pixart.txt"
timeout 55 $speed --earlier "$earlier" --loops ours earlier t5-large-sdxl | tee "$work/sdxl.txt"
grep -E "^(FAILED|ERROR)|passed|failed" "$work/tests.txt"
