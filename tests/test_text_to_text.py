"""Fine-tuning T5 on tasks and on one's own pairs of texts, from the command line."""

import json
import random
import re
from argparse import Namespace

import numpy as np
import pytest
import torch
from cloze_data import write_data_dir
from pretraining import argv
from small_t5 import odd_batch, small_model
from t5_task_files import WHERE, write_files

import reproduce
import t5_decoding
import train_t5
from formats.errors import BadInput
from formats.files import load_tensors
from pretrain_t5 import learn_vocabulary
from t5_pytorch import EOS, PAD, T5, T5_CONFIGS
from tasks import t5_metrics
from tasks.t5_tasks import GLUE, TASKS, read_examples
from tasks.text_pairs import METRICS, read_pairs
from text_utils import SentencePieceEncoder
from training import answering, choosing, distributed, text_to_text
from training.mixing import MixedOrders, PackedOrders, epoch_length, packed, proportions
from utils import Stopped, read_log, run_script

SIZES = dict(d_model=18, d_ff=30, n_head=3, d_kv=5, n_layer=2)
WORDS = ["glad", "low", "new", "old"]


def pairs(n, seed=0):
    """Rows of input and target: which of two kinds of words the input holds."""
    draw = random.Random(seed)
    rows = []
    for _ in range(n):
        kind = draw.randrange(2)
        words = [draw.choice(WORDS[2 * kind:2 * kind + 2]) for _ in range(draw.randrange(1, 5))]
        rows.append((f"kind: {' '.join(words)}", ("good", "bad")[kind]))
    return rows


@pytest.fixture(scope="module")
def vocabulary():
    words = "cola cb sentence: acceptable unacceptable entailment neutral contradiction premise hypothesis".split()
    draw = random.Random(5)
    lines = [" ".join(draw.sample(words, 4)) for _ in range(60)]
    return learn_vocabulary([" ".join(row) for row in pairs(200)] + lines, 40)


@pytest.fixture
def setup(tmp_path, vocabulary):
    """A function of changed options that returns the command line of a tiny run from scratch on own data."""
    folder = tmp_path / "t5"
    folder.mkdir()
    (folder / "spiece.model").write_bytes(vocabulary)
    for name, n in (("train", 40), ("valid", 11), ("test", 7)):
        text = "".join("\t".join(row) + "\n" for row in pairs(n, seed=n))
        (tmp_path / f"{name}.tsv").write_text(text, encoding="utf-8", newline="\n")

    def line(**changes):
        settings = dict(dataset="own", train_file=tmp_path / "train.tsv", valid_file=tmp_path / "valid.tsv",
                        model_dir=folder, from_scratch=True, n_batch=4, n_gpu=2, n_iter=2, decode_length=5,
                        submission_dir=tmp_path / "submission", data_dir=tmp_path, **SIZES)
        settings |= changes
        if settings["dataset"] != "own":
            settings |= dict.fromkeys(("train_file", "valid_file", "test_file"))
        return argv(tmp_path, settings)

    line.folder = tmp_path
    return line


def log_of(setup, desc="tiny"):
    return read_log(setup.folder / "log" / f"{desc}.jsonl")[1:]


def test_own_data_is_learned_judged_and_predicted(setup, capfd):
    (setup.folder / "test.tsv").write_text("".join(f"{row[0]}\n" for row in pairs(7, seed=7)), encoding="utf-8")
    outcome = train_t5.main(setup(n_iter=14, dropout=0, lr=0.02, d_model=32, d_kv=8, n_head=4, d_ff=64, submit=True,
                                  test_file=setup.folder / "test.tsv", analysis=True))
    lines = log_of(setup)
    assert [line["n_updates"] for line in lines] == [5 * i for i in range(1, 15)]
    best = max(line["va_accuracy"] for line in lines)
    assert best > 85 and "tr_cost" not in lines[0]
    rows = (setup.folder / "submission" / "own.tsv").read_text().split("\n")
    assert rows[0] == "index\tprediction" and len(rows) == 9
    right = [row.split("\t")[1] == target for row, (_, target) in zip(rows[1:], pairs(7, seed=7), strict=False)]
    assert sum(right) >= 5 and outcome.paths["own_test"].endswith("own.tsv")
    assert f"own accuracy: {best:.2f} on validation after " in capfd.readouterr().out
    assert (setup.folder / "save" / "tiny" / "spiece.model").is_file()


