"""The same faults in the files of every task: one line with the file and the row, or the documented behaviour."""

import re

import pytest
from task_files import OTHER_FORMS, write_form

from formats.errors import BadInput
from tasks.encoding import encode_split
from tasks.fitting import fit, needed
from tasks.gpt_tasks import GPT_TASKS
from text_utils import TextEncoder

# form -> (what is there, what takes its place) for a label that the task does not have
_JSON, _WORD = (rb'"gold_label": "neutral"', b'"gold_label": "maybe"'), (rb"\tneutral\b", b"\tmaybe")
UNKNOWN = {"rocstories": (rb",[12]\r\n", b",3\r\n"), "race": (rb'"answers": \["."', b'"answers": ["E"'),
           "snli": _JSON, "snli.txt": (rb"\nneutral\t", b"\nmaybe\t"), "snli.tsv": (rb"\tneutral\n", b"\tmaybe\n"),
           "scitail": _WORD, "scitail.snli": _JSON, "scitail.predictor": _JSON, "scitail.dgem": _WORD,
           "mrpc": (rb"\n1\t", b"\n7\t"), "mrpc.txt": (rb"\n1\t", b"\n7\t"), "stsb": (rb"\t0\.900\n", b"\t9.900\n"),
           "cola": (rb"gj04\t1\t", b"gj04\t7\t")
           } | dict.fromkeys(("mnli", "qnli", "rte"), (rb"\tentailment\n", b"\tmaybe\n")
                             ) | dict.fromkeys(("qqp", "wnli", "sst2"), (rb"\t1\n", b"\t7\n"))
# form -> a column of texts
COLUMN = {"rocstories": b"InputSentence3", "race": b'"article"', "snli": b'"sentence2"', "scitail.snli": b'"sentence2"',
          "scitail.predictor": b'"sentence1"', "qnli": b"question", "mrpc": b"#2 String", "mrpc.txt": b"#1 String",
          "qqp": b"question2", "sst2": b"sentence"} | dict.fromkeys(
              ("snli.txt", "snli.tsv", "mnli", "rte", "wnli", "stsb"), b"sentence2")
NO_HEADER = ("scitail", "scitail.dgem", "cola")
LABEL = {"mrpc": b"Quality", "mrpc.txt": b"Quality", "qqp": b"is_duplicate", "stsb": b"score", "snli": b'"gold_label"',
         "scitail.snli": b'"gold_label"', "scitail.predictor": b'"gold_label"', "rocstories": b"AnswerRightEnding",
         "snli.txt": b"gold_label"} | dict.fromkeys(("qnli", "rte", "wnli", "sst2"), b"label")
IN_JSON = ("race", "snli", "scitail.snli", "scitail.predictor")
FORMS = (*GPT_TASKS, *OTHER_FORMS)
FILES = [(form, split) for form in FORMS for split in ("train", "valid", "test")
         if (form, split) not in (("rocstories", "valid"), ("mrpc.txt", "valid"))]  # in one file with train
FILES += [("mnli", "valid_mismatched"), ("mnli", "test_mismatched")]
WITHOUT_LABELS = {(form, split) for form, split in FILES if split.startswith("test")
                  and form not in ("rocstories", "race", "snli", "scitail", *OTHER_FORMS)}


@pytest.fixture
def file_of(tmp_path):
    """A function of a form and a split that returns the (first) path of its file, and what reads it."""
    def make(form, split="train"):
        name = write_form(tmp_path / form, form)
        path = GPT_TASKS[name].files(str(tmp_path / form))[split][0]
        more = {"n_valid": 9} if name == "rocstories" else {}
        return path, lambda: GPT_TASKS[name].read(str(tmp_path / form), split, **more)

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


@pytest.mark.parametrize("form, split", FILES)
def test_an_empty_file(file_of, form, split):
    path, read = file_of(form, split)
    open(path, "wb").close()
    refused(read, path, "is empty")


@pytest.mark.parametrize("form, split", FILES)
def test_a_latin_1_byte(file_of, form, split):
    path, read = file_of(form, split)
    change(path, rb"\bcat\b", b"c\xe9t")
    refused(read, path, r"row \d+ is not UTF-8 \(it holds the byte 0xe9\)")


@pytest.mark.parametrize("form, split", [file for file in FILES if file not in WITHOUT_LABELS])
def test_an_unknown_label(file_of, form, split):
    path, read = file_of(form, split)
    change(path, *UNKNOWN[form])
    refused(read, path, r"row \d+.* '?[3E79m][^,]*, expected ")


@pytest.mark.parametrize("form, split", [file for file in FILES if file[0] not in NO_HEADER])
def test_a_missing_column(file_of, form, split):
    path, read = file_of(form, split)
    change(path, rb"(?<![\w#])" + re.escape(COLUMN[form]) + rb"(?!\w)", COLUMN[form].replace(b"e", b"i").replace(
        b"String", b"Strong"))
    refused(read, path, "lacks the (column|field)")


