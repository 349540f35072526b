"""Fine-tuning T5 to choose among candidate answers, above all with the right answer as the target (--form answer)."""

import csv
import json
import re

import numpy as np
import pytest
import torch
from cloze_data import rows, t5_line, write_data_dir
from pretraining import stop_after

import opt
import reproduce
import train_t5
from datasets import TEST_FILE, _rocstories
from formats.files import load_tensors
from pretrain_t5 import learn_vocabulary
from t5_pytorch import EOS, PAD, T5, shift_right
from text_utils import SentencePieceEncoder
from training import choosing
from training.text_to_text import pad
from utils import read_log, run_script

SIZES = dict(d_model=18, d_ff=30, n_head=3, d_kv=5, n_layer=2)
COPA = [("It rained.", "The lawn was wet.", "The cat sat down.", "effect", 0),
        ("The cat is on the mat.", "It was new.", "It was glad of it.", "cause", 1)]


@pytest.fixture(scope="module")
def vocabulary():
    lines = [" ".join(row[1:7]) for row in rows(150)] + ["rocstories copa sentence: premise: question: cause"] * 20
    return learn_vocabulary(lines, 60)


@pytest.fixture
def setup(tmp_path, vocabulary):
    """A function of changed options that returns the command line of a tiny run from scratch."""
    return t5_line(tmp_path, vocabulary, form="answer", **SIZES)


def log_of(setup, desc="tiny"):
    return read_log(setup.folder / "log" / f"{desc}.jsonl")[1:]


def saved(setup, desc, name="checkpoint"):
    return load_tensors(setup.folder / "save" / desc / name)


def write_copa(folder):
    folder.mkdir()
    for name, n in (("train", 16), ("val", 3), ("test", 5)):
        records = [dict(zip(("premise", "choice1", "choice2", "question", "label"), COPA[i % 2], strict=True),
                        idx=i) for i in range(n)]
        for record in records if name == "test" else ():
            del record["label"]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


def write_own(path, n, labelled=True):
    """Rows with three choices; the right one ends in `glad`."""
    with open(path, "w", newline="") as f:
        out = csv.writer(f)
        out.writerow(["context", "choice1", "choice2", "choice3"] + ["label"] * labelled)
        for i, row in enumerate(rows(n)):
            good, bad = row[5:7] if row[7] == "1" else row[6:4:-1]
            choices = [bad, bad + " low", bad]
            choices[i % 3] = good
            out.writerow([row[1], *choices, *[i % 3 + 1] * labelled])


def shown(capsys, *words):
    train_t5.main([*words, "--show", "1"])
    return json.loads(capsys.readouterr().out)


def test_each_data_set_has_its_forms(tmp_path, capsys):
    data = write_data_dir(tmp_path / "data")
    story, one, two, label = (part[0] for part in _rocstories(f"{data}/{TEST_FILE}"))
    cloze = ["--data_dir", data, "--n_valid", "9", "--show_split", "test"]
    assert shown(capsys, *cloze, "--form", "choices") == shown(capsys, *cloze) == {
        "task": "rocstories", "input": f"rocstories choice1: {one} choice2: {two} sentence: {story}",
        "target": f"choice{label + 1}"}
    assert shown(capsys, *cloze, "--form", "answer") == {
        "task": "rocstories", "input": f"rocstories sentence: {story}", "target": (one, two)[label],
        "candidates": [one, two]}
    write_copa(tmp_path / "COPA")
    copa = ["--dataset", "copa", "--data_dir", str(tmp_path), "--form", "answer", "--show_split"]
    assert shown(capsys, *copa, "valid") == {
        "task": "copa", "input": "copa premise: It rained. question: effect", "target": "The lawn was wet.",
        "candidates": ["The lawn was wet.", "The cat sat down."]}
    assert shown(capsys, *copa, "test")["target"] is None
    write_own(tmp_path / "own.csv", 12)
    found = shown(capsys, "--dataset", "own", "--form", "answer", "--train_file", str(tmp_path / "own.csv"))
    row = rows(12)[0]
    assert (found["input"], len(found["candidates"])) == (row[1], 3) and found["target"].endswith("glad.")


