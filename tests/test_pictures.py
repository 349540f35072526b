"""The pictures: nothing covers anything, lines differ without colour, bands and medians are those of the seeds."""

import itertools
import json
import re

import numpy as np
import pytest
from matplotlib.collections import PolyCollection
from matplotlib.text import Text

import analysis
from formats.errors import BadInput
from pictures.dots import DotPanel, Row, draw_dots, draw_seeds, median_and_range
from pictures.figure import COLORS, spread, style_of
from pictures.lines import Line, Panel, draw_lines


def boxes(figure):
    """[(text, its box in pixels)] of what the finished picture shows."""
    figure.draw_without_rendering()
    found = []
    for axes in figure.axes:
        ticks = [tick.label1 for axis in (axes.xaxis, axes.yaxis) for tick in axis.get_major_ticks()
                 if min(axis.get_view_interval()) <= tick.get_loc() <= max(axis.get_view_interval())]
        texts = [*axes.texts, axes.title, axes._left_title, axes.xaxis.label, axes.yaxis.label, *ticks]
        for text in texts:
            if text.get_text() and text.get_visible() and axes.axison:
                found.append((text.get_text(), Text.get_window_extent(text)))  # an annotation's without its line
    return found


def require_apart(figure):
    """That no text covers another and each is within the picture."""
    found = boxes(figure)
    assert len(found) > 3
    for (name, a), (other, b) in itertools.combinations(found, 2):
        width = min(a.x1, b.x1) - max(a.x0, b.x0)
        height = min(a.y1, b.y1) - max(a.y0, b.y0)
        assert width <= 0.5 or height <= 0.5, f"{name!r} and {other!r} cover each other"
    size = figure.bbox
    for name, box in found:
        assert box.x0 >= -1 and box.y0 >= -1 and box.x1 <= size.x1 + 1 and box.y1 <= size.y1 + 1, name


def many_lines(n, seed=0):
    rng = np.random.default_rng(seed)
    return [Line(f"variant number {i}", [0, 1, 2, 3], 60 + rng.normal(0, 0.5, (4, 3))) for i in range(n)]


