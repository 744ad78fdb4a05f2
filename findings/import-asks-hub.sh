#!/usr/bin/env bash
# bitsandbytes, behind diffusers and peft: an import asks the model hub for a compiled kernel.
#
# Guess: who gives folders alone, or never calls from_pretrained, asks no hub; to import a library is no question to one.
# Seen (bitsandbytes 0.50.2, kernels 0.16.1, peft 0.21.2, diffusers 0.42.1): where both of the first are installed and the
#   CPU has AVX512-BF16 (Zen 4 and 5, Sapphire Rapids), bitsandbytes looks for a kernel of its 4-bit product on
#   huggingface.co while it is imported, which loads it where it is found, whether or not anything is 4-bit or runs on the
#   CPU. peft imports bitsandbytes, and so does the first model class of diffusers that is named. transformers,
#   accelerate and diffusers without a model do not. With HF_HUB_OFFLINE=1 nobody is asked.
# Why it matters: a trainer and a node pack that promise no network keep it by luck of the CPU and of what else is
#   installed, and native code that no file pins runs in the process. kernels is what both transformers and diffusers
#   ask for before they fetch FlashAttention 3 and others, which is asked for by name.
# Instead: set HF_HUB_OFFLINE=1 before the first import, as the commands of this project do; its nodes import neither.
# Source: bitsandbytes/backends/cpu/ops.py, get_kernel at the module's level. That it finds no kernel beside a CUDA build
#   of torch is reported (bitsandbytes issue 2064); that peft and diffusers lead there was found nowhere.
set -euo pipefail
grep -q avx512_bf16 /proc/cpuinfo || { echo "Not to be seen here: this needs a CPU with AVX512-BF16."; exit 2; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6 transformers==5.24.0 \
    accelerate==1.15.0 diffusers==0.42.1 peft==0.21.2 bitsandbytes==0.50.2 kernels==0.16.1

cat > "$work/asked.py" <<'PYTHON'
import importlib
import socket
import sys

hosts = set()

def no_network(host, *_, **__):
    hosts.add(str(host))
    raise OSError("there is no network in this script")

socket.getaddrinfo = no_network  # who would be asked is all that is wanted
module, _, name = sys.argv[1].partition(":")
found = importlib.import_module(module)
if name:
    getattr(found, name)
print(",".join(sorted(hosts)) or "nobody")
PYTHON

asked() { HF_HOME="$work/cache" HF_HUB_OFFLINE="$1" "$work/venv/bin/python" -W ignore "$work/asked.py" "$2" 2> /dev/null; }

echo "versions: $("$work/venv/bin/pip" list 2> /dev/null | grep -E '^(bitsandbytes|kernels|peft|diffusers|torch) ' | tr -s ' ' | paste -sd,)"
echo "guess:    an import asks nobody"
echo "seen:     peft, and any model class of diffusers, ask the hub for bitsandbytes"
echo "output:   imported | asked | asked with HF_HUB_OFFLINE=1"
seen=""
for what in transformers accelerate diffusers diffusers:UNet2DConditionModel peft; do
    online=$(asked 0 "$what") offline=$(asked 1 "$what")
    echo "          $what | $online | $offline"
    seen="$seen $online/$offline"
done
wanted=" nobody/nobody nobody/nobody nobody/nobody huggingface.co/nobody huggingface.co/nobody"
if [ "$seen" != "$wanted" ]; then
    echo "No longer so: which imports ask a hub has changed." >&2
    exit 1
fi
