#!/usr/bin/env bash
# accelerate: "accelerate launch --cpu --num_processes 2" starts one process.
#
# Guess: --num_processes is how many processes are started, on a CPU too; so is num_processes in a config file with
#   distributed_type: MULTI_CPU. What cannot be done is an error.
# Seen (accelerate 1.15.0): without --mpirun_hostfile a launch with --cpu, or a MULTI_CPU config, runs the script once, as
#   process 0 of 1. The number is passed over and nothing is said; --cpu --multi_gpu together are refused.
# Why it matters: a run on two CPU processes is how one tries a distributed recipe before a GPU is rented. It "works", with
#   the losses of one process, and what differs between ranks (sharding, seeds, files that all write) is never seen.
# Instead: torchrun --nproc_per_node 2 SCRIPT (gloo; ACCELERATE_USE_CPU=1 where there is a GPU that is not to be used), or
#   an MPI and --mpirun_hostfile. Assert Accelerator().num_processes where a script counts on it.
# Source: accelerate/commands/launch.py, launch_command: with args.cpu none of the distributed launchers is taken, the rest
#   is simple_launcher; accelerate/utils/launch.py, prepare_simple_launcher_cmd_env: more than one by mpirun alone.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6 accelerate==1.15.0

cat > "$work/ranks.py" <<'PYTHON'
from accelerate import Accelerator
one = Accelerator()
print(f"process {one.process_index} of {one.num_processes}", flush=True)
PYTHON
cat > "$work/two.yaml" <<'YAML'
compute_environment: LOCAL_MACHINE
distributed_type: MULTI_CPU
num_machines: 1
num_processes: 2
use_cpu: true
mixed_precision: "no"
YAML
export OMP_NUM_THREADS=1 ACCELERATE_USE_CPU=1 HF_HOME="$work/home" PATH="$work/venv/bin:$PATH"
ranks() { "$@" "$work/ranks.py" 2> "$work/errors" | sort | paste -sd ';' || { cat "$work/errors"; exit 1; }; }
flags=$(ranks accelerate launch --cpu --num_processes 2)
config=$(ranks accelerate launch --config_file "$work/two.yaml")
torch=$(ranks torchrun --nproc_per_node 2)
python -c 'from importlib.metadata import version; print("versions: accelerate", version("accelerate"), "torch", version("torch"))'
echo "guess:    each of these starts two processes"
echo "seen:     accelerate launch starts one, with the flags and with the config, and says nothing"
echo "output:   accelerate launch --cpu --num_processes 2             | $flags"
echo "          accelerate launch, config MULTI_CPU, num_processes 2  | $config"
echo "          torchrun --nproc_per_node 2                           | $torch"
test "$torch" = "process 0 of 2;process 1 of 2"
if [ "$flags" != "process 0 of 1" ] || [ "$config" != "process 0 of 1" ]; then
    echo "No longer so: accelerate launch starts as many processes on a CPU as it is told."
    exit 1
fi
