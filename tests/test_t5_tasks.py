"""T5's tasks from file to metric, letter by letter and value by value as the original's code (golden/t5_tasks)."""

import json
import math
import random
import re
from functools import partial

import pytest
from t5_task_files import WHERE, golden_file, write_files

import train_t5
from formats.errors import BadInput, MissingInput
from tasks import t5_formats, t5_metrics
from tasks.t5_submission import as_in_passage, file_name, write_predictions
from tasks.t5_tasks import GLUE, MIXTURES, SUPER_GLUE, TASKS, evaluate, read_examples
from utils import run_script


def squad_outputs(golden, key, split):
    """What the original made of SQuAD's files by one of its two rules, without what evaluation has no use of."""
    split = {"valid": "validation"}.get(split, split)
    data, given = (golden_file(golden, "other_tasks")[name]["files"][split]["examples"] for name in (key, "squad"))
    return [{name: output[name] for name in ("inputs", "targets", "answers")} | {"passage": one["features"]["context"]}
            for example, one in zip(data, given, strict=True) for output in example["outputs"]]


def test_every_task_is_exercised():
    assert set(WHERE) == set(TASKS)
    assert set(GLUE) | set(SUPER_GLUE) <= set(TASKS)


@pytest.mark.parametrize("name", WHERE)
@pytest.mark.parametrize("above", [True, False], ids=["folder above", "own folder"])
def test_files_become_the_original_s_texts(golden, tmp_path, name, above):
    """Every set of every task, from the folder above the task's or from its own."""
    expected = write_files(golden, name, tmp_path)
    folders = [path for path in tmp_path.iterdir() if path.is_dir() and path.name != "cnn"]
    if not above and not folders:  # the golden has these files without a folder: give them one
        inner = tmp_path / "data" / {"dpr": "DPR"}.get(name, name.removesuffix("_since_2022"))
        inner.mkdir(parents=True)
        for path in list(tmp_path.iterdir()):
            if path.name != "data":
                path.rename(inner / path.name)
        folder = tmp_path / "data"
    else:
        folder = tmp_path if above else folders[0]
    task, total = TASKS[name], 0
    for split, outputs in expected.items():
        assert split in {part for parts in task.splits.values() for part in parts}
        found = read_examples(task, str(folder), split, training=split == "train")
        if name.startswith("squad"):
            outputs = squad_outputs(golden, "squad_until_2022" if name == "squad" else "squad", split)
            assert all(output.pop("id")[0] in "ab" for output in found)
        assert found == outputs, split
        total += len(found)
    assert total > 3


def test_wnli_without_a_pronoun_is_refused_in_wsc_s_form(golden):
    entry = golden_file(golden, "glue")["wnli_simple_eval"]
    (row,) = (refused["row"] for refused in entry["refused"])
    with pytest.raises(BadInput, match="none of the pronouns"):
        t5_formats.wnli_as_wsc({"sentence1": row[1], "sentence2": row[2], "label": 1, "idx": 0})


def test_record_s_features_are_taken_as_they_are(golden):
    for example in golden_file(golden, "super_glue")["record"]["features_only"]:
        assert t5_formats.record(example["features"]) == example["outputs"]


def test_what_the_original_refuses_is_refused(golden, tmp_path):
    refused = golden_file(golden, "super_glue")["wsc_simple_eval"]["refused"]
    assert len(refused) == 3
    for example in refused:
        path = tmp_path / "val.jsonl"
        path.write_text(json.dumps(example["record"]) + "\n", encoding="utf-8")
        with pytest.raises(BadInput, match="expected the pronoun"):
            read_examples(TASKS["wsc"], str(tmp_path), "valid")
    (example,) = golden_file(golden, "other_tasks")["squad"]["refused"]
    with pytest.raises(BadInput, match="no answer"):
        t5_formats.squad(example["features"] | {"answers": []})


def test_stsb_rounds_every_score_as_the_original(golden):
    pairs = golden_file(golden, "stsb_rounding")["label_to_target"]
    assert len(pairs) > 50
    for label, target in pairs:
        features = {"sentence1": "a", "sentence2": "b", "label": float(label), "idx": 0}
        assert t5_formats.stsb(features)[0]["targets"] == target, label