def test_a_correlation_of_one_example_is_refused_before_training(setup):
    (setup.folder / "one.tsv").write_text("a\t1.5\n", encoding="utf-8")
    with pytest.raises(BadInput, match="^own: the .* set has 1 example, too few for its metric"):
        train_t5.main(setup(valid_file=setup.folder / "one.tsv", metric="pearson"))
    assert not (setup.folder / "log").exists()


def test_updates_and_evaluations_are_counted_as_asked(setup):
    train_t5.main(setup(n_updates=7, eval_every=3))
    assert [(line["n_updates"], line["n_epochs"]) for line in log_of(setup)] == [(3, 0), (6, 1), (7, 1)]
    train_t5.main(setup(n_updates=0, desc="none"))
    assert [line["n_updates"] for line in log_of(setup, "none")] == [0]
    assert (setup.folder / "save" / "none" / "best_params").is_file()


@pytest.mark.parametrize("select", [None, "each"])
def test_a_mixture_is_resumed_exactly_where_it_stopped(setup, golden, monkeypatch, select):
    for name in ("cola", "cb"):
        write_files(golden, name, setup.folder)
    common = dict(dataset="cola,cb", n_updates=9, eval_every=4, n_batch=2, n_gpu=1, select=select)
    train_t5.main(setup(desc="whole", **common))
    lines = log_of(setup, "whole")
    assert list(lines[0])[2:-1] == ["va_cola_matthews_corrcoef", "va_cb_mean_3class_f1", "va_cb_accuracy"]

    loss, calls = train_t5.training_loss, []

    def stop_in_update_6(*arguments):
        calls.append(1)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return loss(*arguments)

    monkeypatch.setattr(train_t5, "training_loss", stop_in_update_6)
    with pytest.raises((KeyboardInterrupt, Stopped)):
        train_t5.main(setup(desc="parts", save_every=3, **common))  # the evaluation at 4 is done twice
    monkeypatch.undo()
    train_t5.main(setup(desc="parts", resume=True, save_every=3, **common))
    whole, parts = (load_tensors(setup.folder / "save" / desc / "checkpoint") for desc in ("whole", "parts"))
    assert whole["n_updates"] == parts["n_updates"] == 9
    assert all(torch.equal(p, parts["model"][name]) for name, p in whole["model"].items())
    assert [line | {"time": 0} for line in log_of(setup, "parts")] == [line | {"time": 0} for line in lines]
    for name in ["best_params"] + ["best_params_cola", "best_params_cb"] * (select == "each"):
        whole, parts = (load_tensors(setup.folder / "save" / desc / name) for desc in ("whole", "parts"))
        assert all(torch.equal(p, parts[key]) for key, p in whole.items()), name


def test_the_best_parameters_for_each_task_are_kept_and_predict_it(setup, golden, monkeypatch, capfd):
    """cola does best at the second of three evaluations, cb at the third, the mean at the first."""
    for name in ("cola", "cb"):
        write_files(golden, name, setup.folder)
    values = iter([(50, 50), (60, 0), (10, 70)])

    def scores(args, model, encoder, sets, world):
        cola, cb = next(values)
        saved.append({name: p.clone() for name, p in model.state_dict().items()})
        return {"cola/matthews_corrcoef": cola, "cb/mean_3class_f1": cb, "cb/accuracy": 1.0}

    saved, used = [], []
    monkeypatch.setattr(text_to_text, "score_sets", scores)
    monkeypatch.setattr(text_to_text, "decode", lambda args, model, encoder, inputs, beams, world: used.append(
        model.state_dict()["encoder.final_layer_norm.scale"].clone()) or ["acceptable"] * len(inputs))
    outcome = train_t5.main(setup(dataset="cola,cb", n_updates=6, eval_every=2, n_batch=2, n_gpu=1, select="each",
                                  submit=True, analysis=True))
    scale = "encoder.final_layer_norm.scale"
    assert [any(torch.equal(one, state[scale]) for state in saved[i:i + 1]) for i, one in ((1, used[0]), (2, used[1]))
            ] == [True, True]
    assert torch.equal(outcome.model.state_dict()[scale], saved[0][scale])
    out = capfd.readouterr().out
    assert "cola matthews_corrcoef: 60.00 on validation after 4 updates" in out
    assert "cb mean_3class_f1: 70.00 on validation after 6 updates" in out


