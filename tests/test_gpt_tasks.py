"""The table of GPT-1's tasks, and their examples from files to what the model reads."""

import json
from dataclasses import replace

import numpy as np
import pytest
from cloze_data import write_data_dir
from task_files import write_task

from formats.errors import BadInput, MissingInput
from model_pytorch import make_task_head
from tasks.encoding import encode_split, encode_texts
from tasks.examples import TRANSFORMATIONS, Examples, Texts
from tasks.fitting import CUTS, fit, needed
from tasks.gpt_tasks import GPT_TASKS, check_sizes
from tasks.layout import transform_roc
from tasks.metrics import METRICS
from text_utils import TextEncoder
from utils import encode_dataset


def test_the_table_is_whole():
    assert list(GPT_TASKS) == ["rocstories", "race", "snli", "mnli", "qnli", "rte", "scitail", "wnli", "mrpc", "qqp",
                               "stsb", "sst2", "cola"]
    for name, task in GPT_TASKS.items():
        assert task.name == name and task.transformation in TRANSFORMATIONS and task.cut in CUTS
        assert set(task.metrics) <= set(METRICS) and task.metrics[0] in task.published
        assert {"train", "valid", "test"} <= task.sizes.keys() and task.submission.keys() <= task.sizes.keys()
        assert (not task.classes) == (task.score_range is not None) and len(set(task.classes)) == len(task.classes)
        n_texts = {"classification": 1, "entailment": 2, "similarity": 2}.get(task.transformation)
        assert len(task.texts) == (n_texts or task.n_context + len(task.classes))


class Cfg(dict):
    n_embd, clf_pdrop = 8, 0.1


def test_every_task_has_a_head_of_its_size():
    for task in GPT_TASKS.values():
        head = make_task_head(task.head, 3, Cfg())
        assert head.linear.out_features == (1 if task.transformation == "multiple_choice" else task.n_out)


# one honest file of each form: {path in the folder above: text}; what it reads to: texts, labels, index
NLI_JSON = ('{"gold_label": "neutral", "sentence1": "A \\"man", "sentence2": "null"}\n'
            '{"gold_label": "-", "sentence1": "x", "sentence2": "y"}\n'
            '{"gold_label": "entailment", "sentence1": "n/a", "sentence2": "b\\u2028"}\n')
NLI_READ = {"premise": ['A "man', "n/a"], "hypothesis": ["null", "b\u2028"]}, [0, 2]
FORMS = [
    ("snli", "snli_1.0/snli_1.0_train.jsonl", NLI_JSON, *NLI_READ),
    ("snli", "snli_1.0/snli_1.0_train.txt",
     "gold_label\tsentence1\tsentence2\tlabel1\tlabel2\nneutral\tA \"man\tnull\tneutral\t\n"
     "-\tx\ty\tneutral\tentailment\nentailment\tn/a\tb\u2028\t\t\n", *NLI_READ),
    ("snli", "SNLI/train.tsv",
     "index\tsentence1\tsentence2\tlabel1\tgold_label\n0\tA \"man\tnull\tneutral\tneutral\n1\tx\ty\tneutral\t-\n"
     "2\tn/a\tb\u2028\tentailment\tentailment\n", *NLI_READ),
    ("scitail", "SciTailV1.1/tsv_format/scitail_1.0_train.tsv",
     "A \"man\tnull\tneutral\nx\ty\t-\nn/a\tb\u2028\tentails\n", *NLI_READ),
    ("scitail", "SciTailV1.1/snli_format/scitail_1.0_train.txt", NLI_JSON, *NLI_READ),
    ("scitail", "SciTailV1.1/predictor_format/scitail_1.0_structure_train.jsonl",
     NLI_JSON.replace("entailment", "entails"), *NLI_READ),
    ("scitail", "SciTailV1.1/dgem_format/scitail_1.0_structure_train.tsv",
     "A \"man\tnull\tneutral\tp\nx\ty\t-\tp\nn/a\tb\u2028\tentails\tp\n", *NLI_READ),
]


@pytest.mark.parametrize("form", range(len(FORMS)))
def test_snli_and_scitail_are_read_in_every_form(tmp_path, capsys, form):
    name, path, text, texts, index = FORMS[form]
    (tmp_path / path).parent.mkdir(parents=True)
    (tmp_path / path).write_text(text, encoding="utf-8")
    for data_dir in (tmp_path, tmp_path / path.split("/")[0], (tmp_path / path).parent):
        read = GPT_TASKS[name].read(str(data_dir), "train")
        assert read.texts == texts and read.index.tolist() == index
        assert read.labels == ["neutral", "entails" if name == "scitail" else "entailment"]
        assert GPT_TASKS[name].files(str(data_dir)) == {"train": [read.path]}
    assert f"{path}: 1 row without a label" in capsys.readouterr().err