@pytest.mark.parametrize("plain", [False, True])
def test_the_ending_of_the_larger_mean_is_chosen(setup, plain):
    """Each mean is computed for its pair alone, by the plain text, over the ending's tokens and EOS."""
    outcome = train_t5.main(setup(submit=True, plain=plain, n_iter=1, lr=0.05))
    model, encoder = outcome.model, SentencePieceEncoder.from_folder(str(setup.folder / "t5"))
    test = _rocstories(setup.folder / "data" / TEST_FILE)
    means, sums = np.zeros((2, 21, 2))
    for i, (story, *endings, _) in enumerate(zip(*test, strict=True)):
        src = torch.tensor([[*encoder.encode([f"rocstories sentence: {story}"], verbose=False)[0], EOS]])
        for k, text in enumerate(endings):
            tgt = torch.tensor([[*encoder.encode([text], verbose=False)[0], EOS]])
            with torch.no_grad():
                found = model(src, shift_right(tgt)).log_softmax(-1)[0, torch.arange(tgt.shape[1]), tgt[0]]
            means[i, k], sums[i, k] = found.mean(), found.sum()
    written = np.loadtxt(setup.folder / "submission" / "ROCStories.tsv", skiprows=1, dtype=int)[:, 1]
    assert written.tolist() == means.argmax(1).tolist() != sums.argmax(1).tolist()
    assert outcome.accuracies["test"] == pytest.approx(100 * (written == test[3]).mean())


@pytest.mark.parametrize("plain", [False, True])
def test_candidates_may_differ_from_source_to_source(plain):
    torch.manual_seed(1)
    both = dict(num_tokens=50, depth=2, heads=3, dim_head=5)
    model = T5(dim=18, d_ff=30, **{f"{side}_{k}": v for side in ("enc", "dec") for k, v in both.items()}).eval()
    args = train_t5.parse_args(["--desc", "x", "--form", "answer", *["--plain"] * plain])
    src = pad([[5, 6, 7, 8, EOS], [9, EOS]], "cpu")
    targets = [[[11, 12, EOS], [13, EOS], [14, EOS]], [[21, EOS], [EOS], [22, 23, 24, EOS]]]
    candidates = choosing.pad_candidates(targets)
    assert candidates.shape == (2, 3, 4)
    got = choosing.score(args, train_t5.target_log_probs(args, model, src, candidates), candidates)
    for i, k in np.ndindex(2, 3):
        target, length = torch.tensor([targets[i][k]]), int((src[i] != PAD).sum())
        with torch.no_grad():
            log_p = model(src[i:i + 1, :length], shift_right(target)).log_softmax(-1)
        mean = log_p[0, torch.arange(target.shape[1]), target[0]].mean()
        torch.testing.assert_close(got[i, k], mean, atol=1e-5, rtol=1e-5)


def test_the_answer_can_be_learned(setup, capsys):
    """Right endings end in `glad`, wrong ones in `low`."""
    write_data_dir(setup.folder / "data", n_valid_file=200)
    train_t5.main(setup(n_iter=8, n_valid=40, dropout=0, lr=0.02, submit=True, analysis=True))
    best = max(line["va_acc"] for line in log_of(setup))
    assert best > 90 and {"tr_cost", "va_cost", "tr_acc"} <= log_of(setup)[0].keys()
    assert f"ROCStories Valid Accuracy: {best:.2f}\n" in capsys.readouterr().out


def test_an_evaluation_converts_the_weights_once(setup, monkeypatch):
    converted = []
    monkeypatch.setattr(choosing, "for_evaluation", lambda model, precision: converted.append(precision) or model)
    train_t5.main(setup(n_iter=2, precision="bf16", submit=True))
    assert converted == ["bf16"] * 3  # after each epoch, and for the test split


def test_towers_equal_one_big_batch_though_answers_differ_in_length(setup):
    for desc, n_batch, n_gpu in (("one", 8, 1), ("four", 2, 4)):
        train_t5.main(setup(desc=desc, n_batch=n_batch, n_gpu=n_gpu, dropout=0))
    one, four = (saved(setup, desc)["model"] for desc in ("one", "four"))
    for name in one:
        torch.testing.assert_close(one[name], four[name], atol=2e-4, rtol=2e-4)


def test_a_run_is_resumed_in_its_form_alone(setup, monkeypatch, capfd):
    train_t5.main(setup(desc="whole"))
    with monkeypatch.context() as patch:
        stop_after(patch, opt.Adafactor, 4)
        with pytest.raises(KeyboardInterrupt):
            train_t5.main(setup(desc="cut", save_every=1))
    train_t5.main(setup(desc="cut", save_every=1, resume=True))
    whole, cut = (saved(setup, desc)["model"] for desc in ("whole", "cut"))
    assert all(torch.equal(p, cut[name]) for name, p in whole.items())
    capfd.readouterr()
    assert run_script(train_t5.main, setup(desc="cut", save_every=1, resume=True, form=None)) == 2
    assert "--form 'answer' then, None now" in capfd.readouterr().err


