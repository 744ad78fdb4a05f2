"""Curves of runs: what a log says is what the picture shows."""

from __future__ import annotations

import json

import numpy as np
import pytest
from lavi_bridge.training.commands import main
from lavi_bridge.training.loop.curves import draw_curves, picture, read_run, smooth
from PIL import Image

CONTEXT = {"bridge": (0.9, 0.2, 0.8, 0.3), "own": (1.0, 0.4, 1.1, 0.5)}


def write_log(folder, steps=120, text=True, **more):
    """A log with everything that a run can measure; more: values to replace what the last step says. text: as runs of
    before have none, False leaves out what is told of text and of the gradients' groups."""
    folder.mkdir(parents=True)
    lines = []
    for step in range(1, steps + 1):
        rates = {"adapter": 1e-3 * min(1, step / 10), "vision": 1e-4 * min(1, step / 10)}
        entry = {"step": step, "loss": 1 / step, "norm": 2 / step, "images_per_second": 5.0, "learning_rate": rates}
        if text:
            entry["group_norm"] = {"adapter": 0.5, "vision": 2.0}
        lines.append(entry | (more if step == steps else {}))
        if step % 40 == 0:
            losses = {"right": 0.5, "shuffled": 0.5 + step / 1000, "empty": 0.51}
            names = ("size", "spread", "empty_size", "empty_distance")
            context = {of: dict(zip(names, sizes, strict=True)) for of, sizes in CONTEXT.items()}
            found = {"caption_loss": losses, "context": context} if text else {}
            lines.append({"step": step, "validation": {"loss": 0.5, "bins": [0.8, 0.4, 0.3]}} | found)
            lines.append({"step": step, "bench": {"single": step / steps, "spatial": 0.25}})
    log = folder / "log.jsonl"
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return log


def panels(runs):
    return {axes.get_title(loc="left"): axes for axes in picture(runs).axes}


def lines(axes):
    """The labelled lines of a panel, by label."""
    return {line.get_label(): line for line in axes.get_lines() if not str(line.get_label()).startswith("_")}


def values(axes):
    """Of the lines that have some."""
    return [list(line.get_ydata()) for line in axes.get_lines() if len(line.get_ydata())]


def test_every_measure_has_its_panel_and_its_values(tmp_path):
    shown = panels([read_run(write_log(tmp_path / "a"), "a")])
    assert list(shown) == [
        "loss",
        "learning rate",
        "gradient norm before clipping",
        "gradient norm by group",
        "images per second",
        "validation loss by noise level",
        "validation loss over that of the right captions",
        "size of the context (root mean square)",
        "spread of the context, in units of its size",
        "ShapeBench, share of right pictures",
    ]
    raw, average = shown["loss"].get_lines()[:2]
    np.testing.assert_allclose(raw.get_ydata(), 1 / np.arange(1, 121))
    np.testing.assert_allclose(average.get_ydata(), smooth(1 / np.arange(1, 121)))
    assert lines(shown["loss"])["validation"].get_xdata().tolist() == [40, 80, 120]
    rates = [line.get_ydata()[-1] for line in shown["learning rate"].get_lines() if len(line.get_ydata())]
    assert rates == [1e-3, 1e-4] and shown["learning rate"].get_yscale() == "log"
    bins = [line.get_ydata()[-1] for line in shown["validation loss by noise level"].get_lines()]
    assert bins == [0.8, 0.4, 0.3]
    norms = [line.get_ydata()[-1] for line in shown["gradient norm by group"].get_lines() if len(line.get_ydata())]
    assert norms == pytest.approx([0.5, 2.0]) and list(lines(shown["gradient norm by group"])) == ["adapter", "vision"]
    worse = values(shown["validation loss over that of the right captions"])
    assert worse[0] == [0, 0]  # the line that they should be above
    assert worse[1:] == [pytest.approx([0.04, 0.08, 0.12]), pytest.approx([0.01] * 3)]
    size = values(shown["size of the context (root mean square)"])
    assert [line[-1] for line in size] == [0.9, 1.0, 0.8]
    spread = values(shown["spread of the context, in units of its size"])
    assert [line[-1] for line in spread] == [0.2, 0.4, 0.3, 0.5]
    bench = lines(shown["ShapeBench, share of right pictures"])
    assert bench["single"].get_ydata()[-1] == 1 and bench["spatial"].get_ydata()[0] == 0.25


def test_what_was_not_measured_has_no_panel(tmp_path):
    log = tmp_path / "log.jsonl"
    log.write_text('{"step": 1, "loss": 0.5, "norm": 1.0}\n{"step": 2, "loss": 0.4, "norm": 1.1}\n')
    assert list(panels([read_run(log, "a")])) == ["loss", "gradient norm before clipping"]