def race_record(article, *questions):
    return {"article": article, "questions": [q for q, *_ in questions], "options": [list(o) for _, o, _ in questions],
            "answers": [a for *_, a in questions], "id": "x.txt"}


def write_race(folder, part="train"):
    """Two middle-school articles in one file, one of a high school; return the folder."""
    records = [race_record("A\nlong article", ("It is _ .", "abcd", "B"), ("Why?", "efgh", "D")),
               race_record("Short", ("What?", ("null", "n/a", "", "\u2028"), "A"))]
    (folder / "RACE" / part / "middle").mkdir(parents=True)
    (folder / "RACE" / part / "high").mkdir()
    (folder / "RACE" / part / "middle" / "1.txt").write_text("".join(json.dumps(r) + "\n" for r in records))
    high = race_record("High", ("Q", "wxyz", "C"))
    (folder / "RACE" / part / "high" / "2.txt").write_text(json.dumps(high, indent=1))
    return folder


def test_race_is_read_question_by_question(tmp_path):
    write_race(tmp_path)
    for data_dir in (tmp_path, tmp_path / "RACE"):
        read = GPT_TASKS["race"].read(str(data_dir), "train")
        assert read.texts["article"] == ["A\nlong article"] * 2 + ["Short", "High"]
        assert read.texts["article"][0] is read.texts["article"][1]
        assert read.texts["question"] == ["It is _ .", "Why?", "What?", "Q"]
        assert [read.texts[f"option{k}"][2] for k in range(1, 5)] == ["null", "n/a", "", "\u2028"]
        assert read.labels == ["B", "D", "A", "C"] and read.index.tolist() == [0, 1, 2, 3]
    with pytest.raises(MissingInput, match="RACE.dev.*holds no middle or high folder"):
        GPT_TASKS["race"].read(str(tmp_path), "valid")


BAD_RACE = {
    "letter": ({"answers": ["E", "D"]}, "question 1, has the answer 'E'"),
    "options": ({"options": [list("abc"), list("efgh")]}, "question 1, has 3 options"),
    "lengths": ({"questions": ["a"]}, "three lists of one length"), "article": ({"article": 3}, "has article 3"),
    "no text": ({"options": [[1, "b", "c", "d"], list("efgh")]}, "has option 1 1, expected a text"),
}


@pytest.mark.parametrize("kind", BAD_RACE)
def test_a_bad_race_file_gets_one_line(tmp_path, kind):
    change, message = BAD_RACE[kind]
    write_race(tmp_path)
    path = tmp_path / "RACE" / "train" / "high" / "2.txt"
    path.write_text(json.dumps(race_record("A", ("It", "abcd", "B"), ("Why?", "efgh", "D")) | change))
    with pytest.raises(BadInput, match=message) as caught:
        GPT_TASKS["race"].read(str(tmp_path), "train")
    assert "2.txt: row 1" in str(caught.value) and "\n" not in str(caught.value)


class Letters:
    """An encoder of one token a letter: a is 0."""

    decoder = dict(enumerate("abcdefghijklmnopqrstuvwxyz"))

    def encode(self, texts, verbose=True):
        return [[ord(letter) - 97 for letter in text] for text in texts]


S, D, C = 26, 27, 28  # start, delimiter, classify


def examples_of(transformation, parts, labels=None, **more):
    """Examples whose parts are rows of strings, encoded by Letters."""
    flat = [text for row in parts for text in row]
    texts = encode_texts(flat, Letters(), verbose=False)
    numbers = np.arange(len(flat), dtype=np.int32).reshape(len(parts), -1)
    examples = Examples(transformation, texts, numbers, texts.lengths[numbers], labels, None, np.arange(len(parts)), 26)
    return replace(examples, **more)


def rows_of(examples):
    return [[list(sequence) for sequence in examples.sequences(row)] for row in range(len(examples))]


