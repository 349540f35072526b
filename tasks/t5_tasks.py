"""The tasks of the T5 paper in one table: files, texts, what the answers mean, metrics, lengths, sizes.

    examples = read_examples(TASKS["boolq"], "data/", "valid")  # [{"inputs": "boolq passage: ...", "targets": "True"}]
    evaluate(TASKS["boolq"], examples, ["True", "False"])       # {"accuracy": 50.0}

A task's inputs have 512 tokens at most in all of the paper's mixtures.
"""

import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

from formats.errors import BadInput, warn_once
from tasks import super_glue, t5_formats, t5_metrics, t5_postprocess
from tasks.cnn_dailymail import read_cnn_dailymail
from tasks.glue_files import GLUE_TASKS, read_glue
from tasks.pronouns import read_dpr
from tasks.squad import read_squad
from tasks.wmt import read_wmt

__all__ = ["GLUE", "MIXTURES", "SUPER_GLUE", "TASKS", "Task", "evaluate", "read_examples"]

EVERY_SPLIT = {"train": ("train",), "valid": ("valid",), "test": ("test",)}
TEST_ALONE = {"train": (), "valid": (), "test": ("test",)}
VALID_IS_TEST = {"train": ("train",), "valid": ("valid",), "test": ("valid",)}  # no other is published


class Task(NamedTuple):
    """What a task is made of.

    Attributes:
        read: function of (data_dir, split) returning features, see t5_formats; split: one of `splits`.
        format: function of features returning outputs, see t5_formats.
        metrics: functions of t5_metrics; the first value of the first selects the best parameters.
        postprocess: function of t5_postprocess. labels: the texts of its classes.
        target_length: tokens of a target at most, EOS included, as in the paper's mixtures.
        n_train: training examples in the paper's data; 0: it is never trained on; None: not known.
        splits: of train, valid and test: the names of the sets it consists of.
        beams: 1: greedy decoding; more: beam search with the paper's alpha of 0.6.
        format_train: as format, for training, where that differs.
        original: the name of the task in the original's registry.
    """

    read: Callable[[str, str], list[dict]]
    format: Callable[[dict], list[dict]]
    metrics: tuple[Callable, ...]
    postprocess: Callable
    original: str
    n_train: int | None
    target_length: int
    labels: tuple[str, ...] = ()
    splits: dict[str, tuple[str, ...]] = EVERY_SPLIT
    beams: int = 1
    format_train: Callable[[dict], list[dict]] | None = None


def _glue_features(name, data_dir, split):
    """Features of a GLUE task: its texts, "label" (class or score; -1 for unknown, as in all test sets), "idx"."""
    found, classes = read_glue(name, data_dir, split), GLUE_TASKS[name].classes
    known = found.labels is not None and not split.startswith("test")
    labels = found.labels if known else [-1] * len(found)
    if known:
        labels = [float(label) if classes is None else classes.index(label) for label in labels]
    return [dict(zip(found.texts, texts, strict=True)) | {"label": label, "idx": idx}
            for *texts, label, idx in zip(*found.texts.values(), labels, found.index.tolist(), strict=True)]


def _glue(name, metrics, n_train, prefix=None, splits=EVERY_SPLIT):
    labels = GLUE_TASKS[name].classes
    return Task(partial(_glue_features, name), partial(t5_formats.glue, name=prefix or name, labels=labels), metrics,
                t5_postprocess.label, f"glue_{name}_v002", n_train, 84, labels, splits)


def _folder(data_dir, *names):
    """data_dir's folder of one of these names, if there is one; else data_dir."""
    inner = (os.path.join(data_dir, name) for name in names)
    return next(filter(os.path.isdir, inner), data_dir)


def _in_folder(read, folder, names, data_dir, split):
    """Features of a file in data_dir or in its folder of the task's name."""
    path = os.path.join(_folder(data_dir, folder), names[split])
    return read(path) if not split.startswith("test") else read(path, labelled=False)


JSON_LINES = {"train": "train.jsonl", "valid": "val.jsonl", "test": "test.jsonl"}


