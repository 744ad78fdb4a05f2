"""What a bridge costs, measured by the host's Python in the host's own library; see ``cost.py``.

    python cost_inside.py HOST BASE PACK OUT [the host's flags] < task.json

task: {"name": a function of TASKS, and its arguments}. OUT gets what it returns, as JSON. Seconds are the CPU's, of one
thread, so that other work on the machine is not counted.
"""

# pyright: reportMissingImports=false

from __future__ import annotations

import gc
import importlib
import itertools
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "nodes" / "inside"))
OUT = importlib.import_module("host_library").OUT  # readies the host, which the next lines import from

import comfy.model_management  # noqa: E402
import comfy.sample  # noqa: E402
import comfy.sd  # noqa: E402
import torch  # noqa: E402

CallbacksMP = importlib.import_module("comfy.patcher_extension").CallbacksMP
bridge_ = importlib.import_module("hyphen-pack.nodes.bridge")
language_ = importlib.import_module("hyphen-pack.nodes.language")
TIMED = importlib.import_module("hyphen-pack.nodes.timed").TIMED
vision_ = importlib.import_module("hyphen-pack.nodes.vision")
vision_model_ = importlib.import_module("hyphen-pack.nodes.vision_model")

PROMPT = "a red circle left of a blue square, two elephants in the forest"
CFG = 4.0


def connected(language: str, bridge: str, dtype: str, device: torch.device | None = None) -> Any:
    model = language_.LanguageModel.load(Path(language), language_.DTYPES[dtype])
    if device is not None:
        model.patcher.load_device = device
    return bridge_.ConnectedBridge.load(bridge, model, 1.0, False)


def vision_model(folder: str) -> Any:
    """By the stock loader, or by ours where that one does not know the shape."""
    try:
        return comfy.sd.load_diffusion_model(str(Path(folder) / "unet" / "diffusion_pytorch_model.safetensors"))
    except RuntimeError:
        return vision_model_.load(Path(folder))


def sample(model: Any, positive: Any, negative: Any, side: int, steps: int) -> list[float]:
    """CPU seconds of each step but the first, by the stock KSampler's own function."""
    ends: list[float] = []
    start = comfy.sample.fix_empty_latent_channels(model, torch.zeros(1, 4, side, side))
    comfy.sample.sample(
        model,
        comfy.sample.prepare_noise(start, 7),
        steps,
        CFG,
        "euler",
        "simple",
        positive,
        negative,
        start,
        callback=lambda *_: ends.append(time.process_time()),
        disable_pbar=True,
        seed=7,
    )
    return [after - before for before, after in itertools.pairwise(ends)]


def step(
    vision: str, language: str, bridge: str, dtype: str, side: int, steps: int, turns: int, other: str = ""
) -> dict[str, Any]:
    """Steps of the model without the bridge and with it, in turns, on contexts of one length; or with it and with
    another, which hears the timestep: in a first picture of its prompts, and "again" in a further one."""
    heard = connected(language, bridge, dtype)
    conditionings = [heard.encode(text)[0] for text in (PROMPT, "")]
    plain = [[[context, {"pooled_output": more["pooled_output"]}] for context, more in one] for one in conditionings]
    model = vision_model(vision)
    bridged = vision_.apply(model, heard, 1.0)
    cases: dict[str, Any] = {
        "without": (model, plain[0], plain[1]),
        "with": (bridged, conditionings[0], conditionings[1]),
    }
    if other:
        second = connected(language, other, dtype)
        texts = [second.encode(text)[0] for text in (PROMPT, "")]
        timed = (vision_.apply(model, second, 1.0), *texts)
        cases = {"with": cases["with"], "other": timed, "again": timed}
    seconds: dict[str, list[list[float]]] = {name: [] for name in cases}
    for turn in range(turns + 1):
        for name, case in in_turn(cases, turn):
            chosen, positive, negative = case
            if name == "other":
                for _, more in (positive[0], negative[0]):
                    more[TIMED]._kept.clear()
            elif name == "again":
                sample(chosen, positive, negative, side, steps + 1)
            found = sample(chosen, positive, negative, side, steps + 1)
            if turn:
                seconds[name].append(found)
    return seconds


def encode(language: str, bridge: str, dtype: str, passes: int, turns: int, **_: Any) -> dict[str, Any]:
    """Passes of the bare language model over tokens that are there already, of the adapter over hidden states that are,
    and of a prompt through the nodes' path."""
    import transformers

    heard = connected(language, bridge, dtype)
    encoder, recipe = heard.encoder, heard.config.prompt
    loader = getattr(transformers, encoder.family.loader)
    bare = loader.from_pretrained(language, local_files_only=True, torch_dtype=language_.DTYPES[dtype]).eval()
    tokens = encoder.tokenize([PROMPT], recipe)
    inputs = {"input_ids": tokens.ids} | ({"attention_mask": tokens.mask.long()} if recipe.language_mask else {})
    last = recipe.hidden_states == "last"
    if not last:  # the layers behind the one that is heard
        del bare.layers[recipe.hidden_states :]
    number = 0

    def through_the_nodes() -> Any:
        nonlocal number
        number += 1
        return heard.encode(f"{PROMPT} {number}")

    states, adapter = encoder(tokens, recipe), heard.clip.cond_stage_model._adapter.model
    states = type(states)(states.states.float(), states.mask)
    cases: dict[str, Callable[[], Any]] = {
        "bare": lambda: bare(**inputs),
        "adapter": lambda: adapter(states),
        "nodes": through_the_nodes,
    }
    seconds: dict[str, list[list[float]]] = {name: [] for name in cases}
    for turn in range(turns + 1):
        for name, run in in_turn(cases, turn):
            found = []
            for _pass in range(passes):
                begun = time.process_time()
                run()
                found.append(time.process_time() - begun)
            if turn:
                seconds[name].append(found)
    return {
        **seconds,
        "tokens": int(tokens.ids.shape[1]),
        "layers": encoder.config.num_layers if last else len(bare.layers),
    }


