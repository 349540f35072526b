"""Readers of SuperGLUE's files, one JSON object a line: files to features with the names that the files use.

Every reader takes (path, labelled) and returns a list of dicts: texts, "label" (the class; -1 where the file tells
none) and "idx" (the file's number, or numbers). labelled: a label is required. Each raises

    MissingInput: there is no such file.
    BadInput: not JSON lines, a field missing or of another kind, an unknown label; file, row, what was found, expected.
"""

from collections.abc import Iterator

from formats.errors import BadInput
from tasks.files import read_jsonl, require_text, shown

__all__ = ["NLI", "TRUTH", "read_multirc", "read_record", "read_sentences", "read_wsc"]

TRUTH = {False: 0, True: 1}  # in the files true and false, or 0 and 1
NLI = {"entailment": 0, "not_entailment": 1}
# nouns of WSC that stand nowhere in their text, other words being between: no correction helps
SPLIT_NOUNS = ("Kamenev and Zinoviev", "Kamenev, Zinoviev, and Stalin")


def _field(path, number, record, name, kind, where=""):
    """A field of a JSON object, required to be of a kind, a type."""
    if not isinstance(record, dict) or name not in record:
        found = ", ".join(record) if isinstance(record, dict) else record
        raise BadInput(f"{path}: row {number} lacks the field '{where}{name}'; found {shown(found, 150)}")
    value = record[name]
    if not isinstance(value, kind) or isinstance(value, bool):
        expected = {dict: "an object", list: "a list", int: "a whole number"}[kind]
        raise BadInput(f"{path}: row {number} has {where}{name} {shown(value)}, expected {expected}")
    return value


def _text(path, number, record, name, where):
    """A text in a field of an object inside of the row's."""
    if not isinstance(record, dict):
        raise BadInput(f"{path}: row {number} has {shown(record)} in {where}, expected an object with {name!r}")
    return require_text(path, number, record, name)


def _label(path, number, record, labels, labelled):
    """The class of a row; -1: it has no label, and needs none."""
    if not labelled and record.get("label") in (None, "", -1):
        return -1
    if "label" not in record:
        raise BadInput(f"{path}: row {number} lacks the field 'label'; found {shown(', '.join(record), 150)}")
    label = record["label"]
    if isinstance(label, bool | int | str) and label in labels:
        return labels[label]
    expected = " or ".join(str(name).lower() if isinstance(name, bool) else str(name) for name in labels)
    raise BadInput(f"{path}: row {number} has label {shown(label)}, expected {expected}")


def read_sentences(path: str, texts: tuple[str, ...], labels: dict, labelled: bool = True) -> list[dict]:
    """BoolQ, CB, COPA, RTE, WiC, AX-b, AX-g: rows of some texts and a label.

    Args:
        texts: names of the fields that are kept.
        labels: value in the file -> class.
    """
    return [{name: require_text(path, number, record, name) for name in texts}
            | {"label": _label(path, number, record, labels, labelled), "idx": record.get("idx", i)}
            for i, (number, record) in enumerate(read_jsonl(path))]


def read_multirc(path: str, labelled: bool = True) -> list[dict]:
    """MultiRC: features of each answer of each question: "paragraph", "question", "answer"."""
    return [{"paragraph": paragraph, "question": question, "answer": _text(path, number, answer, "text", "answers"),
             "label": _label(path, number, answer, TRUTH, labelled),
             "idx": numbers | {"answer": _field(path, number, answer, "idx", int, "answers.")}}
            for number, paragraph, question, numbers, answers in _questions(path) for answer in answers]


def _questions(path) -> Iterator[tuple]:
    """Yield (row, paragraph, question, their numbers, answers) of each question of MultiRC."""
    for number, record in read_jsonl(path):
        passage = _field(path, number, record, "passage", dict)
        paragraph = _text(path, number, passage, "text", "passage")
        for question in _field(path, number, passage, "questions", list, "passage."):
            text = _text(path, number, question, "question", "questions")
            numbers = {"paragraph": _field(path, number, record, "idx", int),
                       "question": _field(path, number, question, "idx", int, "questions.")}
            yield number, paragraph, text, numbers, _field(path, number, question, "answers", list, "questions.")


def read_record(path: str, labelled: bool = True) -> list[dict]:
    """ReCoRD: features of each query: "passage", "query", "entities" and "answers", both sorted and each once."""
    found = []
    for number, record in read_jsonl(path):
        passage = _field(path, number, record, "passage", dict)
        text = _text(path, number, passage, "text", "passage")
        entities = set()
        for span in _field(path, number, passage, "entities", list, "passage."):
            start, end = (_field(path, number, span, name, int, "entities.") for name in ("start", "end"))
            if not 0 <= start <= end < len(text):
                raise BadInput(f"{path}: row {number} has an entity from {start} to {end}, expected places within the "
                               f"passage of {len(text)} characters")
            entities.add(text[start:end + 1])
        for query in _field(path, number, record, "qas", list):
            words = _text(path, number, query, "query", "qas")
            answers = query.get("answers", [])
            if labelled or answers:
                answers = {_text(path, number, answer, "text", "answers")
                           for answer in _field(path, number, query, "answers", list, "qas.")}
                if not answers:
                    raise BadInput(f"{path}: row {number} has a query without answers: {shown(words)}")
            found.append({"passage": text, "query": words, "entities": sorted(entities), "answers": sorted(answers),
                          "idx": {"passage": _field(path, number, record, "idx", int),
                                  "query": _field(path, number, query, "idx", int, "qas.")}})
    return found


def read_wsc(path: str, labelled: bool = True) -> list[dict]:
    """WSC: "text", "span1_text" (a noun), "span2_text" (a pronoun), and their places among the words.

    A span that is not in the text is corrected as the original's reader does: the case of its first letter, dots at
    its end, line breaks.
    """
    found = []
    for i, (number, record) in enumerate(read_jsonl(path)):
        text = require_text(path, number, record, "text")
        target = _field(path, number, record, "target", dict)
        features = {"text": text, "label": _label(path, number, record, TRUTH, labelled), "idx": record.get("idx", i)}
        for span in ("span1", "span2"):
            words = _text(path, number, target, f"{span}_text", "target")
            place = _field(path, number, target, f"{span}_index", int, "target.")
            if not 0 <= place < len(text.split()) or not words:
                raise BadInput(f"{path}: row {number} has {span} {shown(words)} at word {place}, expected words at one "
                               f"of the text's {len(text.split())}")
            features |= {f"{span}_text": _corrected(words, text, place), f"{span}_index": place}
        found.append(features)
    return found


def _corrected(words, text, place):
    """The words of a span as the text has them."""
    if words in text or words in SPLIT_NOUNS:
        return words
    lower = text.split()[place][0].islower()
    words = (words[0].lower() if lower else words[0].upper()) + words[1:]
    return words.rstrip(".").replace("\n", " ")