def test_several_runs_are_laid_over_each_other(tmp_path):
    runs = [read_run(write_log(tmp_path / name, steps), name) for name, steps in (("a", 120), ("b", 80))]
    shown = panels(runs)
    assert {"a", "b"} <= lines(shown["loss"]).keys()
    assert lines(shown["validation loss by noise level"])["b"].get_ydata().tolist() == [0.8, 0.4, 0.3]
    means = lines(shown["ShapeBench, share of right pictures"])
    assert means["b"].get_ydata().tolist() == [(0.5 + 0.25) / 2, (1 + 0.25) / 2]


def test_runs_of_before_are_drawn_alone_and_beside_others(tmp_path):
    """They tell nothing of text, or, where most captions are one, not all."""
    old, new = (read_run(write_log(tmp_path / name, text=name == "new"), name) for name in ("old", "new"))
    assert len(panels([old])) == 6
    shown = panels([old, new])
    assert len(shown) == 10 and len(values(shown["gradient norm by group"])) == 2
    worse = shown["validation loss over that of the right captions"]
    assert len(values(worse)) == 3 and list(lines(worse)) == ["shuffled captions", "empty captions"]
    for entry in new.entries:
        entry.get("caption_loss", {}).pop("shuffled", None)
        entry.get("context", {}).pop("own", None)
    shown = panels([new])
    assert list(lines(shown["validation loss over that of the right captions"])) == ["empty captions"]
    assert list(lines(shown["size of the context (root mean square)"])) == ["bridge", 'bridge, ""']


def test_long_names_keep_what_tells_them_apart_in_a_legend(tmp_path):
    names = [f"t5-large-stable-diffusion-1.4-refiner-batch256-run{i}-with-a-long-name" for i in range(2)]
    shown = panels([read_run(write_log(tmp_path / name), name) for name in names])
    texts = [text.get_text() for text in shown["ShapeBench, share of right pictures"].get_legend().get_texts()]
    assert texts == ["…-run0-with-a-long-name", "…-run1-with-a-long-name"]


def test_a_moving_average_keeps_a_constant_and_passes_over_what_is_not_finite():
    values = np.full(400, 3.0)
    values[[0, 50, 399]] = np.nan, np.inf, -np.inf
    np.testing.assert_allclose(smooth(values), 3.0)
    noise = np.random.default_rng(0).normal(size=4000)
    assert smooth(noise).std() < 0.15 and smooth(np.arange(400.0))[200] == pytest.approx(200)
    assert smooth(np.array([1.0])).tolist() == [1.0]


def test_a_loss_that_is_not_finite_leaves_the_axis_as_it_was(tmp_path):
    shown = panels([read_run(write_log(tmp_path / "a", loss=float("nan"), norm=float("inf")), "a")])
    assert 0.5 < shown["loss"].get_ylim()[1] < 2 and np.isfinite(shown["gradient norm before clipping"].get_ylim()[1])


def test_a_picture_is_written_and_replaced_whole(tmp_path):
    log, output = write_log(tmp_path / "a"), tmp_path / "new" / "curves.png"
    for _ in range(2):
        draw_curves(log, output)
        with Image.open(output) as found:
            assert found.format == "PNG" and found.width == 1200
    assert [path.name for path in output.parent.iterdir()] == ["curves.png"]


def test_the_command_takes_folders_and_logs(tmp_path, capsys):
    for name in ("x", "y"):
        write_log(tmp_path / name / "a")
    output = tmp_path / "both.png"
    assert main(["curves", str(tmp_path / "x" / "a"), str(tmp_path / "y" / "a" / "log.jsonl"), "-o", str(output)]) == 0
    assert capsys.readouterr().out.strip() == str(output) and output.is_file()


def test_a_line_that_is_being_written_is_passed_over_and_a_broken_one_is_not(tmp_path):
    log = write_log(tmp_path / "a")
    whole = log.read_text()
    log.write_text(whole + '{"step": 121, "lo')
    assert len(read_run(log, "a").entries) == 126
    log.write_text('{"step": 1, "lo\n' + whole)
    with pytest.raises(ValueError, match="line 1 is no entry"):
        read_run(log, "a")


@pytest.mark.parametrize("content", [None, "", '{"step": 1'])
def test_a_run_without_a_step_is_refused(tmp_path, capsys, content):
    log = tmp_path / "log.jsonl"
    if content is not None:
        log.write_text(content)
    assert main(["curves", str(tmp_path), "-o", str(tmp_path / "a.png")]) == 2
    wanted = f"there is no log of a run at {log}" if content is None else f"{log} holds no step yet"
    assert capsys.readouterr().err.strip() == f"lavi-bridge: {wanted}"
