#!/usr/bin/env bash
# datasets: one picture whose name has "test", "dev" or "val" in it takes all others and every caption out of an image folder.
#
# Guess: load_dataset("imagefolder", data_dir=FOLDER) gives the pictures that metadata.jsonl lists, with their captions.
# Seen (datasets 5.2.0): where a file or a folder has the word train, training, test, testing, eval, evaluation, validation,
#   valid, val or dev in its name, set off by "-", ".", "_", a space or a digit ("screen-test.png", "dev board.png"), only the
#   files with such a word are taken, each into the split of that name. metadata.jsonl has none and is left out with the others, so
#   the few pictures that remain have no caption, and no column for one. Nothing is said. "latest.png" and "contest.png" are
#   no such names. A folder train/ beside a folder portraits/ leaves portraits out in the same way.
# Why it matters: metadata.jsonl is the format in which captioned pictures are passed on, and this is how it is looked at and
#   published. Renaming, adding or sorting one picture empties the set. A line of metadata whose picture is not there is an
#   error, so nobody expects a picture to be left out in silence.
# Instead: load_dataset("imagefolder", data_dir=FOLDER, data_files={"train": "**"}), which takes everything and the captions.
#   (data.kind = "jsonl" of this project reads each line of metadata.jsonl, whatever the names.)
# Source: datasets/data_files.py, SPLIT_KEYWORDS and get_data_patterns: the first kind of pattern that matches anything counts.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check datasets==5.2.0 pillow==13.0.0

HF_HUB_OFFLINE=1 HF_HOME="$work/home" "$work/venv/bin/python" - "$work" <<'PYTHON'
import json, sys
from pathlib import Path

import datasets
from PIL import Image

datasets.disable_progress_bars()
work = Path(sys.argv[1])

def loaded(case, names, **more):
    """{split: {picture: caption}} of a folder with a metadata.jsonl of all of them."""
    folder = work / f"case{case}"
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(folder / name)
    lines = [json.dumps({"file_name": name, "text": f"caption of {name}"}) + "\n" for name in names]
    (folder / "metadata.jsonl").write_text("".join(lines))
    found = datasets.load_dataset("imagefolder", data_dir=str(folder), cache_dir=str(work / "cache"), **more)
    return {
        split: {Path(row["image"].filename).relative_to(folder).as_posix(): row.get("text") for row in rows}
        for split, rows in found.items()
    }

def right(names):
    return {"train": {name: f"caption of {name}" for name in names}}

PLAIN, ONE, SORTED = ("a.png", "b.png", "latest.png"), ("a.png", "b.png", "screen-test.png"), ("train/a.png", "portraits/b.png")
seen = [loaded(0, PLAIN), loaded(1, ONE), loaded(2, SORTED), loaded(3, ONE, data_files={"train": "**"})]
print(f"versions: datasets {datasets.__version__}, Pillow {Image.__version__}")
print("guess:    every picture that is listed, each with its caption")
print("seen:     one name with such a word in it, and the others and all captions are gone")
for names, found in zip((PLAIN, ONE, SORTED, ONE), seen):
    print(f"output:   {', '.join(names)}: {found}")
as_before = seen == [
    right(PLAIN),
    {"test": {"screen-test.png": None}},
    {"train": {"train/a.png": None}},
    right(ONE),
]
sys.exit(None if as_before else "datasets no longer leaves out pictures and captions beside a name with a split's word in it.")
PYTHON
