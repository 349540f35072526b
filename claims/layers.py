"""Figure 2 (left) of GPT-1's paper: what each transferred layer brings, on two tasks.

    python reproduce.py --layers                                            on toy sets, made for it
    python reproduce.py --layers --data_dir DATA --seeds 3                  RACE and MNLI with OpenAI's weights

--n_transfer goes from 0, the embedding alone, to all layers.
"""

import os

from claims import ablations, grid, toy_models
from claims.published import FIGURE_2_LEFT
from formats.gpt_files import read_pretrained
from pictures.lines import Line, Panel, draw_lines

DATASETS = ("race", "mnli")


def name_of(n: int) -> str:
    """Return '0 layers', '1 layer', ..."""
    return f"{n} layer" + "s" * (n != 1)


def settings_of(transformer: dict, n_layer: int) -> list[grid.Setting]:
    """Return a setting for each number of layers, 0 to n_layer; transformer: options of train.py."""
    return [grid.Setting(name_of(n), transformer | {"n_transfer": n}) for n in range(n_layer + 1)]


def report(args, results: list[grid.Result], n_layer: int) -> str:
    """Write layers.md, layers.json and layers.png; return the text."""
    real = args.data_dir is not None
    names = [name_of(n) for n in range(n_layer + 1)]
    known = ", ".join(f"{task} {low} to {high}" for task, (low, high) in FIGURE_2_LEFT.items())
    text = "\n\n".join([
        "# Layers transferred (GPT-1, figure 2 left)", "## Measured here" + ("" if real else ", on toy sets"),
        f"In percent, median and range of {args.seeds} seed(s) of fine-tuning.",
        grid.markdown(grid.table(results, args.datasets, names)), "![medians and ranges](layers.png)",
        f"## The paper's\n\nFrom 0 to 12 layers: {known} (a transcriber's estimates). Each layer adds.\n"])
    grid.write_report(args.out, "layers", text, results)
    lines = [Line(grid.heading(results, dataset), range(n_layer + 1),
                  [grid.values_of(results, dataset, name) for name in names])
             for dataset in dict.fromkeys(result.dataset for result in results)]
    draw_lines([Panel(lines, "pre-trained layers transferred (0: the embedding alone)", "metric (%)",
                      title=None if real else "toy sets", ticks={n: str(n) for n in range(n_layer + 1)})],
               os.path.join(args.out, "layers.png"))
    return text


def main(argv: list[str]) -> list[grid.Result]:
    """Run reproduce.py --layers; see the top of this file."""
    args, extra = grid.parse_args(argv, "layers", DATASETS, lstm=False)
    if args.data_dir:
        data, n_layer = args.data_dir, read_pretrained(args.model_dir).n_layer
        options = ablations.of_transformer(args.model_dir)
    else:
        text, data = toy_models.write_data(args.out)
        n_layer = toy_models.SIZES["n_layer"]
        options = toy_models.FINETUNE | toy_models.SIZES | {
            "model_dir": toy_models.pretrained(args.out, text, "transformer")}
    settings = settings_of(options, n_layer)
    results = grid.run_all(args, extra, data, settings, lambda results: report(args, results, n_layer),
                           split="valid" if args.data_dir else "test")  # the figure's are of RACE's and MNLI's dev sets
    print(report(args, results, n_layer))
    print(f"wrote {os.path.join(args.out, 'layers.md')}")
    return results
