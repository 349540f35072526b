"""Table 5 of GPT-1's paper: full, without the auxiliary LM, without pre-training, an LSTM in the Transformer's place.

    python reproduce.py --ablations                                                         on toy sets, made for it
    python reproduce.py --ablations --data_dir glue_data --lstm_dir LSTM --seeds 3          the paper's tasks and sizes

Without pre-training the auxiliary LM stays on; the paper does not say. Released weights of the LSTM there are none:
pretrain.py --architecture lstm makes them.
"""

import os

from claims import grid, toy_models
from claims.published import AVERAGES, TABLE_5, VARIANTS
from formats.errors import warn
from formats.gpt_files import read_pretrained
from formats.lstm_files import read_lstm
from pictures.dots import DotPanel, Row, draw_dots
from tasks.gpt_tasks import GPT_TASKS

CHANCE = {"acc": lambda task: 100 / task.n_out, "matthews": lambda task: 0, "pearson": lambda task: 0}


def variants(transformer: dict, lstm: dict | None) -> list[grid.Setting]:
    """Return the settings of table 5.

    Args:
        transformer: options of train.py for the full model, with n_layer. lstm: those for the LSTM; None: leave it out.
    """
    full = transformer | {"n_transfer": transformer["n_layer"]}
    options = [full, full | {"lm_coef": 0}, full | {"n_transfer": -1}]
    options += [] if lstm is None else [lstm | {"n_transfer": 1}]
    return [grid.Setting(name, of_name) for name, of_name in zip(VARIANTS, options, strict=False)]


def toy_settings(out: str) -> tuple[str, list[grid.Setting]]:
    """Make toy data and the two pre-trained models; return (data folder, settings)."""
    text, data = toy_models.write_data(out)
    models = {kind: toy_models.pretrained(out, text, kind) for kind in ("transformer", "lstm")}
    return data, variants(toy_models.FINETUNE | toy_models.SIZES | {"model_dir": models["transformer"]},
                          toy_models.FINETUNE | toy_models.LSTM_SIZES | {"model_dir": models["lstm"]})


def of_transformer(model_dir: str) -> dict:
    """Return options of train.py for the GPT in a folder, with n_layer."""
    released = read_pretrained(model_dir)
    sizes = {"model_dir": model_dir, "n_embd": released.n_embd, "n_layer": released.n_layer,
             "n_ctx": min(512, released.n_ctx)}
    return sizes | {name: getattr(released, name) for name in ("n_head", "afn") if getattr(released, name) is not None}


def of_lstm(lstm_dir: str | None) -> dict | None:
    """Return options of train.py for the LSTM in a folder; None, with a warning, where no folder is given."""
    if lstm_dir is None:
        warn("no --lstm_dir: the row of the LSTM is left out; python pretrain.py --architecture lstm makes one")
        return None
    known = read_lstm(lstm_dir)
    return {"architecture": "lstm", "model_dir": lstm_dir, "n_embd": known.n_embd, "n_unit": known.n_unit,
            "n_ctx": min(512, known.n_ctx)}


def report(args, results: list[grid.Result]) -> str:
    """Write ablations.md, ablations.json and ablations.png; return the text."""
    real = args.data_dir is not None
    parts = ["# Ablations (GPT-1, table 5)", "## Measured here" + ("" if real else ", on toy sets"),
             f"In percent, median and range of {args.seeds} seed(s) of fine-tuning.",
             grid.markdown(grid.table(results, args.datasets, list(VARIANTS))),
             "![a dot for every seed](ablations.png)",
             "## The paper's table 5" + (", on the hidden test sets of GLUE's server" if real else
                                         ", on other tasks: only its order compares"),
             grid.markdown([["", *TABLE_5, "mean"],
                            *([name, *(f"{TABLE_5[task][i]}" for task in TABLE_5), f"{AVERAGES[i]}"]
                              for i, name in enumerate(VARIANTS))])]
    text = "\n\n".join(parts) + "\n"
    grid.write_report(args.out, "ablations", text, results)
    panels = []
    for dataset in dict.fromkeys(result.dataset for result in results):
        task, published = GPT_TASKS[dataset], TABLE_5.get(dataset) if real else None
        rows = [Row(name, grid.values_of(results, dataset, name), published and published[i])
                for i, name in enumerate(VARIANTS)]
        chance = CHANCE.get(task.metrics[0], lambda task: None)(task)
        panels.append(DotPanel(rows, grid.heading(results, dataset).split("(")[1].rstrip(")") + " (%)",
                               f"{'toy ' * (not real)}{dataset}", chance))
    draw_dots(panels, os.path.join(args.out, "ablations.png"))
    return text


def main(argv: list[str]) -> list[grid.Result]:
    """Run reproduce.py --ablations; see the top of this file."""
    args, extra = grid.parse_args(argv, "ablations", tuple(TABLE_5), lstm=True)
    if args.data_dir:
        data, settings = args.data_dir, variants(of_transformer(args.model_dir), of_lstm(args.lstm_dir))
    else:
        data, settings = toy_settings(args.out)
    results = grid.run_all(args, extra, data, settings, lambda results: report(args, results))
    print(report(args, results))
    print(f"wrote {os.path.join(args.out, 'ablations.md')}")
    return results
