#!/usr/bin/env bash
# Pillow: a gray PNG of 16 bits becomes a white one in convert("RGB"), and the usual guard against it no longer sees it.
#
# Guess: convert("RGB") of a picture of 16 bits has its brightness, as one of 16 bits in colour has.
# Seen (Pillow 9.5.0, 10.4.0, 13.0.0): what is above 255 of 65535 is cut off, so all but the darkest 0.4 % is white, without a
#   word. A guard for mode "I" was enough until 9.5; 10.4 and 13.0 open the same file in mode "I;16", which a guard of that
#   day does not name. In colour the upper byte is taken, in all three.
# Why it matters: scans, depth maps, microscopy and renderings come so. A training on a folder of them learns that its captions
#   are of white pictures, and its loss looks well.
# Instead: where image.mode starts with "I;16": numpy.asarray(image) / 257, rounded, as uint8; the same of mode "I".
# Source: Pillow, src/PIL/PngImagePlugin.py (_MODES, (16, 0)), src/libImaging/Convert.c (I;16 to L).
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
for version in 9.5.0 10.4.0 13.0.0; do
  python3 -m venv "$work/$version"
  "$work/$version/bin/pip" install --quiet --disable-pip-version-check "pillow==$version"
done

cat > "$work/look.py" <<'PYTHON'
import io, struct, sys, zlib
import PIL
from PIL import Image

def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

def picture(values, colour):
    """The PNG of one row of pixels of 16 bits: gray, or the same gray in colour."""
    row = b"\0" + b"".join(struct.pack(">H", value) * (3 if colour else 1) for value in values)
    size = struct.pack(">IIBBBBB", len(values), 1, 16, 2 if colour else 0, 0, 0, 0)
    data = chunk(b"IHDR", size) + chunk(b"IDAT", zlib.compress(row)) + chunk(b"IEND", b"")
    return Image.open(io.BytesIO(b"\x89PNG\r\n\x1a\n" + data))

values = [0, 1000, 16384, 32768, 65535]
wrong = []
for colour in (False, True):
    opened = picture(values, colour)
    bytes_ = opened.convert("RGB").tobytes()[::3]
    print(f"          Pillow {PIL.__version__:7} | {'colour' if colour else 'gray':6} | {opened.mode:4} | {list(bytes_)}")
    mode = "RGB" if colour else "I" if PIL.__version__ == "9.5.0" else "I;16"
    seen = [0, 3, 64, 128, 255] if colour else [0, 255, 255, 255, 255]
    if opened.mode != mode or list(bytes_) != seen:
        wrong.append("colour" if colour else "gray")
if wrong:
    sys.exit(f"no longer so in Pillow {PIL.__version__}: {', '.join(wrong)}")
PYTHON
echo "versions: Pillow 9.5.0, 10.4.0, 13.0.0"
echo "guess:    0, 4, 64, 128, 255 in every row"
echo "seen:     gray is white from 1000 on; its mode is another from 10.4 on"
echo "output:   version | PNG of 16 bits | mode | convert(\"RGB\") of 0, 1000, 16384, 32768, 65535"
for version in 9.5.0 10.4.0 13.0.0; do "$work/$version/bin/python" "$work/look.py"; done