def test_evaluation_is_the_original_s(golden, tmp_path):
    """Predicted texts to metrics, on the examples of the golden's files."""
    names = {task.original: name for name, task in TASKS.items()} | {  # of SQuAD the newer rule, as in the golden
        "glue_mnli_matched_v002": "mnli", "glue_mnli_mismatched_v002": "mnli"}
    seen = set()
    for original, entry in golden_file(golden, "evaluation").items():
        name = names[original]
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        write_files(golden, name, folder)
        split = {"validation": "valid", "test": "valid" if name == "dpr" else "test"}[entry["split"]]
        split += "_mismatched" * original.startswith("glue_mnli_mism")
        task = TASKS[name]
        examples = read_examples(task, str(folder), split)
        for run in entry["runs"]:
            if "numpy_seed" in run:
                task = task._replace(metrics=(partial(t5_metrics.rouge, seed=run["numpy_seed"]),))
            found = evaluate(task, examples, run["predictions"])
            assert list(found) == list(run["metrics"]), original
            for metric, value in run["metrics"].items():
                value = float(value)
                assert abs(found[metric] - value) <= 1e-9 or (math.isnan(value) and math.isnan(found[metric]))
        seen.add(name)
    assert seen | {"squad"} == {name for name, task in TASKS.items() if task.metrics}


def test_the_table_is_the_original_s(golden):
    data = golden_file(golden, "tasks")
    for name, task in TASKS.items():
        entry = data["tasks"][task.original]
        assert tuple(entry.get("label_classes") or ()) == task.labels or name == "record", name
        lengths = entry["sequence_length"]
        assert lengths["inputs"] == 512
        assert lengths["targets"] == task.target_length, name
        assert [metric["name"] for metric in entry["metrics"]] == [ORIGINAL_METRICS.get(m.__name__, m.__name__)
                                                                  for m in task.metrics], name
        rates = data["mixtures"]["glue_v002_proportional"] | data["mixtures"]["super_glue_v102_proportional"]
        rate = rates.get({"super_glue_wsc_v102_simple_eval": "super_glue_wsc_v102_simple_train"}.get(
            task.original, task.original))
        assert rate is None or rate == task.n_train, name
    for mixture, original in (("glue", "glue_v002_proportional"), ("superglue", "super_glue_v102_proportional")):
        trained = {task for task, rate in data["mixtures"][original].items() if rate}
        ours = {TASKS[name].original.replace("simple_eval", "simple_train") for name in MIXTURES[mixture]}
        assert ours == trained


ORIGINAL_METRICS = {"matthews_corrcoef": "sklearn_metrics_wrapper", "mean_multiclass_f1": "sklearn_metrics_wrapper"}


def test_a_missing_file_is_named(tmp_path):
    for name, task in TASKS.items():
        for split in (part for parts in task.splits.values() for part in parts):
            with pytest.raises(MissingInput) as error:
                read_examples(task, str(tmp_path), split)
            assert str(tmp_path) in str(error.value) and "\n" not in str(error.value), name


def damaged(data, draw):
    """A file's bytes with one thing changed, as editors, downloads and scripts change it."""
    place = draw.randrange(len(data) + 1)
    kind = draw.randrange(7)
    if kind == 0:
        return data[:place]
    if kind == 1:
        return data[:place] + bytes([draw.randrange(256)]) + data[place + 1:]
    if kind == 2:
        return data[:place] + draw.choice([b"\t", b"\n", b'"', b"\xe4", b"\0", b"\r", b",", b"}", b"{"]) + data[place:]
    if kind == 3:  # a value of another kind
        words = [b"null", b"[]", b"{}", b"-1", b"1e999", b'"\\ud800"', b"true", b"9" * 30]
        values = list(re.finditer(rb'(?<=: )("[^"]*"|-?\d+|true|false)', data))
        if not values:
            return data + b"\n" + draw.choice(words)
        value = draw.choice(values)
        return data[:value.start()] + draw.choice(words) + data[value.end():]
    if kind == 4:
        lines = data.split(b"\n")
        del lines[draw.randrange(len(lines))]
        return b"\n".join(lines)
    if kind == 5:
        end = draw.randrange(place, len(data) + 1)
        return data[:end] + data[place:end] + data[end:]
    return data.replace(draw.choice([b"text", b"label", b"idx", b"question", b"answers", b"sentence"]), b"other", 1)


