"""T5's metrics and postprocessors against what the original computed (golden/t5_tasks)."""

import json
import math

import numpy as np
import pytest

from tasks import t5_metrics, t5_postprocess

GROUPED = {"all_match", "mean_group_metric", "deduplicate_metric", "multirc_f1_over_all_answers"}


@pytest.fixture(scope="module")
def read(golden):
    return lambda name: json.loads((golden / "t5_tasks" / name).read_text(encoding="utf-8"))


def number(value):
    return float(value) if value in ("nan", "inf", "-inf") else value


def same(found, expected, tolerance=1e-9):
    assert list(found) == list(expected)
    for name, value in expected.items():
        value = number(value)
        assert math.isnan(found[name]) if math.isnan(value) else abs(found[name] - value) <= tolerance, name


def cases(golden_file, name):
    entry = golden_file[name]
    assert len(entry["cases"]) > 0
    return entry["cases"]


def test_every_metric_is_the_original_s(read):
    metrics = read("metrics.json")
    names = [name for name in metrics if not name.startswith("normalize") and name != "rouge"]
    assert len(names) > 10
    for name in names:
        function = getattr(t5_metrics, name)
        for case in cases(metrics, name):
            targets, predictions = (case[side] for side in ("targets", "predictions"))
            if name.endswith("corrcoef"):
                targets, predictions = ([number(x) for x in side] for side in (targets, predictions))
            if "error" in case:
                with pytest.raises(ValueError):
                    function(targets, predictions)
            else:
                same(function(targets, predictions), case["result"])


def test_rouge_draws_as_the_original_does(read):
    for case in cases(read("metrics.json"), "rouge"):
        found = t5_metrics.rouge(case["targets"], case["predictions"], case["numpy_seed"])
        same(found, case["result"])
        np.random.seed(1)  # the caller's generator plays no part
        assert t5_metrics.rouge(case["targets"], case["predictions"], case["numpy_seed"]) == found


def test_answers_are_normalised_as_in_the_original(read):
    for name in ("normalize_squad", "normalize_trivia_qa"):
        for case in cases(read("metrics.json"), name):
            assert getattr(t5_metrics, name)(case["text"]) == case["result"], case["text"]


def test_sentences_of_rouge_lsum_are_united_in_the_target_s_order():
    """Two predicted sentences cover one target sentence; a repeated word counts no more often than in the target."""
    found = t5_metrics.rouge_mean(["w1 w2 w3 w4 w5"], ["w1 w2 w6 w7 w8\nw1 w3 w8 w9 w5"])
    assert found["rougeLsum"] == pytest.approx(100 * 2 * 4 / 15)


def test_averages_are_the_original_s(read):
    golden_file = read("averages.json")
    names = {"glue_mnli_matched_v002": "mnli", "super_glue_rte_v102": "super_glue_rte",
             "super_glue_wsc_v102_simple_eval": "wsc"}
    known = 0
    for run in golden_file["runs"]:
        for i, steps in enumerate(run["average_super_glue"] or []):
            scores = {}
            for tag, values in run["scores"].items():
                task, metric = tag.split("/")
                short = task.removeprefix("glue_").removeprefix("super_glue_").rsplit("_v", 1)[0]
                short = names.get(task, short)
                if i < len(values):
                    scores[f"{short}/{metric}"] = values[i][1]
            scores["mnli/mismatched_accuracy"] = scores.pop("mnli_mismatched/accuracy")
            assert abs(t5_metrics.average_super_glue(scores) - steps) <= 1e-9
            found = t5_metrics.average_glue(scores)
            if run["average_glue"] is None:
                assert found is None
            else:
                assert abs(found - run["average_glue"][i]) <= 1e-9
            known += 1
    assert known >= 6
    assert t5_metrics.average_super_glue({}) is None


POSTPROCESSORS = {"string_label_to_class_id": "label", "string_to_float": "number", "multirc": "multirc",
                  "record": "record", "qa": "qa", "wsc_simple": "wsc"}


def test_every_postprocessor_is_the_original_s(read):
    seen = set()
    for task, entry in read("postprocessors.json")["per_task"].items():
        name = entry["postprocessor"]
        if name == "span_qa":  # of a variant that is not here
            continue
        if name is None:
            assert t5_postprocess.text("The Cat ") == "The Cat "
            continue
        function = getattr(t5_postprocess, POSTPROCESSORS[name])
        labels = {"labels": tuple(entry["kwargs"]["label_classes"])} if "label_classes" in entry["kwargs"] else {}
        for case in entry["cases"]:
            if isinstance(case, dict):
                assert function(case["prediction"], {"targets": case["referent"]}) == case["output"], case
            else:
                found, expected = function(case[0], **labels), number(case[1])
                assert found == expected or (found != found and expected != expected), (task, case)
        for text, example, expected in entry.get("target_cases", []):
            found = function(text, example, is_target=True, **labels)
            if name == "record":
                found = found | {"group": list(found["group"])}
            assert found == expected, (task, text)
        seen.add(name)
    assert seen == set(POSTPROCESSORS)
