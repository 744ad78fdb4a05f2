#!/usr/bin/env bash
# safetensors: the same tensors with the same metadata are another file each time.
#
# Guess: saving is a function of what is saved, so that two copies of one model have one sha256.
# Seen (safetensors 0.8.0, also 0.4.0): so it is with one entry of metadata. With two or more they stand in the order of
#   a hash map that is seeded anew for every call, in one process too: six entries in six saves give six files. Tensors
#   and their order are the same, and loading gives the same.
# Why it matters: files of adapters are known by their sha256 (model sites, caches, lock files, a run that goes on where
#   it was). transformers and diffusers write one entry ("format"); LoRA trainers write dozens, and whatever else says
#   how a file was made. Two saves of one training, a rebuild that should reproduce a release, a test that compares
#   bytes: all differ without a cause.
# Instead: compare what follows the header (the first 8 bytes are its length), or write the entries in one order, as
#   this project does: the header is JSON, and may be padded with spaces.
# Source: safetensors/src/tensor.rs, HashMetadata: metadata is a HashMap<String, String>.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
pip() { "$work/venv/bin/pip" install --quiet --disable-pip-version-check "$@"; }
pip numpy==2.4.6

cat > "$work/seen.py" <<'PYTHON'
import hashlib, importlib.metadata, sys
import numpy as np
from safetensors.numpy import load, save

tensors = {name: np.zeros(4, np.float32) for name in "abc"}

def files(entries):
    metadata = {f"key{i}": "value" for i in range(entries)}
    return [save(tensors, metadata) for _ in range(6)]

def different(found):
    return len({hashlib.sha256(data).hexdigest() for data in found})

print("versions:", f"safetensors {importlib.metadata.version('safetensors')}")
print("guess:    six saves of one content are one file, six times")
print("seen:     other files, where there is more than one entry of metadata")
counts = {entries: different(files(entries)) for entries in (0, 1, 2, 6)}
print("output:   entries of metadata -> different files in six saves:", counts)
bodies = {data[8 + int.from_bytes(data[:8], "little") :] for data in files(6)}
print("          what follows the header:", len(bodies), "in six saves; loaded alike:",
      all((load(data)["a"] == tensors["a"]).all() for data in files(6)))
if not (counts[0] == counts[1] == 1 and counts[6] > 2 and len(bodies) == 1):
    sys.exit("No longer so: one content is one file.")
PYTHON
for version in 0.4.0 0.8.0; do
    pip "safetensors==$version"
    "$work/venv/bin/python" "$work/seen.py"
done