@pytest.mark.parametrize("form, split", [file for file in FILES if file not in WITHOUT_LABELS and file[0] in LABEL])
def test_a_missing_column_of_labels(file_of, form, split):
    path, read = file_of(form, split)
    change(path, rb"(?<!\w)" + LABEL[form] + rb"(?!\w)", LABEL[form].replace(b"l", b"L").replace(b"s", b"S"))
    if (form, split) == ("mrpc.txt", "test"):  # GLUE's own test file has no labels either
        assert read().labels is None
    else:
        refused(read, path, "lacks the (column|field)")


@pytest.mark.parametrize("form, split", [file for file in FILES if file[0] not in IN_JSON])
def test_a_row_of_the_wrong_width(file_of, form, split, capsys):
    path, read = file_of(form, split)
    n = len(read())
    change(path, rb"(,|\t)(?=[^,\t]*\Z)", b" ")
    if form == "qqp":
        assert len(read()) == n - 1 and "1 row of another width" in capsys.readouterr().err
    else:
        refused(read, path, r"row \d+ (has \d+ fields?, expected \d+|is not CSV)")


@pytest.mark.parametrize("form, split", FILES)
def test_words_quotes_and_long_texts_are_text(file_of, small_vocabulary, form, split, capsys):
    path, read = file_of(form, split)
    n, words = len(read()), [b"null", b"n/a", b"NaN", b'"open', b"a " * 50_000]
    at = iter(range(10 ** 6))
    with open(path, "rb") as f:
        before = f.read()
    quote = {"rocstories": b"'"} | dict.fromkeys(IN_JSON, rb'\"')  # a field of CSV is quoted as a whole
    words_of_file = [word.replace(b'"', quote.get(form, b'"')) for word in words]
    after = re.sub(rb"\b(cat|mat|low|new|was)\b", lambda _: words_of_file[next(at) % len(words)], before)
    with open(path, "wb") as f:
        f.write(after)
    read_again, task = read(), GPT_TASKS[form.split(".")[0]]
    assert len(read_again) == n
    texts = " ".join(text for texts in read_again.texts.values() for text in texts)
    for word in words:
        word = word.replace(b'"', b"'") if form == "rocstories" else word
        assert word.decode().strip() in texts, word
    if split == "train":
        first = encode_split(task, read_again, TextEncoder(*small_vocabulary), verbose=False)
        cut, n_cut = fit(first, 512, task.cut)
        assert n_cut and max(len(s) for row in range(len(cut)) for s in cut.sequences(row)) == needed(
            first, 512, task.cut) <= 512


@pytest.mark.parametrize("form, split", [file for file in FILES if file not in WITHOUT_LABELS
                                         and file[0] not in ("rocstories", "race")])
def test_a_file_whose_labels_are_all_blank(file_of, form, split):
    path, read = file_of(form, split)
    words = rb"(entailment|entails|neutral|contradiction|not_entailment)"
    blank = {"cola": rb"(?<=gj04\t)[01]", "snli.txt": rb"(?m)^" + words, "mrpc": rb"(?m)^[01](?=\t)",
             "mrpc.txt": rb"(?m)^[01](?=\t)", "scitail.dgem": rb"(?<=\t)" + words}.get(
                 form, rb'(?<="gold_label": ")' + words if form in IN_JSON else rb"(?<=\t)(" + words[1:-1]
                 + rb"|\d+(\.\d+)?)(?=\n)")
    change(path, blank, b"-", count=0)
    refused(read, path, "holds no examples with a label")


def test_the_ids_of_mrpc_s_dev_part(file_of, tmp_path):
    _, read = file_of("mrpc.txt", "valid")
    assert len(read()) == 10
    ids = tmp_path / "mrpc.txt" / "MRPC" / "dev_ids.tsv"
    for content, message in ((b"", "is empty"), (b"1\t2\t3\n", "row 1 has 3 fields, expected 2"),
                             (b"1\t\xe9\n", "row 1 is not UTF-8")):
        ids.write_bytes(content)
        refused(read, str(ids), message)


def test_the_diagnostic_set(tmp_path):
    write_form(tmp_path / "mnli", "mnli")
    path = tmp_path / "mnli" / "diagnostic" / "diagnostic.tsv"
    path.parent.mkdir()
    for content, message in ((b"", "is empty"), (b"index\tsentence1\tsentence3\n", "lacks the column sentence2"),
                             (b"index\tsentence1\tsentence2\n0\ta\n", "row 2 has 2 fields, expected 3"),
                             (b"index\tsentence1\tsentence2\n0\ta\t\xe9\n", "row 2 is not UTF-8")):
        path.write_bytes(content)
        refused(lambda: GPT_TASKS["mnli"].read(str(tmp_path / "mnli"), "ax"), str(path), message)
