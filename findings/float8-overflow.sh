#!/usr/bin/env bash
# torch: what does not fit into float8_e4m3fn was NaN up to 2.12 and is 448 from 2.13 on, infinity too.
#
# Guess: a cast to float8_e4m3fn treats a number beyond 448, its largest, alike in every release; and whoever looks for
#   NaN and infinity in the float8 weights finds an overflow.
# Seen (torch 2.12.1 and 2.13.0, on the CPU): 2.12.1 makes NaN of all that rounds beyond 448 (from 465 on) and of
#   infinity. 2.13.0 makes 448 of all of it, of infinity too; NaN alone stays NaN. float8_e5m2 is as it was in both:
#   infinity from 61440 on. So in 2.13 the two float8 types differ, and of infinities in a float16 file nothing is left
#   that torch.isfinite could find once it is cast.
# Why it matters: text encoders, U-Nets and DiTs are kept in float8_e4m3fn to fit small cards, often cast from float16
#   at loading, with LoRA added before the cast. A model that had overflowed drew black pictures (NaN) with one release
#   and draws, clipped and without a word, with the next.
# Instead: look for what is not finite, or beyond torch.finfo(torch.float8_e4m3fn).max, before the cast; or keep a
#   factor for each weight, as scaled float8 files do.
# Source: torch/headeronly/util/Float8_e4m3fn.h, fp8e4m3fn_from_fp32_value (2.13.0: "saturate to max").
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
for version in 2.12.1 2.13.0; do
    python3 -m venv "$work/$version"
    "$work/$version/bin/pip" install --quiet --disable-pip-version-check numpy==2.4.6 "torch==$version"
    "$work/$version/bin/python" - > "$work/$version.json" <<'PYTHON'
import json, torch
given = [447.0, 449.0, 464.0, 465.0, 500.0, 1e4, float("inf"), float("nan")]
large = [57344.0, 61440.0, 1e6]
def cast(values, dtype, source):
    return torch.tensor(values, dtype=source).to(dtype).float().tolist()
rows = {str(source): cast(given, torch.float8_e4m3fn, source) for source in (torch.float32, torch.float16)}
print(json.dumps({"torch": torch.__version__, "given": given, "rows": rows, "large": large,
                  "e5m2": cast(large, torch.float8_e5m2, torch.float32)}))
PYTHON
done

python3 - "$work/2.12.1.json" "$work/2.13.0.json" <<'PYTHON'
import json, math, sys
older, newer = (json.load(open(path)) for path in sys.argv[1:])
print("versions: torch", older["torch"], "and", newer["torch"])
print("guess:    what is beyond 448 becomes the same in both, and an overflow can be seen afterwards")
print("seen:     NaN in the older one, 448 in the newer one, of infinity too")
print("output:   cast to float8_e4m3fn and back")
print("          " + " " * 26 + "".join(f"{value:>8g}" for value in older["given"]))
for found in (older, newer):
    for source, row in found["rows"].items():
        print(f"          {found['torch']:12} {source:13}" + "".join(f"{value:>8g}" for value in row))
print("          cast to float8_e5m2 and back")
print("          " + " " * 26 + "".join(f"{value:>8g}" for value in older["large"]))
for found in (older, newer):
    print(f"          {found['torch']:26}" + "".join(f"{value:>8g}" for value in found["e5m2"]))
for source in older["rows"]:
    before, after = older["rows"][source], newer["rows"][source]
    if not (before[:3] == after[:3] == [448.0] * 3 and all(map(math.isnan, before[3:]))):
        sys.exit("no longer so: the older release does not make NaN of what does not fit")
    if not (after[3:7] == [448.0] * 4 and math.isnan(after[7])):
        sys.exit("no longer so: the newer release does not make 448 of all that does not fit")
if not (older["e5m2"] == newer["e5m2"] == [57344.0, math.inf, math.inf]):
    sys.exit("no longer so: float8_e5m2 does not become infinite in both")
PYTHON