def test_a_task_whose_metric_is_never_defined_is_predicted_with_its_first_parameters(setup, golden, monkeypatch):
    for name in ("cola", "cb"):
        write_files(golden, name, setup.folder)
    monkeypatch.setattr(text_to_text, "score_sets", lambda *args: {"cola/matthews_corrcoef": None, "cb/accuracy": 1.0})
    train_t5.main(setup(dataset="cola,cb", n_updates=2, eval_every=1, n_batch=2, n_gpu=1, select="each", submit=True))
    assert (setup.folder / "submission" / "CoLA.tsv").is_file()


def test_towers_equal_one_big_batch_though_targets_differ_in_length(setup):
    for desc, n_batch, n_gpu in (("one", 8, 1), ("four", 2, 4)):
        train_t5.main(setup(desc=desc, n_batch=n_batch, n_gpu=n_gpu, dropout=0, n_iter=1))
    one, four = (torch.load(setup.folder / "save" / desc / "checkpoint", weights_only=True)["model"]
                 for desc in ("one", "four"))
    for name in one:
        torch.testing.assert_close(one[name], four[name], atol=2e-4, rtol=2e-4)


def test_tasks_are_submitted_in_the_forms_of_their_benchmarks(setup, golden):
    for name in ("cola", "mnli", "multirc"):
        write_files(golden, name, setup.folder)
    train_t5.main(setup(dataset="mnli,cola,multirc", n_updates=0, submit=True))
    found = {path.name: path.read_text().splitlines() for path in (setup.folder / "submission").iterdir()}
    assert set(found) == {"MNLI-m.tsv", "MNLI-mm.tsv", "CoLA.tsv", "MultiRC.jsonl"}
    assert found["MNLI-mm.tsv"] == ["index\tprediction", "0\tentailment", "1\tentailment"]
    assert found["CoLA.tsv"] == ["index\tprediction", "0\t0", "1\t0"]
    assert json.loads(found["MultiRC.jsonl"][0]) == {"idx": 0, "passage": {"questions": [
        {"idx": 0, "answers": [{"idx": 0, "label": 0}, {"idx": 1, "label": 0}]}]}}
    assert "va_mnli_mismatched_accuracy" in log_of(setup)[0]


@pytest.mark.parametrize("name", WHERE)
def test_every_task_shows_its_examples_without_model_and_vocabulary(golden, tmp_path, capsys, name):
    expected = write_files(golden, name, tmp_path)
    split = "valid" if TASKS[name].splits["valid"] else "test"
    part = TASKS[name].splits[split][0]
    if part in expected:
        train_t5.main(["--dataset", name, "--data_dir", str(tmp_path), "--show", "2", "--show_split", split])
        shown = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        outputs = read_examples(TASKS[name], str(tmp_path), part)[:2]
        assert shown[:len(outputs)] == [{"task": name, "input": one["inputs"], "target": one["targets"]}
                                        for one in outputs]


def test_the_cloze_task_shows_its_stories(tmp_path, capsys):
    train_t5.main(["--data_dir", write_data_dir(tmp_path / "data"), "--n_valid", "9", "--show", "1", "--show_split",
                   "test"])
    (line,) = capsys.readouterr().out.splitlines()
    shown = json.loads(line)
    assert shown["task"] == "rocstories" and shown["target"] in choosing.TARGETS
    assert re.fullmatch("rocstories choice1: .* choice2: .* sentence: .*", shown["input"])


def test_answers_are_those_of_each_input_alone(monkeypatch):
    model = small_model()
    src, _ = odd_batch(b=5, s=9)
    inputs = [np.array([*row[row != PAD].tolist(), EOS], dtype=np.int32) for row in src]
    inputs += inputs[1:3]  # equal ones are answered once
    world = distributed.join("cpu")

    class Letters:
        @staticmethod
        def decode(ids):
            return " ".join(map(str, ids[:ids.index(EOS)] if EOS in ids else [i for i in ids if i]))

    for plain in (False, True):
        args = Namespace(plain=plain, n_batch=2, n_gpu=1, decode_length=6, precision="fp32")
        for beams in (1, 4):
            found = text_to_text.decode(args, model, Letters, inputs, beams, world)
            for ids, text in zip(inputs, found, strict=True):
                row = torch.from_numpy(ids.astype(np.int64))[None]
                alone = (t5_decoding.generate(model, row, max_length=6) if beams == 1 else
                         t5_decoding.beam_search(model, row, max_length=6, beams=4))
                assert text == Letters.decode(alone[0].tolist())