@pytest.mark.parametrize("name", TASKS)
def test_damaged_files_give_examples_or_one_line(golden, tmp_path, name):
    expected = write_files(golden, name, tmp_path)
    draw = random.Random(name)
    files = [path for path in sorted(tmp_path.rglob("*")) if path.is_file()]
    refused = 0
    for _ in range(60):
        path = draw.choice(files)
        data = path.read_bytes()
        path.write_bytes(damaged(data, draw))
        for split in expected:
            try:
                outputs = read_examples(TASKS[name], str(tmp_path), split)
                assert all(isinstance(output[side], str) for output in outputs for side in ("inputs", "targets"))
                assert all(output[side].encode() is not None for output in outputs for side in ("inputs", "targets"))
            except (BadInput, MissingInput) as error:
                refused += 1
                assert "\n" not in str(error) and len(str(error)) < 700 and str(tmp_path) in str(error)
        path.write_bytes(data)
    assert refused > 2


WORDS = {  # task -> (predicted texts, rows or objects of the file)
    "cola": (["acceptable", "what"], ["index\tprediction", "0\t1", "1\t0"]),
    "qnli": (["not_entailment"], ["index\tprediction", "0\tnot_entailment"]),
    "wnli": (["entailment", "not_entailment"], ["index\tprediction", "0\t1", "1\t0"]),
    "wnli_wsc": (["the farmer", "Paul"], ["index\tprediction", "0\t1", "1\t0"]),
    "stsb": (["7.5", "nan", "2.6", "x"], ["index\tprediction", "0\t5.0", "1\t0.0", "2\t2.6", "3\t0"]),
    "boolq": (["True", "False"], [{"idx": 0, "label": "true"}, {"idx": 1, "label": "false"}]),
    "wic": (["False"], [{"idx": 0, "label": "false"}]),
    "wsc": (["foal"], [{"idx": 0, "label": "True"}]),
    "copa": (["choice2"], [{"idx": 0, "label": 1}]),
    "cb": (["neutral"], [{"idx": 0, "label": "neutral"}]),
    "super_glue_rte": (["not_entailment"], [{"idx": 0, "label": "not_entailment"}]),
    "record": (["Ana"], [{"idx": 0, "label": "Ana"}]),
    "axb": (["entailment"], [{"idx": 0, "label": "entailment"}]),
    "axg": (["not_entailment"], [{"idx": 0, "label": "not_entailment"}]),
    "dpr": (["a\tb\nc"], ["index\tprediction", "0\ta b c"]),
}


@pytest.mark.parametrize("name", WORDS)
def test_predictions_have_the_words_of_their_benchmark(golden, tmp_path, name):
    write_files(golden, name, tmp_path)
    task, (texts, rows) = TASKS[name], WORDS[name]
    examples = read_examples(task, str(tmp_path), "valid" if name == "dpr" else "test")
    examples = (examples * len(texts))[:len(texts)]
    if name == "boolq":
        examples[1] = examples[1] | {"idx": 1}
    path = tmp_path / "out" / file_name(name, "test")
    write_predictions(str(path), name, task, examples, texts)
    lines = path.read_text(encoding="utf-8").splitlines()
    assert (lines if path.suffix == ".tsv" else [json.loads(line) for line in lines]) == rows


def test_squad_s_answers_are_written_as_the_passage_has_them(golden, tmp_path):
    write_files(golden, "squad", tmp_path)
    task = TASKS["squad"]
    (part,) = task.splits["test"]
    examples = read_examples(task, str(tmp_path), part)
    assert file_name("squad", part) == "squad.json"
    predictions = [example["targets"] for example in examples]
    predictions[-1] = "none  of it"
    write_predictions(str(tmp_path / "squad.json"), "squad", task, examples, predictions)
    found = json.loads((tmp_path / "squad.json").read_text(encoding="utf-8"))
    assert list(found) == [example["id"] for example in examples] and list(found.values())[-1] == "none of it"
    for example, answer in list(zip(examples, found.values(), strict=True))[:-1]:
        assert answer in example["passage"] and answer.split() and "".join(answer.split()) == "".join(
            example["targets"].split())
    passage = "The U.S. Open-Air Museum\n(est. 1921) has $1.5m."
    assert as_in_passage("U . S . Open - Air Museum ( est . 1921 )", passage) == "U.S. Open-Air Museum\n(est. 1921)"
    assert as_in_passage(" $ 1 . 5m", passage) == "$1.5m" and as_in_passage("", passage) == ""