def in_turn(cases: dict[str, Any], turn: int) -> list[tuple[str, Any]]:
    """Forwards and backwards, so that none is always the first."""
    return list(cases.items())[:: 1 if turn % 2 else -1]


def again(vision: str, language: str, bridge: str, dtype: str, side: int, steps: int) -> list[dict[str, Any]]:
    """A prompt, another, and the same once more, sampled with in between: loads, passes, bytes read, seconds."""
    heard = connected(language, bridge, dtype)
    model = vision_.apply(vision_model(vision), heard, 1.0)
    loads, passes = [], []
    heard.patcher.add_callback(CallbacksMP.ON_LOAD, lambda *_: loads.append(1))
    heard.encoder.model.register_forward_hook(lambda *_: passes.append(1))
    rows = []
    for name, text in (("first", PROMPT), ("another", f"{PROMPT} 1"), ("unchanged", f"{PROMPT} 1")):
        before = (len(loads), len(passes), bytes_read())
        begun = time.process_time()
        positive = heard.encode(text)[0]
        seconds = time.process_time() - begun
        found = {"loads": len(loads), "passes": len(passes), "bytes": bytes_read()}
        rows.append({key: value - old for (key, value), old in zip(found.items(), before, strict=True)})
        rows[-1] |= {"prompt": name, "seconds": seconds}
        sample(model, positive, positive, side, steps)
    return rows


def bytes_read() -> int:
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("rchar:")).split()[1])


def resident(
    vision: str, language: str, bridge: str, dtype: str, side: int, steps: int, what: list[str], drop: bool
) -> dict[str, Any]:
    """Bytes of resident memory at its peak, over what the process had with its libraries: encode, sample, or both.

    drop: forget the language model before the vision model is loaded, as a host does that caches no node's output.
    """
    context = [[torch.zeros(1, 77, 768), {}]]
    with peak() as found:
        if "encode" in what:
            heard = connected(language, bridge, dtype)
            context = heard.encode(PROMPT)[0]
            if drop:
                del heard
                gc.collect()
                comfy.model_management.cleanup_models_gc()
        if "sample" in what:
            sample(vision_model(vision), context, context, side, steps)
    return found


@contextmanager
def peak() -> Iterator[dict[str, Any]]:
    """{"anonymous", "mapped"}: the most that was seen of either kind of page, above what there was."""
    first, found, done = pages(), {"anonymous": 0, "mapped": 0}, threading.Event()

    def watch() -> None:
        while not done.wait(0.01):
            for kind, size in pages().items():
                found[kind] = max(found[kind], size - first[kind])

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    yield found
    done.set()
    watcher.join()


def pages() -> dict[str, int]:
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {
        kind: int(status[name].split()[0]) << 10 for kind, name in (("anonymous", "RssAnon"), ("mapped", "RssFile"))
    }


def budget(vision: str, language: str, bridge: str, dtype: str, side: int, steps: int, share: float) -> dict[str, Any]:
    """Bytes that the host's own account holds on a device whose budget is ``share`` of the larger model.

    The device is the CPU under its other name, cpu:0, for which the host frees memory as it does for a GPU; the budget
    is what --reserve-vram leaves of the machine's memory.
    """
    management = comfy.model_management
    device = torch.device("cpu", 0)
    model = vision_model(vision)
    model.load_device = device
    heard = connected(language, bridge, dtype, device)
    sizes = {"language": heard.patcher.model_size(), "vision": model.model_size()}
    held: list[int] = []

    def count(*_: Any) -> None:
        held.append(sum(loaded.model_loaded_memory() for loaded in management.current_loaded_models))

    bridged = vision_.apply(model, heard, 1.0)
    room = share * max(sizes.values())
    for patcher in (heard.patcher, bridged):
        patcher.add_callback(CallbacksMP.ON_LOAD, count)

    def make_room() -> None:
        taken = sum(loaded.model_loaded_memory() for loaded in management.current_loaded_models)
        management.EXTRA_RESERVED_VRAM = management.get_free_memory(device) + taken - room

    for number in range(2):
        make_room()
        context = heard.encode(f"{PROMPT} {number}")[0]
        count()
        make_room()
        sample(bridged, context, context, side, steps)
        count()
    return {**sizes, "peak": max(held), "held": held}


TASKS = {task.__name__: task for task in (step, encode, again, resident, budget)}


def main() -> None:
    task = json.load(sys.stdin)
    with torch.inference_mode():
        found = TASKS[task.pop("name")](**task)
    Path(OUT).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