def _super_glue(folder, read, format, metrics, postprocess, n_train, labels=(), splits=EVERY_SPLIT, original=None,
                **more):
    names = JSON_LINES if splits is EVERY_SPLIT else {"test": f"{folder}.jsonl"}
    original = original or f"super_glue_{folder.lower().replace('-', '')}_v102"
    return Task(partial(_in_folder, read, folder, names), format, metrics, postprocess, original, n_train, 62, labels,
                splits, **more)


def _sentences(folder, texts, file_labels, labels, n_train, prefix=None, metrics=(t5_metrics.accuracy,), order=None,
               format=None, splits=EVERY_SPLIT):
    read = partial(super_glue.read_sentences, texts=texts, labels=file_labels)
    format = format or partial(t5_formats.glue, name=prefix or folder.lower(), labels=labels, order=order)
    return _super_glue(folder, read, format, metrics, t5_postprocess.label, n_train, labels, splits)


def _axb(features, name, labels):
    """AX-b's sentences in the order of RTE's."""
    return t5_formats.glue({"premise": features["sentence1"], "hypothesis": features["sentence2"],
                            "label": features["label"], "idx": features["idx"]}, name, labels)


def _squad_features(data_dir, split):
    name = {"train": "train-v1.1.json", "valid": "dev-v1.1.json"}[split]
    return read_squad(os.path.join(_folder(data_dir, "squad", "SQuAD"), name))


def _dpr_features(data_dir, split):
    name = {"train": "train.c.txt", "valid": "test.c.txt"}[split]
    return read_dpr(os.path.join(_folder(data_dir, "dpr", "DPR", "DPRD"), name))


def _folder_features(read, folder, data_dir, split):
    return read(_folder(data_dir, folder), split)


def _wmt(name, target, original):
    read = partial(read_wmt, task=name, languages=("en", target))
    return Task(partial(_folder_features, read, name), partial(t5_formats.translate, source="en", target=target),
                (t5_metrics.bleu,), t5_postprocess.text, original, None, 512, beams=4)


ACCURACY = (t5_metrics.accuracy,)
F1_ACCURACY = (t5_metrics.f1_score_with_invalid, t5_metrics.accuracy)
BOOL = ("False", "True")
NLI = ("entailment", "not_entailment")
CB_LABELS = ("entailment", "contradiction", "neutral")