@pytest.mark.parametrize("n", [1, 4, 9, 20])
def test_names_at_the_ends_cover_nothing(n, tmp_path):
    panels = [Panel(many_lines(n), "updates", "accuracy (%)", title="one task", chance=60),
              Panel(many_lines(n, 1), "updates", "cost (nats)"),
              Panel(many_lines(n, 2), "layers", "accuracy (%)", ticks={0: "embedding\nonly", 1: "1", 2: "2", 3: "3"})]
    figure = draw_lines(panels, str(tmp_path / "x.png"))
    require_apart(figure)
    assert (tmp_path / "x.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    names = [text.get_text() for text in figure.axes[0].texts]
    assert names == [*(f"variant number {i}" for i in range(n)), "chance"]


def test_a_name_stands_as_near_to_its_end_as_can_be():
    figure = draw_lines([Panel([Line("low", [0, 1], [[0], [0]]), Line("high", [0, 1], [[0], [10]])], "x", "y")])
    figure.draw_without_rendering()
    axes = figure.axes[0]
    for text, value in zip(axes.texts, (0, 10), strict=True):
        here = axes.transAxes.transform(text.xyann)[1]
        assert abs(here - axes.transData.transform((1, value))[1]) < 1
        assert text.get_color() == axes.lines[[0, 10].index(value)].get_color()


@pytest.mark.parametrize(("heights", "want"), [
    ([], []), ([0.2, 0.9], [0.2, 0.9]), ([0.5, 0.5], [0.45, 0.55]), ([0.55, 0.5, 0.0], [0.575, 0.475, 0.0]),
    ([1.0, 1.0], [0.9, 1.0]), ([0.0, 0.0, 0.0], [0.0, 0.1, 0.2])])
def test_spreading_moves_as_little_as_possible(heights, want):
    assert spread(heights, 0.1) == pytest.approx(want)


def test_what_does_not_fit_goes_over_both_ends():
    assert spread([0.3] * 3, 0.8) == pytest.approx([-0.3, 0.5, 1.3])


def test_lines_differ_without_colour():
    styles = [style_of(i) for i in range(28)]
    assert len({(style["color"], style["linestyle"]) for style in styles}) == 28
    assert len({(style["marker"], style["linestyle"]) for style in styles[:7]}) == 7
    assert len(set(COLORS)) == len(COLORS) == 7


def test_the_line_is_the_median_and_the_band_the_range():
    values = [[1, 5, 2], [2, float("nan"), 8], [], [4]]
    axes = draw_lines([Panel([Line("a", [10, 20, 30, 40], values)], "x", "y", log_x=True)]).axes[0]
    np.testing.assert_array_equal(axes.lines[0].get_ydata(), [2, 5, np.nan, 4])
    band = np.concatenate([part.get_paths()[0].vertices for part in axes.collections
                           if isinstance(part, PolyCollection)])
    assert (band[band[:, 0] == 10][:, 1].min(), band[band[:, 0] == 10][:, 1].max()) == (1, 5)
    assert (band[band[:, 0] == 20][:, 1].min(), band[band[:, 0] == 20][:, 1].max()) == (2, 8)
    assert axes.get_xscale() == "log"
    one = draw_lines([Panel([Line("a", [1, 2], [[1], [2]])], "x", "y")]).axes[0]
    assert not one.collections


def test_a_line_looks_alike_in_all_panels():
    lines = many_lines(3)
    figure = draw_lines([Panel(lines, "x", "y"), Panel(lines[::-1], "x", "y")])
    looks = [{line.get_label(): (line.get_color(), line.get_marker(), line.get_linestyle()) for line in axes.lines}
             for axes in figure.axes]
    assert looks[0] == looks[1] and len(set(looks[0].values())) == 3


def test_dots_show_seeds_median_and_the_paper_s_number(tmp_path):
    rows = [Row("full", [70.0, 74.0, 71.0], 82.1), Row("without auxiliary LM", [68.0, 69.0, 75.5]),
            Row("$odd$ _name", [50.0]), Row("LSTM", [])]
    panels = [DotPanel(rows, "accuracy (%)", "a task", chance=50), DotPanel(rows, "Pearson's r (%)", "another", 0),
              DotPanel(rows, "F1 (%)", "a third")]
    figure = draw_dots(panels, str(tmp_path / "x.svg"))
    require_apart(figure)
    assert (tmp_path / "x.svg").read_text().startswith("<?xml")
    axes = figure.axes[0]
    assert [text.get_text() for text in axes.texts] == [
        "71.0 (70.0 to 74.0); paper 82.1", "69.0 (68.0 to 75.5)", "50.0", "not run", "chance"]
    assert [label.get_text() for label in axes.get_yticklabels()] == [row.label for row in rows]
    assert not any(text.get_parse_math() for text in [*axes.get_yticklabels(), *axes.texts[:-1], axes._left_title])
    dots = {line.get_label(): list(line.get_xdata()) for line in axes.lines if line.get_marker() == "o"}
    assert dots["full"] == [70.0, 74.0, 71.0]
    assert median_and_range([3.0, 1.0]) == "2.0 (1.0 to 3.0)"


def test_published_lines_have_names_of_their_own_place():
    figure = draw_seeds({42: 85.0, 43: 86.0, 44: 85.9}, None, {"paper, best run: 86.5": 86.5,
                                                               "authors' code, median: 85.8": 85.8})
    require_apart(figure)
    assert [text.get_text() for text in figure.axes[0].texts] == [
        "median: 85.90", "paper, best run: 86.5", "authors' code, median: 85.8"]


# ---- from logs


def write_log(folder, desc, seed, values, **header):
    lines = [{"desc": desc, "seed": seed, "log_dir": str(folder), **header}]
    lines += [{"n_epochs": i, "n_updates": 10 * i, "va_cost": 0.7, **{name: v for name, v in zip(
        ("va_matthews", "va_acc") if header.get("dataset") == "cola" else ("va_acc",), (value, value + 1),
        strict=False)}} for i, value in enumerate(values, 1)]
    path = folder / f"{desc}.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def test_runs_tasks_and_seeds_are_told_apart(tmp_path):
    runs = itertools.product((("rocstories", 50), ("cola", 20)), (1, 2), (5, 6, 7))
    logs = [write_log(tmp_path, f"{dataset}-{lr}-{seed}", seed, [v + seed, v + 2 * seed], dataset=dataset, lr=lr)
            for (dataset, v), lr, seed in runs]
    groups = analysis.runs_of(logs)
    assert [(group.name, group.task, len(group.logs)) for group in groups] == [
        ("rocstories-1", "rocstories", 3), ("rocstories-2", "rocstories", 3), ("cola-1", "cola", 3),
        ("cola-2", "cola", 3)]
    (tmp_path / "copy").mkdir()
    more = [write_log(tmp_path / "copy", "rocstories-1-5", 5, [50], dataset="rocstories", lr=1),
            write_log(tmp_path, "rocstories-m-6", 6, [50], dataset="rocstories", lr=1, model_dir="another")]
    assert [group.name for group in analysis.runs_of(logs[:3] + more)] == [
        f"{tmp_path.name}/rocstories-1", "copy/rocstories-1-5", "rocstories-m-6"]
    figure = analysis.draw_curves(logs, str(tmp_path / "x.png"))
    require_apart(figure)
    labels = [axes.get_ylabel() for axes in figure.axes]
    assert labels[0] == labels[2] == "validation cost (nats)" and labels[1] == "validation accuracy (%)"
    assert re.match("validation Matthews.*%", labels[3])
    assert [line.get_ydata().tolist() for line in figure.axes[1].lines[:2]] == [[56, 62], [56, 62]]
    assert [text.get_text() for text in figure.axes[3].texts] == ["cola-1", "cola-2", "chance"]
    assert figure.axes[3].lines[2].get_ydata()[0] == 0 and figure.axes[1].lines[2].get_ydata()[0] == 50
    layers = [write_log(tmp_path, f"n{dataset}-{n}-{seed}", seed, [60 + n + seed], dataset=dataset, n_transfer=n)
              for dataset in ("rocstories", "rte") for n in (0, 1, 3) for seed in (1, 2)]
    figure = analysis.draw_layers(layers, str(tmp_path / "y.png"))
    require_apart(figure)
    assert [line.get_ydata().tolist() for line in figure.axes[0].lines] == [[61.5, 62.5, 64.5]] * 2
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["embedding\nonly", "1", "3"]


def test_what_is_no_accuracy_has_no_chance_of_a_half(tmp_path):
    own = write_log(tmp_path, "own", 1, [30, 40], dataset="own")
    assert "chance" not in [text.get_text() for text in analysis.draw_curves([own]).axes[1].texts]
    path = tmp_path / "pre.jsonl"
    path.write_text('{"desc": "p"}\n{"n_updates": 5, "n_epochs": 1, "va_cost": 3.0, "va_ppl": 20.1}\n')
    figure = analysis.draw_curves([str(path)])
    assert [axes.get_ylabel() for axes in figure.axes] == ["validation cost (nats)", "validation perplexity"]
    with pytest.raises(BadInput, match="holds no va_cost|no metric|n_transfer"):
        analysis.draw_layers([str(path)])