ROWS = {  # task, file, its one row, what is said
    "label": ("boolq", "val.jsonl", '{"passage": "p", "question": "q", "label": "yes"}',
              "row 1 has label 'yes', expected false or true"),
    "no label": ("cb", "val.jsonl", '{"premise": "p", "hypothesis": "h", "idx": 0}', "row 1 lacks the field 'label'"),
    "text": ("copa", "val.jsonl", '{"premise": 3, "choice1": "a"}', "row 1 has premise 3, expected a text"),
    "entity": ("record", "val.jsonl", '{"idx": 0, "passage": {"text": "ab", "entities": [{"start": 1, "end": 2}]}, '
               '"qas": []}', "row 1 has an entity from 1 to 2, expected places within the passage of 2"),
    "questions": ("multirc", "val.jsonl", '{"idx": 0, "passage": {"text": "ab", "questions": "none"}}',
                  "row 1 has passage.questions 'none', expected a list"),
    "span": ("wsc", "val.jsonl", '{"text": "a b", "label": true, "target": {"span1_text": "a", "span1_index": 7, '
             '"span2_text": "b", "span2_index": 1}}', "row 1 has span1 'a' at word 7"),
    "block": ("dpr", "test.c.txt", "A sentence.\nit\nA,B\n", "block at row 1 has 3 lines, expected 4"),
    "candidate": ("dpr", "test.c.txt", "A sentence.\nit\nA,B\nC\n", "row 4 is 'C', expected one of 'A,B'"),
    "layout": ("squad", "dev-v1.1.json", '{"data": [{"paragraphs": 1}]}', "article 1 has paragraphs 1, expected a li"),
    "lengths": ("wmt_ende", "valid.en", "one\ntwo", "has 2 sentences, but .*valid.de 1"),
    "column": ("cnn_dailymail", "validation.csv", "article,summary\na,b\n", "lacks the column highlights"),
}


@pytest.mark.parametrize("kind", ROWS)
def test_bad_rows_get_one_line(tmp_path, kind):
    name, file, text, message = ROWS[kind]
    (tmp_path / file).write_text(text, encoding="utf-8")
    (tmp_path / "valid.de").write_text("eins\n", encoding="utf-8")
    with pytest.raises(BadInput, match=message) as error:
        read_examples(TASKS[name], str(tmp_path), "valid")
    assert file in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("fault", ["empty", "latin-1", "cut row"])
@pytest.mark.parametrize("name", TASKS)
def test_the_usual_faults_get_one_line_from_the_script(golden, tmp_path, capsys, name, fault):
    expected = write_files(golden, name, tmp_path)
    splits = {split: parts[0] for split, parts in TASKS[name].splits.items() if parts and parts[0] in expected}
    seen = 0
    for path in [path for path in sorted(tmp_path.rglob("*")) if path.is_file() and path.name != "dev_ids.tsv"]:
        before = path.read_bytes()
        if path.suffix == ".story" or (fault == "cut row" and path.suffix not in (".tsv", ".jsonl", ".json")):
            continue  # a story without text is left out, as in the original; other rows have no form
        start = before[:-1].rfind(b"\n") + 1
        path.write_bytes({"empty": b"", "latin-1": before[:start] + b"\xe4" + before[start:],
                          "cut row": before[:start + 1]}[fault])
        said = []
        for split in splits:
            words = ["--dataset", name, "--data_dir", str(tmp_path), "--show", "1", "--show_split", split]
            if run_script(train_t5.main, words):
                said.append(capsys.readouterr().err)
            capsys.readouterr()
        path.write_bytes(before)
        seen += len(said)
        for line in said:
            assert line.count("\n") == 1 and path.name.split(".")[0] in line and "Traceback" not in line, line
        assert said or (name == "qqp" and fault == "cut row"), path  # QQP's rows of another width are left out
    assert seen or fault == "cut row" or name == "cnn_dailymail"
