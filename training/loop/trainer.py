"""The training loop: captions + images -> latents -> corrupt -> vision(x_t, t, bridge(captions)) -> loss -> step."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list

from ...lavi_core.files import write_text
from ...lavi_core.language import TextEncoder
from ..data import SOURCES, Captions, IndexedSource, LatentCache, Prefetch
from ..data.batch import Batches, micro_batch_size
from ..data.ranks import Ranks
from ..data.text_inputs import TextInputs, keeps_states
from ..models import named
from ..models.attention import attention_kernel
from ..models.device import emulates_bf16
from ..models.frozen_language import FrozenLanguage
from ..models.fully_trained import save_fully_trained
from ..models.layers import channels_last
from ..models.own_encoder import read_ear
from ..models.pair import GROUPS, Pair, eval_mode
from ..models.vae import load_vae
from ..models.vision_model import load_vision_model
from ..recipe import Recipe
from . import beforehand, checkpoint, lock, optimizers, parallel
from .alignment import align, prediction_teacher
from .bad_steps import BadSteps
from .context_measures import ContextMeasure, own_context
from .ema import EMA
from .environment import environment, record_environment
from .journal import Journal
from .learning_rate import tell_of_the_rate
from .prints import prints_of
from .samples import SampleGrids
from .split import split_of, tell_of_others
from .step import TrainStep
from .stopping import Stopped, StopSignals
from .validation import Validation, in_words

log = logging.getLogger(__name__)


class Trainer:
    """One run of one recipe. Everything drawn at random is a function of (seed, step), so a killed run that is resumed
    repeats the run that was never killed, to the bit on a CPU.
    """

    def __init__(self, recipe: Recipe, resume: bool = False):
        self.recipe = recipe
        self.output = Path(recipe.output)
        self.accelerator = parallel.make_accelerator()
        self.main = self.accelerator.is_main_process
        if self.main and recipe.precision == "bf16" and emulates_bf16(self.accelerator.device):
            log.warning("this CPU has no instructions for bf16: precision = 'fp32' is many times as fast here")
        beforehand.check(recipe, self.accelerator.num_processes)
        if self.main:
            with lock.held(self.output):  # said at once, and not after minutes of loading
                checkpoint.sweep(self.output)
        if self.main and not resume and checkpoint.states(self.output / "state"):
            raise ValueError(f"{self.output} holds a run already; go on with --resume, or set another output")
        frozen_dtype = torch.bfloat16 if recipe.precision == "bf16" else torch.float32
        path, dtype = named.language(recipe.language.model), _dtype(recipe.language, frozen_dtype)
        kept = keeps_states(recipe, parallel.is_sharded())
        language = FrozenLanguage(path, dtype, recipe.prompt) if kept else None
        # dense: a quantised weight would be dequantised at every step
        encoder = language.encoder if language else TextEncoder.load(path, dtype=dtype, weights="dense")
        vision = load_vision_model(
            named.vision(recipe.vision.model), recipe.vision.target, _dtype(recipe.vision, frozen_dtype)
        )
        self.vae = load_vae(named.vae(recipe.vision.vae))
        torch.manual_seed(recipe.seed)
        ear = read_ear(recipe)
        self.prints = prints_of(recipe, vision.network, self.vae, ear)
        self.pair = Pair(recipe, encoder, vision, ear)
        self.trained = self.pair.trained()
        self.optimizer = optimizers.build(self.pair.parameter_groups(*GROUPS), recipe.optimizer)
        self.ema = EMA(recipe, self.trained)
        self.bad_steps = BadSteps(recipe.optimizer, self.output)
        self.text_inputs = TextInputs(recipe, self.pair, self.output, self.accelerator.device, language)
        self.source = SOURCES[recipe.data.kind](recipe.data)
        self.prints["data"] = self.source.print_of_all()
        self.step, self.split = 0, None
        self.resumed = resume and self._resume()
        if self.main:
            write_text(self.output / "recipe.json", json.dumps(recipe.plain(), indent=1))
            record_environment(self.output / "environment.json", self.resumed)

    def run(self) -> Path:
        """Train to the recipe's last step and return the bridge file. Raises Stopped once all is saved after SIGTERM or
        Ctrl-C.
        """
        with ExitStack() as stack:
            if self.main:
                stack.enter_context(lock.held(self.output))
            if self.recipe.steps or self.recipe.data.validation or not isinstance(self.source, IndexedSource):
                self._run(stack)
            else:
                self._start_alone(self.source)
        return self.output / "bridge.safetensors"

    def _start_alone(self, source: IndexedSource) -> None:
        """The head start of a run of no steps, for which no picture is read."""
        self._prepare(source)
        if self.main:
            self.save(self.optimizer)
        self.accelerator.wait_for_everyone()

    def _run(self, stack: ExitStack) -> None:
        from tqdm import tqdm

        recipe, device = self.recipe, self.accelerator.device
        side = recipe.data.resolution // self.pair.vision_model.row.pixels
        stack.enter_context(attention_kernel(self.pair.network, device, side**2))
        batches = self._read_data()
        if self.main:
            self.split = split_of(len(self.trained_on), self.latents.names(self.held_out.tolist()))
            if self.step:
                state = checkpoint.states(self.output / "state")[-1]
                tell_of_others(state, self.step, self.split, self.prints["data"])
        samples = validation = None
        if recipe.sample.every and (self.main or parallel.is_sharded()):
            samples = SampleGrids(recipe, self.pair, self.vae, self.text_inputs, self.output if self.main else None)
        if recipe.validation.every:
            held, own = self.held_out.tolist(), self._own_context()
            validation = Validation(recipe, self.pair, self.latents, held, self.text_inputs, own)
        self._compute_text_states(batches, samples, validation)
        self._prepare(self.latents.texts(self.trained_on))
        if self.main and not self.resumed:
            self.save_state()
        journal = Journal(recipe, self.output, self.step) if self.main else None
        if journal is not None:
            stack.callback(journal.close)
            if self.start:
                journal.write(self.step, self.start)
        self._make_up(journal, validation, samples)
        ahead = stack.enter_context(Prefetch(batches, self.step, stop=recipe.steps))
        bar = stack.enter_context(
            tqdm(total=recipe.steps, initial=self.step, desc=recipe.name, disable=not self.main, mininterval=2)
        )
        signals = stack.enter_context(StopSignals())
        notes: dict[int, dict[str, float]] = {}
        while self.step < recipe.steps:
            began, computed = time.perf_counter(), time.process_time()
            waited = ahead.waited
            batch = next(ahead)
            notes[self.step] = {"waited": round(ahead.waited - waited, 4)}
            self._freeze_layers()
            told = self.train_step(self.step, batch)
            self.step += 1
            asked = signals.agreed(self.accelerator)
            last = asked or self.step == recipe.steps
            watched = (recipe.validation.every, recipe.sample.every, recipe.save_every)
            if last or any(every and self.step % every == 0 for every in watched):
                told += self.train_step.settle()
            speed = recipe.batch_size / (time.perf_counter() - began)
            notes[self.step - 1]["images_per_second"] = round(speed, 2)
            notes[self.step - 1]["cpu_seconds"] = round(time.process_time() - computed, 3)
            for number, entry in told:
                note = notes.pop(number)
                if journal is not None:
                    journal.write(number + 1, {**entry, **note})
                    loss = entry.get("loss", math.nan)
                    bar.set_postfix(loss=f"{loss:.4f}", imgs=f"{speed:.1f}/s", refresh=False)
            bar.update()
            if validation is not None and not asked and (self.step % recipe.validation.every == 0 or last):
                self._validate(validation, journal)
            due = self.step % recipe.save_every == 0 or last
            optimizer = parallel.gathered_optimizer(self.model, self.optimizer) if due else None
            if journal is not None and due:
                with self._saving():
                    journal.flush()
                self.save(optimizer)
                with self._saving():
                    journal.draw(bool(last))
            if samples is not None and not asked and (self.step % recipe.sample.every == 0 or last):
                self._draw(samples, journal)
            if asked:
                self.accelerator.wait_for_everyone()  # a launcher ends the others with the first process that leaves
                raise Stopped(asked)
        self.accelerator.wait_for_everyone()

    def _make_up(self, journal: Journal | None, validation: Validation | None, samples: SampleGrids | None) -> None:
        """What is still to be written at the step that the run begins at: no step is left to train where a head start
        was all, or where a kill came between the last state and its bridge; a kill while pictures were drawn leaves
        none of them, and a run that is asked to stop neither validates nor draws."""
        last, told = self.step >= self.recipe.steps, journal.told if journal is not None else set()

        def due(every: int) -> bool:
            return self.step > 0 and (self.step % every == 0 or last)

        validated = broadcast_object_list(["validation" in told])[0]
        if validation is not None and due(self.recipe.validation.every) and not validated:
            self._validate(validation, journal)
        if last:
            optimizer = parallel.gathered_optimizer(self.model, self.optimizer)
            if journal is not None:
                journal.flush()
                self.save(optimizer)
                journal.draw(True)
        if samples is not None and due(self.recipe.sample.every):
            drawn = [self.main and samples.drawn(self.step) and ("bench" in told or not samples.bench)]
            if not (broadcast_object_list(drawn) if parallel.is_sharded() else drawn)[0]:
                self._draw(samples, journal)

    def _validate(self, validation: Validation, journal: Journal | None) -> None:
        with self.as_given():
            found = validation.run(self.accelerator.device)
        if journal is not None:
            journal.write(self.step, found)
            log.info("step %d: %s", self.step, in_words(found))

    def _draw(self, samples: SampleGrids, journal: Journal | None) -> None:
        with self.as_given():
            scores = samples.draw(self.step)
        if journal is not None and scores:
            journal.write(self.step, {"bench": scores})
            journal.flush()

    def _read_data(self) -> Batches:
        """Latents, those held out, and the batches of the others."""
        recipe, accelerator = self.recipe, self.accelerator
        device = accelerator.device
        self.latents = LatentCache(
            self.source,
            self.vae.to(device),
            recipe.data.cache or self.output / "latents",
            self.output / "unreadable.txt",
            recipe.precision,
            accelerator,
        )
        self.trained_on, self.held_out = self.latents.split(recipe.data.validation, recipe.seed)
        order = self.latents.order(recipe.batch_size, recipe.seed, self.trained_on)
        world, rank = accelerator.num_processes, accelerator.process_index
        return Batches(recipe, self.latents, order, self.text_inputs, world, rank, pin=device.type == "cuda")

    def _compute_text_states(
        self, batches: Batches, samples: SampleGrids | None, validation: Validation | None
    ) -> None:
        """All that a frozen language model will be asked for, before the pair takes its place on the device."""

        def captions() -> Iterator[Sequence[str]]:
            if self.main:
                yield [""]
                for watcher in (validation, samples):
                    everything = watcher.captions() if watcher is not None else []
                    yield from (everything[i : i + size] for i in range(0, len(everything), size))
            yield from batches.captions(self.step)

        size = micro_batch_size(self.recipe, self.accelerator.num_processes)
        if self.text_inputs.caches:
            with Ranks(self.accelerator).together():
                self.text_inputs.compute_ahead(captions())
            self.text_inputs.flush()  # what the other processes have written is taken in

    def _own_context(self) -> ContextMeasure | None:
        """Of the vision model's own text encoder over the held-out captions, on the main process."""
        if not (self.main and self.recipe.validation.text and len(self.held_out)):
            return None
        captions = [self.latents.plain_caption(index, 0) for index in self.held_out.tolist()]
        return own_context(self.recipe, captions, self.pair.vision_model.context_width, self.accelerator.device)

    def _prepare(self, captions: Captions) -> None:
        """The pair on its device, and its head start on these captions."""
        recipe, accelerator = self.recipe, self.accelerator
        device = accelerator.device
        parallel.shard(accelerator, self.pair)
        self.pair.to(device).train()
        if not parallel.is_sharded():
            channels_last(self.pair.network)
        optimizers.follow(self.optimizer)
        self.start: dict[str, float] = {}  # how long the head start took
        if recipe.align.asked and not self.resumed:
            began, computed = time.perf_counter(), time.process_time()
            align(recipe, self.pair, captions, device, self.text_inputs.cache)
            self.ema.begin()
            self.start = {"start_seconds": time.perf_counter() - began, "start_cpu": time.process_time() - computed}
        self.text_inputs.release()
        if recipe.compile:
            self.pair.compile_layers()
        self.model = parallel.replicate(accelerator, self.pair, self.optimizer)
        self.ema.to(device)
        self.train_step = TrainStep(
            recipe, accelerator, self.pair, self.model, self.optimizer, self.ema, self.bad_steps
        )
        if self.step < recipe.align.prediction_steps:
            self.train_step.own = prediction_teacher(recipe, self.pair).to(device)

    def _freeze_layers(self) -> None:
        """The weights of a learned mean stay as they are from a step on, to the bit."""
        step, mean = self.recipe.adapter.freeze_layer_weights, self.pair.adapter.layer_mean
        if mean is not None and step is not None and self.step >= step:
            mean.frozen = True  # and moments that are left move nothing:
            for group in self.optimizer.param_groups:
                group["rate"] *= group["name"] != "layers"

    @contextmanager
    def as_given(self) -> Iterator[Pair]:
        """The pair as its users get it: nothing drops out, no gradient, averaged weights where there are some."""
        with self.ema.swapped_in(self.optimizer), eval_mode(self.pair) as pair:
            yield pair

    def save(self, optimizer: Any) -> None:
        """The resumable state, then the bridge file. optimizer: with moments that are whole."""
        self.save_state(optimizer)
        with self._saving(), self.as_given():
            facts = {"recipe": self.recipe.plain(), "step": self.step, **environment()}
            self.pair.checkpoint(facts).save(self.output / "bridge.safetensors", torch.float16, self.pair.adapter_dtype)
            save_fully_trained(self.pair, self.output)

    def save_state(self, optimizer: Any = None) -> None:
        with self._saving():
            self.text_inputs.flush()
            folder, recipe, extra = self.output / "state", self.recipe, self.bad_steps.dump() | self.ema.dump()
            identity = self.identity()
            whole = optimizer or self.optimizer
            facts = {"identity": identity, "split": self.split}
            checkpoint.save(folder, self.step, self.trained, whole, recipe.keep, facts, recipe.keep_every, extra)

    def identity(self) -> dict[str, Any]:
        """What must be the same when this run is resumed."""
        prints = {"language": self.pair.language_config.fingerprint, "vision": self.pair.vision_fingerprint}
        if self.pair.ear is not None:
            prints["own_encoder"] = " ".join(str(encoder.fingerprint) for encoder in self.pair.ear.encoders)
        if self.pair.queries is not None:
            prints["query_tokenizer"] = hashlib.sha256(self.pair.queries.json.encode()).hexdigest()
        if kept := list(self.pair.adapter.buffers()):  # which no state holds
            prints["adapter"] = hashlib.sha256(b"".join(map(_bytes, kept))).hexdigest()
        facts = dict(self.pair.language_config.facts or {})
        if "weights" in facts:  # hundreds of numbers
            facts["weights"] = hashlib.sha256(json.dumps(facts["weights"]).encode()).hexdigest()[:12]
        shaping = {f"language.facts.{fact}": value for fact, value in facts.items()}
        return checkpoint.identity_of(self.recipe, prints, self.prints) | shaping

    @contextmanager
    def _saving(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            kept = checkpoint.states(self.output / "state")
            last = f"the last good state is {kept[-1]}" if kept else "no state was written before"
            raise ValueError(f"step {self.step} could not be saved to {self.output} ({error}); {last}") from error

    def _resume(self) -> bool:
        """Load the newest state; False for a run that was killed before its first one, which starts afresh."""
        kept = checkpoint.states(self.output / "state")
        if not kept:
            if not any((self.output / name).is_file() for name in ("recipe.json", "log.jsonl")):
                raise ValueError(f"there is nothing to resume in {self.output}; run without --resume")
            log.info("%s was stopped before its first state; starting afresh", self.recipe.name)
            return False
        self.step, extra = checkpoint.load(kept[-1], self.trained, self.optimizer, self.identity())
        self.bad_steps.restore(extra)
        self.ema.restore(extra)
        log.info("resuming %s at step %d", self.recipe.name, self.step)
        if self.main and self.step >= self.recipe.steps:
            log.warning("nothing is left to train: the run has %d of %d steps", self.step, self.recipe.steps)
        elif self.main:
            tell_of_the_rate(self.output / "recipe.json", self.recipe, self.step)
        return True


def _dtype(section, frozen: torch.dtype) -> torch.dtype:
    return torch.float32 if section.train == "full" else frozen


def _bytes(tensor: torch.Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