def test_summaries_and_translations_alone_are_judged_by_four_beams(monkeypatch):
    assert {name for name, task in TASKS.items() if task.beams == 4} == {"cnn_dailymail", "wmt_ende", "wmt_enfr",
                                                                          "wmt_enro"}
    used = []
    monkeypatch.setattr(text_to_text, "decode", lambda args, model, encoder, inputs, beams, world: used.append(beams)
                        or ["x"] * len(inputs))
    sets = [text_to_text.Set(name, TASKS[name], "valid", [{"inputs": "", "targets": "a b"}] * 2, [None] * 2)
            for name in ("wmt_ende", "dpr", "cnn_dailymail")]
    text_to_text.score_sets(None, None, None, sets, None)
    assert used == [4, 1, 4]


def test_wnli_is_trained_on_alone_and_never_in_a_mixture():
    assert text_to_text.trained_on({"wnli": TASKS["wnli"]}) == ["wnli"]
    assert text_to_text.trained_on({name: TASKS[name] for name in ("cola", "wnli", "ax")}) == ["cola"]


def test_shares_of_a_mixture_are_the_paper_s():
    assert proportions([100, 300, 4000], limit=600) == pytest.approx(np.array([1, 3, 6]) / 10)
    assert proportions([100, 400], temperature=2) == pytest.approx([1 / 3, 2 / 3])
    assert proportions([100, 400], temperature=1e6) == pytest.approx([0.5, 0.5], abs=1e-5)


def test_orders_of_a_mixture_pass_through_each_task_evenly():
    sizes = [7, 20, 300]
    orders = MixedOrders(3, 40, sizes, limit=30)
    assert len(orders[0]) == epoch_length(sizes, 30) == 57
    drawn = np.concatenate([orders[i] for i in range(40)])
    counts = np.bincount(drawn, minlength=327)
    for start, end in ((0, 7), (7, 27), (27, 327)):
        assert counts[start:end].max() - counts[start:end].min() <= 1
    shares = np.array([counts[:7].sum(), counts[7:27].sum(), counts[27:].sum()]) / len(drawn)
    assert np.abs(shares - np.array([7, 20, 30]) / 57).max() < 0.04
    assert (MixedOrders(3, 40, sizes, limit=30)[33] == orders[33]).all()
    assert (MixedOrders(4, 40, sizes, limit=30)[33] != orders[33]).any()
    single = MixedOrders(3, 2, [9])
    assert sorted(single[0]) == sorted(single[1]) == list(range(9)) and (single[0] != single[1]).any()


def test_rows_are_filled_with_what_fits_in_order():
    lengths = np.array([(3, 1), (4, 1), (2, 1), (1, 4), (9, 1), (5, 2)])
    rows = packed(np.array([5, 0, 1, 2, 3, 4]), lengths, (9, 4))
    assert [row.tolist() for row in rows] == [[5, 0], [1, 2], [3], [4]]
    orders = PackedOrders(MixedOrders(2, 9, [6]), lengths, (9, 4))
    for epoch in range(9):
        row_of = orders[epoch]
        assert len(row_of) == orders.n_rows
        assert all((lengths[row].sum(0) <= (9, 4)).all() for row in row_of)


def test_packed_rows_train_as_their_examples_do(setup):
    """Rows that hold five of their examples, on average, against as many examples in an update."""
    common = dict(dropout=0, n_updates=1, n_gpu=1, n_ctx=60, n_target=20)
    train_t5.main(setup(desc="packed", pack=True, n_batch=2, **common))
    order = MixedOrders(42, 1, [40])[0]
    encoder = SentencePieceEncoder.from_folder(str(setup.folder / "t5"))
    lengths = np.array([[len(ids) + 1 for ids in encoder.encode(list(row), verbose=False)]
                        for row in pairs(40, seed=40)])
    n = sum(map(len, packed(order, lengths, (60, 20))[:2]))
    assert n > 6
    train_t5.main(setup(desc="single", n_batch=n, **common))
    first, second = (load_tensors(setup.folder / "save" / desc / "checkpoint")["model"]
                     for desc in ("packed", "single"))
    for name in first:
        torch.testing.assert_close(first[name], second[name], atol=1e-6, rtol=1e-5)
    start = setup(desc="none", n_updates=0)
    train_t5.main(start)
    initial = load_tensors(setup.folder / "save" / "none" / "best_params")
    assert any((initial[name] - p).abs().max() > 1e-3 for name, p in first.items())