TASKS = {
    "cola": _glue("cola", (t5_metrics.matthews_corrcoef,), 8551),
    "sst2": _glue("sst2", ACCURACY, 67349),
    "mrpc": _glue("mrpc", F1_ACCURACY, 3668),
    "qqp": _glue("qqp", F1_ACCURACY, 363849),
    "stsb": _glue("stsb", (t5_metrics.pearson_corrcoef, t5_metrics.spearman_corrcoef), 5749)._replace(
        format=t5_formats.stsb, postprocess=t5_postprocess.number, labels=()),
    "mnli": _glue("mnli", ACCURACY, 392702, splits={"train": ("train",), "valid": ("valid", "valid_mismatched"),
                                                    "test": ("test", "test_mismatched")}),
    "qnli": _glue("qnli", ACCURACY, 104743),
    "rte": _glue("rte", ACCURACY, 2490),
    "wnli": _glue("wnli", ACCURACY, 0)._replace(target_length=512),
    "wnli_wsc": Task(partial(_glue_features, "wnli"), t5_formats.wnli_as_wsc, ACCURACY, t5_postprocess.wsc,
                     "glue_wnli_v002_simple_eval", 0, 512, GLUE_TASKS["wnli"].classes,
                     {"train": (), "valid": ("valid",), "test": ("test",)}),
    "ax": _glue("ax", (), 0, prefix="mnli", splits=TEST_ALONE),
    "boolq": _sentences("BoolQ", ("passage", "question"), super_glue.TRUTH, BOOL, 9427),
    "cb": _sentences("CB", ("premise", "hypothesis"), {name: i for i, name in enumerate(CB_LABELS)}, CB_LABELS, 250,
                     metrics=(t5_metrics.mean_multiclass_f1, t5_metrics.accuracy)),
    "copa": _sentences("COPA", ("premise", "choice1", "choice2", "question"), {0: 0, 1: 1}, ("choice1", "choice2"),
                       400),
    "multirc": _super_glue("MultiRC", super_glue.read_multirc, t5_formats.multirc,
                           (t5_metrics.multirc_f1_over_all_answers, t5_metrics.mean_group_metric),
                           t5_postprocess.multirc, 27243, BOOL),
    "record": _super_glue("ReCoRD", super_glue.read_record, t5_formats.record, (t5_metrics.deduplicate_metric,),
                          t5_postprocess.record, 138854),
    "super_glue_rte": _sentences("RTE", ("premise", "hypothesis"), super_glue.NLI, NLI, 2490),
    "wic": _sentences("WiC", ("sentence1", "sentence2", "word"), super_glue.TRUTH, BOOL, 5428,
                      order=("sentence1", "sentence2", "word")),
    "wsc": _super_glue("WSC", super_glue.read_wsc, t5_formats.wsc, ACCURACY, t5_postprocess.wsc, 259, BOOL,
                       original="super_glue_wsc_v102_simple_eval", format_train=partial(t5_formats.wsc, training=True)),
    "axb": _sentences("AX-b", ("sentence1", "sentence2"), super_glue.NLI, NLI, 0, metrics=(),
                      format=partial(_axb, name="rte", labels=NLI), splits=TEST_ALONE),
    "axg": _sentences("AX-g", ("premise", "hypothesis"), super_glue.NLI, NLI, 0, prefix="rte", metrics=(),
                      splits=TEST_ALONE),
    "dpr": Task(_dpr_features, t5_formats.dpr, ACCURACY, t5_postprocess.text, "dpr_v001_simple", 1322, 62,
                splits=VALID_IS_TEST),
    "squad": Task(_squad_features, t5_formats.squad, (t5_metrics.squad,), t5_postprocess.qa, "squad_v010_allanswers",
                  87599, 97, splits=VALID_IS_TEST),
    "cnn_dailymail": Task(partial(_folder_features, read_cnn_dailymail, "cnn_dailymail"), t5_formats.summarize,
                          (t5_metrics.rouge,), t5_postprocess.text, "cnn_dailymail_v002", 287113, 512, beams=4),
    "wmt_ende": _wmt("wmt_ende", "de", "wmt_t2t_ende_v003"),
    "wmt_enfr": _wmt("wmt_enfr", "fr", "wmt15_enfr_v003"),
    "wmt_enro": _wmt("wmt_enro", "ro", "wmt16_enro_v003"),
}
TASKS["squad_since_2022"] = TASKS["squad"]._replace(format=partial(t5_formats.squad, as_released=False))
GLUE = ("cola", "sst2", "mrpc", "qqp", "stsb", "mnli", "qnli", "rte")
SUPER_GLUE = ("boolq", "cb", "copa", "multirc", "record", "super_glue_rte", "wic", "wsc")
# those that --dataset names in a word; DPR adds to WSC's few examples, as in the paper
MIXTURES = {"glue": GLUE, "superglue": (*SUPER_GLUE, "dpr")}


def read_examples(task: Task, data_dir: str, split: str, training: bool = False) -> list[dict]:
    """Return the outputs of a set, in the file's order: dicts with "inputs" and "targets", see t5_formats.

    Args:
        split: one of the names in task.splits. training: format the examples for training.
    Raises:
        MissingInput, BadInput: see the readers; or an example cannot be formatted; or there are none.
    """
    format = task.format_train if training and task.format_train else task.format
    features = task.read(data_dir, split)
    try:
        outputs = [output for example in features for output in format(example)]
    except BadInput as error:
        raise BadInput(f"{data_dir}: the {split} split: {error}; correct or remove it") from None
    if not outputs:
        raise BadInput(f"{data_dir}: the {split} split holds no examples to use")
    if training and task.n_train and len(outputs) != task.n_train:
        warn_once(f"{data_dir}: {len(outputs):,} training examples of {task.original}; the paper's data has "
                  f"{task.n_train:,}")
    return outputs


def evaluate(task: Task, examples: Sequence[dict], predictions: Sequence[str]) -> dict[str, float]:
    """The metrics of predicted texts for examples of a task, see read_examples; {metric: value in percent}."""
    labels = task.labels
    targets = [task.postprocess(example["targets"], example, is_target=True, labels=labels) for example in examples]
    values = [task.postprocess(text, example, labels=labels)
              for text, example in zip(predictions, examples, strict=True)]
    return {name: value for metric in task.metrics for name, value in metric(targets, values).items()}