def test_copa_is_submitted_in_its_benchmark_s_form(setup, monkeypatch, capsys):
    write_copa(setup.folder / "COPA")
    monkeypatch.setattr(choosing.finetuning, "choose", lambda of, n, c, *more: torch.eye(c)[torch.arange(n) % c])
    train_t5.main(setup(dataset="copa", data_dir=setup.folder, submit=True, analysis=True, model="small"))
    lines = [json.loads(line) for line in (setup.folder / "submission" / "COPA.jsonl").read_text().splitlines()]
    assert [(line["idx"], line["label"]) for line in lines] == [(0, 0), (1, 1), (2, 0), (3, 1), (4, 0)]
    assert re.search(r"copa accuracy: \d+\.\d\d on validation after \d updates; paper, small, in the form choices: "
                     r"46\.0 on test", capsys.readouterr().out)


def test_choices_of_one_s_own_are_learned_and_numbered_from_one(setup, capsys):
    write_own(setup.folder / "train.csv", 120)
    write_own(setup.folder / "test.csv", 7, labelled=False)
    outcome = train_t5.main(setup(dataset="own", train_file=setup.folder / "train.csv", submit=True, analysis=True,
                                  test_file=setup.folder / "test.csv", n_iter=8, dropout=0, lr=0.02))
    written = (setup.folder / "submission" / "own.tsv").read_text().splitlines()
    assert written[0] == "index\tprediction" and "test" not in outcome.accuracies
    right = [line == f"{i}\t{i % 3 + 1}" for i, line in enumerate(written[1:])]
    assert len(right) == 7 and sum(right) >= 6
    assert f"own accuracy: {outcome.accuracies['valid']:.2f} on validation" in capsys.readouterr().out


def test_reproducing_chooses_as_released_then_fine_tunes(setup):
    folder = setup.folder
    sizes = [word for name, value in SIZES.items() for word in (f"--{name}", str(value))]
    outcomes = reproduce.main(["--t5", "small", "--dataset", "rocstories", "--data_dir", str(folder / "data"),
                               "--model_dir", str(folder / "t5"), "--out", str(folder / "out"), "--n_updates", "3",
                               "--", "--from_scratch", *sizes, "--n_valid", "9", "--n_batch", "4", "--n_gpu", "1",
                               "--form", "answer"])
    assert [outcome.log["n_updates"].tolist()[-1] for outcome in outcomes] == [0, 3]
    assert all(0 <= outcome.accuracies["test"] <= 100 for outcome in outcomes)
    assert len({outcome.paths["submission"] for outcome in outcomes}) == 2


BAD = {
    "form": (dict(form="letters"), "--form.*'letters'.*'choices', 'answer'"),
    "no candidates": (dict(dataset="cola"), "--form answer: goes with --dataset rocstories, copa, own, not with cola"),
    "mixture": (dict(dataset="copa,cb"), "--form answer: .*not with copa,cb"),
    "pairs": (dict(dataset="own", form="choices"), "--form choices: goes with --dataset .*, not with own"),
    "of no use": (dict(pack=True, select="each"), "--pack, --select: of no use to --dataset rocstories in the"),
    "template": (dict(dataset="own", train_file="a.csv", template="{a}"), "--template: of no use"),
    "file": (dict(train_file="a.csv"), "--train_file: of no use"),
    "no file": (dict(dataset="own"), "--dataset own needs --train_file"),
    "no test file": (dict(dataset="own", train_file="a.csv", submit=True), "--dataset own needs --test_file"),
    "n_updates": (dict(n_updates=-1), "--n_updates is -1"),
    "n_target": (dict(n_target=1), "--n_target is 1"),
    "length of choices": (dict(form="choices", n_target=9), "--n_target: of no use"),
    "analysis": (dict(analysis=True), "--submit"),
}


@pytest.mark.parametrize("kind", BAD)
def test_mistakes_get_one_line(setup, capfd, kind):
    changes, message = BAD[kind]
    before = sorted(setup.folder.rglob("*"))
    try:
        status = run_script(train_t5.main, setup(**changes))
    except SystemExit as error:
        status = error.code
    lines = capfd.readouterr().err.strip().splitlines()
    assert status == 2 and len(lines) == 1 and re.search(message, lines[0]), lines
    assert sorted(setup.folder.rglob("*")) == before