def test_reproducing_evaluates_as_released_then_fine_tunes(setup, golden, capfd):
    """All of GLUE, by files as users get them, from random weights."""
    for name in GLUE:
        write_files(golden, name, setup.folder)
    folder = setup.folder
    sizes = [word for name, value in SIZES.items() for word in (f"--{name}", str(value))]
    train_t5_options = ["--from_scratch", *sizes, "--n_batch", "2", "--n_gpu", "1", "--decode_length", "4"]

    def run(out, *words):
        reproduce.main(["--t5", "small", "--dataset", "glue", "--data_dir", str(folder), "--model_dir",
                        str(folder / "t5"), "--out", str(folder / out), *words, "--", *train_t5_options])
        return capfd.readouterr().out, sorted((folder / out / "log").iterdir())

    out, logs = run("alone")
    assert [path.stem for path in logs] == ["released"]
    assert "released: small on glue, 0 updates" in out and "fine-tuned" not in out
    assert "qqp f1: 0.00 on validation after 0 updates; paper, small: 70.0 on test (table 14)" in out
    assert "rte accuracy: 0.00 on validation after 0 updates; paper, small: 69.9 on test (table 14)" in out
    out, logs = run("both", "--n_updates", "3")
    assert "fine-tuned: small on glue, 3 updates" in out and "mnli mismatched_accuracy: " in out
    lines = [read_log(path)[1] for path in logs]
    assert [(path.stem, line["n_updates"]) for path, line in zip(logs, lines, strict=True)] == [
        ("fine-tuned", 3), ("released", 0)]
    assert {key.split("_")[1] for key in lines[1] if key.startswith("va_")} >= set(GLUE)


def test_published_numbers_go_by_the_model_s_sizes(setup, golden, capfd, monkeypatch):
    write_files(golden, "cb", setup.folder)
    train_t5.main(setup(dataset="cb", n_updates=0, analysis=True))
    assert "paper" not in capfd.readouterr().out
    tiny = T5_CONFIGS["base"] | dict(dim=18, d_ff=30, enc_heads=3, enc_dim_head=5, enc_depth=2, dec_depth=2)
    monkeypatch.setitem(T5_CONFIGS, "base", tiny)
    train_t5.main(setup(dataset="cb", n_updates=0, analysis=True))
    assert "paper, base: 86.2 on test (table 14)" in capfd.readouterr().out
    write_files(golden, "squad", setup.folder)
    train_t5.main(setup(dataset="squad", n_updates=0, analysis=True, desc="squad"))  # table 14 has its validation set
    assert "paper, base: 85.44 on validation (table 14)" in capfd.readouterr().out
    with torch.device("meta"):
        for name, config in T5_CONFIGS.items():
            if name in ("small", "v1_1-small", "v1_1-base", "large"):
                assert text_to_text.released_size(T5(**config)) == name
        for changes in (dict(feed_forward="gated-gelu"), dict(tie_logits=False), dict(d_ff=7), dict(dec_depth=5)):
            assert text_to_text.released_size(T5(**T5_CONFIGS["small"] | changes)) is None


def test_own_files_have_three_forms_and_templates(tmp_path):
    plain = tmp_path / "a.tsv"
    plain.write_text('in "one\tout\nnull\tn/a\n', encoding="utf-8")
    assert read_pairs(str(plain)) == [{"inputs": 'in "one', "targets": "out"}, {"inputs": "null", "targets": "n/a"}]
    table = tmp_path / "a.csv"
    table.write_text('target,input\n"a, b",x\n', encoding="utf-8")
    assert read_pairs(str(table)) == [{"inputs": "x", "targets": "a, b"}]
    objects = tmp_path / "a.jsonl"
    objects.write_text('{"q": "who {c}?", "c": "Bo", "a": "me"}\n', encoding="utf-8")
    template = "question: {q} context: {c} again {q}"
    found = read_pairs(str(objects), ("input", "a"), template, given=True)
    assert found == [{"inputs": "question: who {c}? context: Bo again who {c}?", "targets": "me"}]
    named = tmp_path / "b.tsv"
    named.write_text("x\ty\n1\t2\n", encoding="utf-8")
    assert read_pairs(str(named), ("y", "x"), given=True) == [{"inputs": "2", "targets": "1"}]