def test_the_four_transformations_are_the_paper_s():
    assert rows_of(examples_of("classification", [["ab"], [""]])) == [[[S, 0, 1, C]], [[S, C]]]
    assert rows_of(examples_of("entailment", [["ab", "c"]])) == [[[S, 0, 1, D, 2, C]]]
    assert rows_of(examples_of("similarity", [["ab", "c"]])) == [[[S, 0, 1, D, 2, C], [S, 2, D, 0, 1, C]]]
    assert rows_of(examples_of("multiple_choice", [["ab", "c", "de", ""]])) == [
        [[S, 0, 1, D, 2, C], [S, 0, 1, D, 3, 4, C], [S, 0, 1, D, C]]]
    assert rows_of(examples_of("multiple_choice", [["ab", "c", "d", "e"]], n_context=2)) == [
        [[S, 0, 1, 2, D, 3, C], [S, 0, 1, 2, D, 4, C]]]


@pytest.mark.parametrize("transformation, parts, shape", [
    ("classification", [["abc"], ["d"], ["efghij"]], (2, 5)),
    ("entailment", [["a", "bc"], ["d", "e"], ["", "k" * 9]], (2, 6)),
    ("similarity", [["a", "bc"], ["d", "e"], ["", "k" * 9]], (2, 2, 6)),
    ("multiple_choice", [["a", "b", "cd"], ["e", "f", "g"], ["h" * 9, "", ""]], (2, 2, 6))])
def test_a_batch_is_as_long_as_its_longest_sequence(transformation, parts, shape):
    examples = examples_of(transformation, parts, np.array([2, 0, 1]))
    for rows in (slice(0, 2), np.array([0, 1]), [0, 1]):
        x, m, y = examples.layout(rows)
        assert x.shape == (*shape, 2) and m.shape == shape and x.dtype == np.int32 and m.dtype == np.float32
        assert y.tolist() == [2, 0] and y.dtype == np.int64
        assert (x[..., 1] == 29 + np.arange(shape[-1])).all()
        flat = x.reshape(-1, shape[-1], 2), m.reshape(-1, shape[-1])
        want = [sequence for row in rows_of(examples)[:2] for sequence in row]
        for ids, mask, sequence in zip(flat[0][..., 0].tolist(), flat[1].tolist(), want, strict=True):
            assert ids == sequence + [0] * (shape[-1] - len(sequence))
            assert mask == [1] * len(sequence) + [0] * (shape[-1] - len(sequence))
    assert examples.layout(slice(0, 0)).x.shape[0] == 0
    assert replace(examples, labels=None).layout(slice(0, 2)).y is None


def test_scores_become_distributions_for_training_alone():
    examples = examples_of("similarity", [["a", "b"]] * 4, np.array([3.6, 0, 5, 2.0]), score_range=(0, 5))
    y = examples.layout(slice(0, 4)).y
    assert y.dtype == np.float32 and y.shape == (4, 6)
    np.testing.assert_allclose(y @ np.arange(6), [3.6, 0, 5, 2], atol=1e-6)
    np.testing.assert_allclose(y[0], [0, 0, 0, .4, .6, 0], atol=1e-6)
    assert examples.labels.tolist() == [3.6, 0, 5, 2]


def cut_token_by_token(lengths, room):
    """The rule as it is told: the longest gives way by one token, the later one of equals."""
    lengths = list(lengths)
    while sum(lengths) > room:
        longest = max(lengths)
        lengths[len(lengths) - 1 - lengths[::-1].index(longest)] -= 1
    return lengths


def test_the_longest_part_gives_way_token_by_token():
    g = np.random.default_rng(4)
    lengths = g.integers(0, 30, (200, 2))
    kept = CUTS["longest"](lengths, 21, None)
    assert kept.tolist() == [cut_token_by_token(row, 21) for row in lengths] and (kept.sum(1) == 21).any()
    lengths = g.integers(0, 30, (200, 4))  # a context and three choices: as the longest choice says
    kept = CUTS["longest"](lengths, 21, 1)
    for row, ours in zip(lengths, kept, strict=True):
        context, choice = cut_token_by_token([row[0], row[1:].max()], 21)
        assert ours.tolist() == [context, *np.minimum(row[1:], choice)]


def test_of_race_the_article_alone_is_cut():
    lengths = np.array([[100, 5, 3, 9], [100, 0, 2, 1], [4, 3, 2, 1], [50, 30, 2, 7], [9, 3, 40, 7]])
    kept = CUTS["article"](lengths, 20, 2)
    assert kept.tolist() == [[6, 5, 3, 9], [18, 0, 2, 1], [4, 3, 2, 1], [0, 13, 2, 7], [0, 3, 17, 7]]


