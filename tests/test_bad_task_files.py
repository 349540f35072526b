"""The same faults in the files of every task: one line with the file and the row, or the documented behaviour."""

import re

import pytest
from task_files import write_task

from formats.errors import BadInput
from tasks.encoding import encode_split
from tasks.fitting import fit, needed
from tasks.gpt_tasks import GPT_TASKS
from text_utils import TextEncoder

# name -> (what is there, what takes its place) for a label that the task does not have
UNKNOWN = {"rocstories": (rb",[12]\r\n", b",3\r\n"), "race": (rb'"answers": \["."', b'"answers": ["E"'),
           "snli": (rb'"neutral"', b'"maybe"'), "scitail": (rb"\tneutral\n", b"\tmaybe\n"),
           "mrpc": (rb"\n1\t", b"\n7\t"), "stsb": (rb"\t0\.900\n", b"\t9.900\n"), "cola": (rb"gj04\t1\t", b"gj04\t7\t")
           } | dict.fromkeys(("mnli", "qnli", "rte"), (rb"\tentailment\n", b"\tmaybe\n")
                             ) | dict.fromkeys(("qqp", "wnli", "sst2"), (rb"\t1\n", b"\t7\n"))
# name -> the column that goes, and what else it is called afterwards
COLUMN = {"rocstories": b"InputSentence3", "race": b'"article"', "snli": b'"sentence2"', "mnli": b"sentence2\t",
          "qnli": b"question\t", "rte": b"sentence1", "wnli": b"label", "mrpc": b"#2 String", "qqp": b"question2",
          "stsb": b"\tscore", "sst2": b"label"}


@pytest.fixture
def train_file(tmp_path):
    """A function of a task's name that returns the path of its (first) training file, and what reads it."""
    def make(name):
        write_task(tmp_path / name, name)
        path = GPT_TASKS[name].files(str(tmp_path / name))["train"][0]
        more = {"n_valid": 9} if name == "rocstories" else {}
        return path, lambda: GPT_TASKS[name].read(str(tmp_path / name), "train", **more)

    return make


def change(path, old, new, count=1):
    """Replace what a pattern finds in a file."""
    with open(path, "rb") as f:
        before = f.read()
    after = re.sub(old, lambda _: new, before, count=count)
    assert after != before
    with open(path, "wb") as f:
        f.write(after)


def refused(read, path, message):
    with pytest.raises(BadInput, match=message) as caught:
        read()
    assert path in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", GPT_TASKS)
def test_an_empty_file(train_file, name):
    path, read = train_file(name)
    open(path, "wb").close()
    refused(read, path, "is empty")


@pytest.mark.parametrize("name", GPT_TASKS)
def test_a_latin_1_byte(train_file, name):
    path, read = train_file(name)
    change(path, rb"\bcat\b", b"c\xe9t")
    refused(read, path, r"row \d+ is not UTF-8 \(it holds the byte 0xe9\)")


@pytest.mark.parametrize("name", GPT_TASKS)
def test_an_unknown_label(train_file, name):
    path, read = train_file(name)
    change(path, *UNKNOWN[name])
    refused(read, path, r"row \d+.* '?[3E79m][^,]*, expected ")


@pytest.mark.parametrize("name", COLUMN)
def test_a_missing_column(train_file, name):
    path, read = train_file(name)
    change(path, re.escape(COLUMN[name]), COLUMN[name].replace(b"e", b"i").replace(b"#2 S", b"#3 S"))
    if name == "mnli":  # its label is the last column whatever that is called; another column is missed
        refused(read, path, "lacks the column sentence2")
    else:
        refused(read, path, "lacks the (column|field)")


@pytest.mark.parametrize("name", [name for name in GPT_TASKS if name not in ("race", "snli")])
def test_a_row_of_the_wrong_width(train_file, name, capsys):
    path, read = train_file(name)
    change(path, rb"(,|\t)(?=[^,\t]*\Z)", b" ")
    if name == "qqp":
        assert len(read()) == 23 and "1 row of another width" in capsys.readouterr().err
    else:
        refused(read, path, r"row \d+ (has \d+ fields?, expected \d+|is not CSV)")


@pytest.mark.parametrize("name", GPT_TASKS)
@pytest.mark.parametrize("word", [b"null", b"n/a", b"NaN", b'"open', b"a " * 50_000])
def test_words_quotes_and_long_texts_are_text(train_file, small_vocabulary, name, word, capsys):
    path, read = train_file(name)
    n = len(read())
    in_file = word if name not in ("race", "snli", "rocstories") else word.replace(b'"', rb"\"" if name != "rocstories"
                                                                                  else b"'")
    change(path, rb"\bcat\b", in_file, count=0)
    split, task = read(), GPT_TASKS[name]
    assert len(split) == n and any(in_file.replace(b'\\"', b'"').decode() in text for texts in split.texts.values()
                                   for text in texts)
    if len(word) > 1000:
        first = encode_split(task, split, TextEncoder(*small_vocabulary), verbose=False)
        cut, n_cut = fit(first, 512, task.cut)
        assert n_cut and max(len(s) for row in range(len(cut)) for s in cut.sequences(row)) == needed(
            first, 512, task.cut) <= 512


@pytest.mark.parametrize("split", ["train", "valid"])
@pytest.mark.parametrize("name", ["rte", "mnli", "mrpc", "stsb", "cola", "qqp"])
def test_labels_that_one_file_lacks(train_file, tmp_path, name, split):
    train_file(name)
    task = GPT_TASKS[name]
    path = task.files(str(tmp_path / name))[split][0]
    label = {"mrpc": rb"(?m)^[01](?=\t)", "cola": rb"(?<=gj04\t)[01]"}.get(name, rb"\t[^\t\n]*(?=\n(?!.*\bindex\b))")
    change(path, label, b"" if name in ("mrpc", "cola") else b"\t", count=0)
    if name not in ("mrpc", "cola"):  # the header was changed as well
        refused(lambda: task.read(str(tmp_path / name), split), path, "lacks the column|holds no examples with a label")
    else:
        refused(lambda: task.read(str(tmp_path / name), split), path, "holds no examples with a label")