def test_every_metric_of_own_data_works():
    targets, predictions = ["the cat sat on it", "1.5", "2"], ["cat sat on it", "1.5", "3"]
    expected = {"accuracy": t5_metrics.accuracy(targets, predictions),
                "exact_match": {"exact_match": 200 / 3}, "f1": {"f1": 200 / 3}, "squad": {"em": 200 / 3, "f1": 200 / 3}}
    assert set(METRICS) == {*expected, "bleu", "rouge", "matthews", "pearson", "spearman"}
    for name, metric in METRICS.items():
        found = metric(targets, predictions)
        assert found == pytest.approx(expected.get(name, found)) and all(value == value for value in found.values())
    assert METRICS["pearson"](["1", "2", "x"], ["1", "2", "y"])["pearson_corrcoef"] == pytest.approx(100)


def test_signs_the_vocabulary_lacks_are_counted_and_named(setup, capfd):
    encoder = SentencePieceEncoder.from_folder(str(setup.folder / "t5"))
    assert answering.unknown_signs(encoder, ["glad {", "low {~", "new"]) == (2, ["{", "~"])
    with open(setup.folder / "train.tsv", "a", encoding="utf-8") as f:
        f.write("kind: {glad}\tgood\n")
    train_t5.main(setup(n_iter=1))
    (warning,) = [line for line in capfd.readouterr().err.splitlines() if "warning" in line]
    assert "1 texts of own, train" in warning and "{" in warning and "}" in warning


def test_an_undefined_metric_stops_nothing(setup):
    train_t5.main(setup(metric=["pearson", "accuracy"], n_iter=1))
    (line,) = log_of(setup)
    assert line["va_pearson_corrcoef"] is None and line["va_accuracy"] == 0
    assert (setup.folder / "save" / "tiny" / "best_params").is_file()


BAD = {
    "dataset": (dict(dataset="imdb"), "'imdb' is not known.*cola"),
    "twice": (dict(dataset="glue,cola"), "cola is there 2 times"),
    "no train file": (dict(train_file=None), "needs --train_file"),
    "own option": (dict(dataset="cola", metric=["bleu"]), "--metric: goes with --dataset own"),
    "of no use": (dict(dataset="rocstories", n_target=3), "--decode_length, --n_target: of no use"),
    "select": (dict(select="cola"), "--select is 'cola'"),
    "eval_every": (dict(eval_every=0), "--eval_every is 0"),
    "temperature": (dict(mixing_temperature=0), "--mixing_temperature is 0"),
    "no training": (dict(dataset="ax"), "no training set"),
    "kind of file": (dict(train_file="a.txt"), r"a.txt: expected a file whose name ends in .tsv"),
    "absent": (dict(train_file="a.tsv"), "a.tsv: not found"),
    "absent task": (dict(dataset="boolq"), "train.jsonl: not found"),
    "template": (dict(template="no column"), "names no column"),
    "no desc": (dict(desc=None), "--desc is None"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_options_get_one_line(setup, capfd, kind):
    changes, message = BAD[kind]
    before = sorted(setup.folder.rglob("*"))
    assert run_script(train_t5.main, setup(**changes)) == 2
    lines = [line for line in re.split(r"[\r\n]+", capfd.readouterr().err) if line.strip() and "text/s" not in line]
    assert len(lines) == 1 and re.search(message, lines[0]), lines
    assert sorted(setup.folder.rglob("*")) == before


ROWS = {
    "three fields": ("a.tsv", b"a\tb\na\tb\tc\n", "row 2 has 3 fields, expected 2"),
    "one field": ("a.tsv", b"a\n", "row 1 has 1 field, expected 2"),
    "latin-1": ("a.tsv", b"a\tb\n\xe4\tb\n", "row 2 is not UTF-8"),
    "empty": ("a.tsv", b"", "is empty"),
    "no column": ("a.csv", b"input,goal\n1,2\n", "lacks the column target"),
    "no rows": ("a.csv", b"input,target\n", "holds no examples"),
    "open quote": ("a.csv", b'input,target\n"a,b\n', "not CSV"),
    "no field": ("a.jsonl", b'{"input": "a"}\n', "row 1 lacks the field 'target'"),
    "number": ("a.jsonl", b'{"input": "a", "target": 3}\n', "row 1 has target 3, expected a text"),
    "no JSON": ("a.jsonl", b'{"input": "a", "target": "b"}\n{\n', "row 2 is not JSON"),
}


@pytest.mark.parametrize("kind", ROWS)
def test_bad_rows_get_one_line(tmp_path, kind):
    name, data, message = ROWS[kind]
    (tmp_path / name).write_bytes(data)
    with pytest.raises(BadInput, match=re.escape(name) + ".*" + message):
        read_pairs(str(tmp_path / name))
