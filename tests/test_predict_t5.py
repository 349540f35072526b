"""predict.py for a T5: answers, their log-probabilities, vectors; from a run's folder alone and from a released one."""

import random
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from cloze_data import options, write_data_dir
from pretraining import argv
from small_t5 import near
from test_t5_tasks import damaged
from test_text_to_text import SIZES, pairs

import explore
import predict
import t5_decoding
import train
import train_t5
from formats.errors import BadInput
from pretrain_t5 import learn_vocabulary
from t5_pytorch import EOS, T5_CONFIGS
from tasks.text_pairs import read_inputs
from utils import run_script


@pytest.fixture(scope="module")
def vocabulary():
    draw = random.Random(5)
    words = "answer context question entailment acceptable premise hypothesis".split()
    return learn_vocabulary([" ".join(row) for row in pairs(200)]
                            + [" ".join(draw.sample(words, 4)) for _ in range(60)], 34)


@pytest.fixture(scope="module")
def run(tmp_path_factory, vocabulary):
    """The folder of a run on own data that answers with words of different lengths."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "t5").mkdir()
    (folder / "t5" / "spiece.model").write_bytes(vocabulary)
    for name, n in (("train", 40), ("valid", 11), ("test", 9)):
        text = "".join("\t".join(row) + "\n" for row in pairs(n, seed=n))
        (folder / f"{name}.tsv").write_text(text, encoding="utf-8", newline="\n")
    (folder / "inputs.txt").write_text("".join(f"{row[0]}\n" for row in pairs(9, seed=9)), encoding="utf-8")
    train_t5.main(argv(folder, dict(
        desc="mine", dataset="own", train_file=folder / "train.tsv", valid_file=folder / "valid.tsv",
        test_file=folder / "test.tsv", submit=True, submission_dir=folder / "submission", model_dir=folder / "t5",
        from_scratch=True, n_batch=4, n_gpu=2, n_iter=3, lr=0.02, dropout=0, decode_length=6, n_ctx=20, **SIZES)))
    return folder


def line(run, **changes):
    settings = dict(desc="mine", file=run / "inputs.txt", save_dir=run / "save", device="cpu", n_batch=4) | changes
    return [word for name, value in settings.items() if value is not None and value is not False
            for word in ([f"--{name}"] if value is True else [f"--{name}", str(value)])]


def answered(run, capsys, **changes):
    capsys.readouterr()
    predict.main(line(run, **changes))
    return capsys.readouterr().out.splitlines()


def test_inputs_are_answered_as_submit_does_from_the_run_s_folder_alone(run, tmp_path, capsys):
    alone = tmp_path / "mine"
    shutil.copytree(run / "save" / "mine", alone)
    (alone / "checkpoint").unlink()
    out = tmp_path / "out.txt"
    assert answered(run, capsys, save_dir=tmp_path, out=out) == [f"wrote {out}: 9 rows"]
    answers = out.read_text().splitlines()
    submitted = (run / "submission" / "own.tsv").read_text().splitlines()[1:]
    assert answers == [row.split("\t")[1] for row in submitted] and any(answers)
    assert answered(run, capsys) == answered(run, capsys, file=run / "test.tsv") == answers
    assert answered(run, capsys, plain=True, precision="fp32") == answers
    (alone / "best_params").unlink()
    assert answered(run, capsys, save_dir=tmp_path) == answers  # from model.safetensors, which is the same


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("plain", [False, True])
def test_scores_are_log_probabilities_of_the_answers_in_order(run, capsys, beams, plain):
    lines = [line.split("\t") for line in answered(run, capsys, beams=beams, scores=True, plain=plain)]
    model, encoder, _, settings = explore.load_finetuned(str(run / "save" / "mine"))
    assert settings["n_ctx"] == 20 and settings["decode_length"] == 6
    values = set()
    for (value, text), (source, _) in zip(lines, pairs(9, seed=9), strict=True):
        src = torch.tensor([[*encoder.encode([source], verbose=False)[0][:19], EOS]])
        if beams > 1:
            ids, score = t5_decoding.beam_search(model, src, None, 6, beams, return_scores=True)
            n = (ids[0].tolist() + [EOS]).index(EOS) + 1 if EOS in ids[0] else ids.shape[1]
            assert near(torch.tensor(float(value)), score[0] * ((5 + n) / 6) ** 0.6, 1e-4)
        else:
            ids = t5_decoding.generate(model, src, None, 6)
        assert encoder.decode(ids[0]) == text
        end = ids[0].tolist().index(EOS) + 1 if EOS in ids[0] else ids.shape[1]
        with torch.no_grad():
            log_p = model(src, torch.cat([ids.new_zeros(1, 1), ids[:, :end - 1]], 1)).log_softmax(-1)
        assert near(torch.tensor(float(value)), log_p[0].gather(1, ids[0, :end, None]).sum(), 1e-4)
        values.add(value)
    assert len(values) > 2 and all(float(value) < 0 for value in values)


def test_a_released_folder_is_answered_from_and_python_gives_a_table(run, tmp_path, capsys):
    folder = tmp_path / "released"
    shutil.copytree(run / "save" / "mine", folder, ignore=shutil.ignore_patterns("task.json", "*params*", "checkpoint"))
    common = dict(desc=None, save_dir=None, model_dir=folder)
    assert answered(run, capsys, decode_length=6, **common)[0] in answered(run, capsys)
    finetuned = explore.load_finetuned(str(run / "save" / "mine"))
    assert repr(finetuned) == "Finetuned(own: text to text; a T5 of 2 layers of width 18)"
    texts = [row[0] for row in pairs(9, seed=9)]
    table = predict.predict(finetuned, texts)
    assert list(table) == ["answer", "log_probability"] and list(table["answer"]) == answered(run, capsys)
    pd.testing.assert_frame_equal(predict.predict(finetuned, str(run / "inputs.txt"), n_batch=2), table, atol=1e-5)
    said = refused(line(run, model="small", **common), capsys)
    assert "small" in T5_CONFIGS and "shape" in said or "size" in said or "expected" in said


def test_what_is_cut_and_what_the_vocabulary_lacks_is_said(run, capsys):
    loaded = explore.load_finetuned(str(run / "save" / "mine"))
    capsys.readouterr()
    predict.predict(loaded, ["glad " * 30, "low {", "new"])
    said = capsys.readouterr().err
    assert "1 inputs hold signs that the vocabulary lacks, which become <unk>: {" in said
    assert "1 of 3 inputs have 20 tokens or more and were cut (the run's --n_ctx)" in said
    predict.vectors_of(loaded, ["glad " * 30, "new"], verbose=False)
    assert "1 of 2 texts have 20 tokens or more and were cut" in capsys.readouterr().err


def test_columns_and_templates_make_inputs(run, tmp_path, capsys):
    expected = answered(run, capsys)
    sources = [row[0] for row in pairs(9, seed=9)]
    table = pd.DataFrame({"q": sources, "input": sources, "a": [s.split(" ", 1)[0] for s in sources],
                          "b": [s.split(" ", 1)[1] for s in sources]})
    table.to_csv(tmp_path / "new.csv", index=False)
    table.to_csv(tmp_path / "new.tsv", index=False, sep="\t")
    table.to_json(tmp_path / "new.jsonl", orient="records", lines=True)
    for name in ("new.csv", "new.tsv", "new.jsonl"):
        assert answered(run, capsys, file=tmp_path / name, columns="input=q") == expected
        assert answered(run, capsys, file=tmp_path / name, template="{a} {b}") == expected
    assert answered(run, capsys, file=tmp_path / "new.jsonl") == expected
    settings = predict.load_finetuned(str(run / "save" / "mine"))
    trained = settings._replace(settings=settings.settings | {"template": "{b} {a}"})
    assert predict.texts_of(trained, str(tmp_path / "new.tsv")) == [f"{row.b} {row.a}" for row in table.itertuples()]
    assert predict.texts_of(trained, str(tmp_path / "new.tsv"), {"input": "a"}) == list(table["a"])
    assert predict.texts_of(trained, str(run / "inputs.txt")) == sources


@pytest.mark.parametrize("plain", [False, True])
def test_vectors_are_means_of_the_encoder_s_last_states(run, tmp_path, capsys, plain):
    answered(run, capsys, vectors=tmp_path / "v.npy", plain=plain)
    vectors = np.load(tmp_path / "v.npy", allow_pickle=False)
    assert vectors.shape == (9, 18) and vectors.dtype == np.float32
    model, encoder, _, _ = explore.load_finetuned(str(run / "save" / "mine"))
    texts = [row[0] for row in pairs(9, seed=9)]
    rows = [[*ids[:19], EOS] for ids in encoder.encode(texts, verbose=False)]
    want = [explore.means(explore.hidden_states(model, explore.batch_of_ids(model, [ids])).encoder[-1],
                          torch.ones(1, len(ids), dtype=torch.bool))[0] for ids in rows]
    assert near(torch.from_numpy(vectors), torch.stack(want), 1e-5) and len({len(ids) for ids in rows}) > 2
    found = torch.from_numpy(predict.vectors_of(explore.load_finetuned(str(run / "save" / "mine")), ["low", "new"]))
    assert near(found, explore.sentence_vectors(model, encoder, ["low", "new"]), 1e-5)


@pytest.mark.parametrize("plain", [False, True])
def test_vectors_of_a_gpt_and_the_story_s_own_columns(tmp_path, small_vocabulary, capsys, plain):
    data = write_data_dir(tmp_path / "data")
    train.main(options(tmp_path, data, small_vocabulary, submit=True, n_iter=1))
    loaded = explore.load_finetuned(str(tmp_path / "save" / "tiny"))
    (file,) = [path for path in (tmp_path / "data").iterdir() if "ALL_test" in path.name]
    table = predict.predict(loaded, str(file))
    submitted = (tmp_path / "submission" / "ROCStories.tsv").read_text().splitlines()[1:]
    assert list(table["label"]) == [str(1 + int(row.split("\t")[1])) for row in submitted]
    predict.main(["--desc", "tiny", "--save_dir", str(tmp_path / "save"), "--file", str(file), "--vectors",
                  str(tmp_path / "v.npy"), "--device", "cpu", "--n_batch", "4", *["--plain"] * plain])
    vectors = np.load(tmp_path / "v.npy", allow_pickle=False)
    rows = pd.read_csv(file)
    texts = [" ".join(row) for row in rows[[*predict.SENTENCES, *predict.ENDINGS]].to_numpy()]
    model, encoder, _, settings = loaded
    want = [explore.means(explore.hidden_states(model, explore.batch_of_ids(model, [ids[:settings["n_ctx"]]]))[-1],
                          torch.ones(1, min(len(ids), settings["n_ctx"]), dtype=torch.bool))[0]
            for ids in encoder.encode(texts, verbose=False)]
    assert near(torch.from_numpy(vectors), torch.stack(want), 1e-5)
    short = ["low", "a new cat"]
    found = torch.from_numpy(predict.vectors_of(loaded, short))
    assert near(found, explore.sentence_vectors(model, encoder, short), 1e-5)
    words = ["--desc", "tiny", "--save_dir", str(tmp_path / "save"), "--file", str(file)]
    said = refused([*words, "--beams", "2"], capsys)
    assert "--beams: of no use to tiny, a GPT" in said


def refused(words, capsys):
    capsys.readouterr()
    assert run_script(predict.main, words) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1, said
    return said


BAD_FILES = {
    "absent": ("a.txt", None, "a.txt: not found"),
    "empty": ("a.txt", b"", "a.txt: is empty"),
    "blank lines": ("a.txt", b"\n\n", "a.txt: is empty"),
    "latin-1": ("a.txt", b"new\n\xe4\n", "a.txt: row 2 is not UTF-8"),
    "NUL": ("a.txt", b"new\n\0\n", "a.txt: row 2 holds a NUL"),
    "two columns too many": ("a.tsv", b"a\tb\na\tb\tc\n", "a.tsv: row 2 has 3 fields"),
    "latin-1 tsv": ("a.tsv", b"a\tb\n\xe4\tb\n", "a.tsv: row 2 is not UTF-8"),
    "no column": ("a.csv", b"text\nx\n", "a.csv: row 1 (header) lacks the column input"),
    "open quote": ("a.csv", b'input\n"a\n', "a.csv: row 2 is not CSV"),
    "latin-1 csv": ("a.csv", b"input\n\xe4\n", "a.csv: row 2 is not UTF-8"),
    "width": ("a.csv", b"input,b\nx\n", "a.csv: row 2 has 1 field, expected 2"),
    "header alone": ("a.csv", b"input\n", "a.csv: holds no examples"),
    "bad JSON": ("a.jsonl", b'{"input": "a"}\n{"input": \n', "a.jsonl: row 2 is not JSON"),
    "no field": ("a.jsonl", b'{"text": "a"}\n', "a.jsonl: row 1 lacks the field 'input'"),
    "a number": ("a.jsonl", b'{"input": 3}\n', "a.jsonl: row 1 has input 3, expected a text"),
    "half a character": ("a.jsonl", b'{"input": "\\ud800"}\n', "a.jsonl: row 1 has a input with a NUL or half"),
    "a list": ("a.jsonl", b'["a"]\n', "a.jsonl: row 1 is '[\"a\"]', expected a JSON object"),
}


@pytest.mark.parametrize("kind", BAD_FILES)
def test_files_that_cannot_be_answered_get_one_line(run, tmp_path, capsys, kind):
    name, data, message = BAD_FILES[kind]
    if data is not None:
        (tmp_path / name).write_bytes(data)
    assert message in refused(line(run, file=tmp_path / name, out=tmp_path / "out.txt"), capsys)
    assert not (tmp_path / "out.txt").exists()


@pytest.mark.parametrize("name", ["a.txt", "a.tsv", "a.csv", "a.jsonl"])
def test_damaged_inputs_give_texts_or_one_line(tmp_path, name):
    rows = [(f'sentence: {source} {sign}', target) for (source, target), sign in zip(
        pairs(6, seed=3), ["\u00e4", "'", "{}", "\U0001f600", "\u2028", "<extra_id_0>"], strict=True)]
    table = pd.DataFrame(rows, columns=["input", "text"])
    text = {"a.txt": "".join(f"{source}\n" for source, _ in rows), "a.csv": table.to_csv(index=False),
            "a.tsv": "".join("\t".join(row) + "\n" for row in rows),
            "a.jsonl": table.to_json(orient="records", lines=True, force_ascii=False)}[name]
    path, draw, refused = tmp_path / name, random.Random(name), 0
    path.write_text(text, encoding="utf-8", newline="")
    assert read_inputs(str(path)) == [row[0] for row in rows]
    for _ in range(150):
        path.write_bytes(damaged(text.encode(), draw))
        try:
            assert all(text.encode() is not None for text in read_inputs(str(path)))
        except BadInput as error:
            refused += 1
            assert "\n" not in str(error) and len(str(error)) < 500 and str(path) in str(error)
    assert refused > 5


def test_options_and_folders_that_do_not_fit_get_one_line(run, tmp_path, capsys):
    inputs = run / "inputs.txt"
    for changes, message in (
            (dict(desc=None), "give one of --desc"), (dict(model_dir=run), "give one of --desc"),
            (dict(model="small"), "--model small goes with --model_dir"), (dict(beams=0), "--beams is 0"),
            (dict(columns="text=a"), "--columns has 'text=a', expected input=COLUMN"),
            (dict(columns="input=a"), "inputs.txt: is read as an input on each line"),
            (dict(template="{a}"), "inputs.txt: is read as an input on each line"),
            (dict(out=inputs), "is the --file, which would be lost"), (dict(out=run), "a folder"),
            (dict(vectors=inputs), "expected the name of a file that ends in .npy"),
            (dict(vectors=run / "v.npy", scores=True), "--scores: of no use with --vectors"),
            (dict(desc="other"), "task.json: not found")):
        assert message in refused(line(run, **changes), capsys), changes
    folder = tmp_path / "mine"
    shutil.copytree(run / "save" / "mine", folder)
    (folder / "best_params").rename(folder / "best_params.previous")
    assert "has not come to its first evaluation" in refused(line(run, save_dir=tmp_path), capsys)
    (folder / "best_params").write_bytes((run / "save" / "mine" / "best_params").read_bytes()[:500])
    assert "best_params" in refused(line(run, save_dir=tmp_path), capsys)
    (folder / "task.json").write_text('{"model": "t5", "dataset": "own"}')
    assert "task.json: lacks n_ctx" in refused(line(run, save_dir=tmp_path), capsys)
    (folder / "config.json").unlink()
    (folder / "task.json").write_bytes((run / "save" / "mine" / "task.json").read_bytes())
    assert "config.json: not found; the folder of a run of train_t5.py" in refused(line(run, save_dir=tmp_path), capsys)
    with pytest.raises(BadInput, match="the inputs are 3, expected"):
        predict.predict(explore.load_finetuned(str(run / "save" / "mine")), 3)
    with pytest.raises(BadInput, match="the inputs are"):
        predict.predict(explore.load_finetuned(str(run / "save" / "mine")), [])