def test_cutting_is_counted_and_needs_what_it_says():
    examples = examples_of("entailment", [["a" * 40, "b" * 3], ["c", "d"], ["e" * 9, "f" * 9]])
    assert needed(examples, 512) == 46 and needed(examples, 20) == 20
    cut, n = fit(examples, 20)
    assert n == 2 and [len(row[0]) for row in rows_of(cut)] == [20, 5, 20]
    assert rows_of(cut)[2] == [[S, *[4] * 9, D, *[5] * 8, C]]
    one = examples_of("classification", [["a" * 40]])
    assert rows_of(fit(one, 7)[0]) == [[[S, *[0] * 5, C]]] and needed(one, 512) == 42


@pytest.mark.parametrize("n_ctx, positions", [(512, None), (20, None), (512, 24), (30, 22)])
def test_story_cloze_is_laid_out_as_released(tmp_path, small_vocabulary, n_ctx, positions):
    """The same ids as the released rule gives, transform_roc, with n_ctx from the data or from given parameters."""
    task, data_dir, encoder = GPT_TASKS["rocstories"], write_data_dir(tmp_path), TextEncoder(*small_vocabulary)
    split = task.read(data_dir, "test", n_valid=9)
    examples = encode_split(task, split, encoder, verbose=False)
    places = positions or needed(examples, n_ctx, task.cut)
    examples, n_cut = fit(examples, places, task.cut, n_ctx)
    fields = encode_dataset([list(split.texts.values())], encoder=encoder)[0]
    X, M = transform_roc(*fields, n_ctx // 2 - 2, places, len(encoder.decoder))
    x, m, y = examples.layout(slice(0, len(examples)))
    t = x.shape[2]
    assert (X[:, :, :t] == x).all() and (M[:, :, :t] == m).all() and not M[:, :, t:].any() and len(x) == 21
    assert y.tolist() == [int(label) - 1 for label in split.labels]
    assert (n_cut > 0) == (n_ctx < 512 or positions is not None)


def test_encoding_keeps_equal_texts_once(tmp_path):
    task = GPT_TASKS["race"]
    write_race(tmp_path)
    read = task.read(str(tmp_path), "train")
    read = replace(read, texts={k: ["".join(c for c in t.lower() if c.isascii() and c.isalpha()) for t in v]
                                for k, v in read.texts.items()})
    examples = encode_split(task, read, Letters(), verbose=False)
    assert examples.parts[0, 0] == examples.parts[1, 0] and len(examples.texts) < 24
    assert examples.labels.tolist() == [1, 3, 0, 2] and examples.n_context == 2
    word = ["".join(map(Letters.decoder.get, examples.texts.ids[a:b])) for a, b in zip(
        examples.texts.offsets, examples.texts.offsets[1:], strict=False)]
    assert [word[i] for i in examples.parts[2]] == ["short", "what", "null", "na", "", ""]
    assert isinstance(examples.texts, Texts) and examples.texts.ids.dtype == np.uint16


@pytest.mark.parametrize("folder", ["diagnostic", "MNLI"])
def test_the_diagnostic_set_belongs_to_mnli(tmp_path, folder):
    write_task(tmp_path, "mnli")
    (tmp_path / folder).mkdir(exist_ok=True)
    (tmp_path / folder / "diagnostic.tsv").write_text("index\tsentence1\tsentence2\n0\ta \"b\tc\n")
    task = GPT_TASKS["mnli"]
    assert list(task.files(str(tmp_path))) == ["train", "valid", "valid_mismatched", "test", "test_mismatched", "ax"]
    read = task.read(str(tmp_path), "ax")
    assert read.texts == {"premise": ['a "b'], "hypothesis": ["c"]} and read.labels is None
    assert set(task.submission) == {"test", "test_mismatched", "ax"}


def test_sizes_are_compared_with_the_published_ones(capsys):
    check_sizes(GPT_TASKS["rte"], GPT_TASKS["rte"].sizes)
    check_sizes(GPT_TASKS["rocstories"], {"train": 3})
    check_sizes(GPT_TASKS["qnli"], GPT_TASKS["qnli"].sizes)
    assert capsys.readouterr().err == ""
    check_sizes(GPT_TASKS["rte"], {"train": 2490, "valid": 276})
    assert "valid 276 (published: 277)" in capsys.readouterr().err
    check_sizes(GPT_TASKS["qnli"], {"train": 108436, "valid": 5732})
    err = capsys.readouterr().err
    assert "version 1" in err and err.count("\n") == 1
