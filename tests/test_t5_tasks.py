"""T5's tasks from file to metric, letter by letter and value by value as the original's code (golden/t5_tasks)."""

import json
import math
from functools import partial

import pytest
from t5_task_files import WHERE, golden_file, write_files

from formats.errors import BadInput, MissingInput
from tasks import t5_formats, t5_metrics
from tasks.t5_tasks import GLUE, MIXTURES, SUPER_GLUE, TASKS, evaluate, read_examples


def squad_outputs(golden, key, split):
    """What the original made of SQuAD's files by one of its two rules, without what evaluation has no use of."""
    data = golden_file(golden, "other_tasks")[key]["files"][{"valid": "validation"}.get(split, split)]
    return [{name: output[name] for name in ("inputs", "targets", "answers")}
            for example in data["examples"] for output in example["outputs"]]


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
