"""Forked trainers: ``python ranks.py`` reads lines of JSON, one for each run, and answers each with the ids of its
processes and then with their exit statuses.

What costs seconds, to import torch and the models' libraries, is done once; a run is a fork for each of its processes.
A line: recipe, changes, resume, world, environment, gradients (where the first step's are written, or null),
kill_after (seconds, or null).
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
import traceback
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import conftest  # noqa: F401  (registers the checkout as lavi_bridge)
import torch
from lavi_bridge.lavi_core.files import write_safetensors
from lavi_bridge.training.loop import alignment, parallel, samples, trainer  # noqa: F401
from lavi_bridge.training.recipe import read_recipe
from torch.distributed.tensor import DTensor


def warm() -> None:
    import diffusers
    import peft  # noqa: F401
    import transformers
    from torch.utils import tensorboard  # noqa: F401

    for name in ("UNet2DConditionModel", "AutoencoderTiny", "FlowMatchEulerDiscreteScheduler"):
        getattr(diffusers, name)
    for name in ("BertModel", "AutoModel", "AutoTokenizer", "T5EncoderModel", "LlamaModel"):
        getattr(transformers, name)


def train(line: dict[str, Any]) -> None:
    run = trainer.Trainer(read_recipe(line["recipe"], line["changes"]), resume=line["resume"])
    if parallel.is_sharded():
        as_on_gpus()
    if line["gradients"]:
        record_gradients(run, Path(line["gradients"]))
    run.run()


def as_on_gpus() -> None:
    """accelerate gives processes on CPUs no type of its own for FSDP; on GPUs it does, and takes other ways by it."""
    from accelerate.state import AcceleratorState, PartialState
    from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

    AcceleratorState._shared_state["fsdp_plugin"] = FullyShardedDataParallelPlugin()
    for state in (AcceleratorState, PartialState):
        state._shared_state["distributed_type"] = DistributedType.FSDP


def record_gradients(run: Any, folder: Path) -> None:
    """Those of the first step, after they were averaged over the processes and before they are clipped; and which share
    of the frozen weights lies on this process."""
    clip = run.accelerator.clip_grad_norm_

    def clip_and_record(parameters: list[torch.nn.Parameter], *limits: float) -> Any:
        path = folder / f"rank{run.accelerator.process_index}.safetensors"
        if not path.exists():
            frozen = [p for p in run.pair.parameters() if not p.requires_grad]
            here = sum(p.to_local().numel() if isinstance(p, DTensor) else p.numel() for p in frozen)
            share = {"share": str(here / sum(p.numel() for p in frozen))}
            write_safetensors(path, {key: p.grad for key, p in run.trained.items() if p.grad is not None}, share)
        return clip(parameters, *limits)

    run.accelerator.clip_grad_norm_ = clip_and_record


def start(line: dict[str, Any], rank: int, port: int) -> int:
    """The id of the new process."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # the answers alone go to the output
        os.environ.update(line["environment"])
        if line["world"] > 1:
            os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(line["world"]))
            os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), ACCELERATE_USE_CPU="true")
        train(line)
        status = 0
    except SystemExit as stopped:
        status = stopped.code if isinstance(stopped.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def wait(children: list[int], kill_after: float | None) -> list[int]:
    """Their exit statuses; SIGKILL for those that are still at work by then."""
    statuses: dict[int, int] = {}
    kill_at = float("inf") if kill_after is None else time.monotonic() + kill_after
    while len(statuses) < len(children):
        late = time.monotonic() >= kill_at
        for child in [child for child in children if child not in statuses]:
            if late:
                os.kill(child, signal.SIGKILL)  # one that has ended is there until it is waited for
            done, status = os.waitpid(child, 0 if late else os.WNOHANG)
            if done:
                statuses[child] = os.waitstatus_to_exitcode(status)
        time.sleep(0.001)
    return [statuses[child] for child in children]


def answer(line: dict[str, list[int]]) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def main() -> None:
    torch.set_num_threads(1)
    warm()
    answer({"ready": []})
    for text in sys.stdin:
        line = json.loads(text)
        port = free_port()
        children = [start(line, rank, port) for rank in range(line["world"])]
        answer({"started": children})
        statuses = wait(children, line["kill_after"])
        answer({"statuses": statuses})


if __name__ == "__main__":
    main()
