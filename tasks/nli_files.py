"""Readers of SNLI and SciTail in each form that is about, to premises, hypotheses and label names."""

import contextlib
import os

from formats.errors import MissingInput
from tasks.files import open_tsv, read_jsonl, require_text
from tasks.glue_files import NLI, Split, collect, find_file, label_name, table_rows

__all__ = ["SCITAIL", "nli_files", "read_scitail", "read_snli"]

SCITAIL = ("entails", "neutral")
NAMES = ["premise", "hypothesis"]
PART = {"train": "train", "valid": "dev", "test": "test"}
# folders and names in the order of preference; {} is train, dev or test
FORMS = {
    "snli": (("snli_1.0", "SNLI"), ("snli_1.0_{}.jsonl", "snli_1.0_{}.txt", "{}.tsv")),
    "scitail": (("SciTailV1.1",), (
        "tsv_format/scitail_1.0_{}.tsv", "snli_format/scitail_1.0_{}.txt",
        "predictor_format/scitail_1.0_structure_{}.jsonl", "dgem_format/scitail_1.0_structure_{}.tsv")),
}


def nli_files(name: str, data_dir: str) -> dict[str, list[str]]:
    """Return {split: the file that holds it} of 'snli' or 'scitail', for the splits that are there."""
    found = {}
    for split in PART:
        with contextlib.suppress(MissingInput):
            found[split] = [_find(name, data_dir, split)]
    return found


def _find(name, data_dir, split):
    folders, names = FORMS[name]
    names = [os.path.join(*form.format(PART[split]).split("/")) for form in names]
    return find_file(data_dir, folders, (*names, *(os.path.basename(n) for n in names if os.path.dirname(n))), name)


def read_snli(data_dir: str, split: str) -> Split:
    """Read a split of SNLI: snli_1.0_*.jsonl, or snli_1.0_*.txt, or *.tsv of an old download of GLUE.

    Pairs without a gold label ('-') are left out, with a warning that counts them.

    Args:
        data_dir: the folder snli_1.0 (or SNLI), or the folder above it. split: 'train', 'valid' or 'test'.
    Raises:
        MissingInput, BadInput: the file, the row, what was found and expected.
    """
    path = _find("snli", data_dir, split)

    def name_of(number, label):
        return label_name(path, number, label, NLI, False)

    if path.endswith(".jsonl"):
        return collect(path, NAMES, _json_rows(path), name_of)
    table = open_tsv(path)
    # the number of columns of GLUE's form varied; its label is the last one
    label = table.places(["gold_label"])[0] if path.endswith(".txt") else len(table.header) - 1
    return collect(path, NAMES, table_rows(table, table.places(["sentence1", "sentence2"]), label), name_of)


def _json_rows(path):
    """Yield the rows of a file with SNLI's JSON objects as collect takes them."""
    for number, record in read_jsonl(path):
        texts = [require_text(path, number, record, name) for name in ("sentence1", "sentence2")]
        yield number, texts, require_text(path, number, record, "gold_label")


def read_scitail(data_dir: str, split: str) -> Split:
    """Read a split of SciTail in any of its four formats.

    Args:
        data_dir: the folder SciTailV1.1, the folder above it, or that of a format. split: 'train', 'valid' or 'test'.
    Raises:
        MissingInput, BadInput: the file, the row, what was found and expected.
    """
    path = _find("scitail", data_dir, split)

    def name_of(number, label):  # the form with SNLI's keys has SNLI's word
        return SCITAIL[0] if label == "entailment" else label_name(path, number, label, SCITAIL, False)

    if not path.endswith(".tsv"):
        return collect(path, NAMES, _json_rows(path), name_of)
    width = 4 if "structure" in os.path.basename(path) else 3
    return collect(path, NAMES, table_rows(open_tsv(path, header=False, width=width), [0, 1], 2), name_of)
