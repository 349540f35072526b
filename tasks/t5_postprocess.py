"""What T5's answers mean: a generated text, or a target, to the value that the metrics compare.

Each function takes (text, example, is_target, labels) and returns what the function of that name in the original does:

    text: the prediction, or with is_target the target.
    example: the fields of the example besides its input and target, see t5_formats.Example; of use to some.
    labels: the texts of the classes.
"""

import re

__all__ = ["label", "multirc", "number", "qa", "record", "text", "wsc"]

# words that say nothing about which noun is meant: they are dropped before nouns are compared
DETERMINERS = frozenset("a an few all each every many much my our her his this the that these those your their".split())


def text(text: str, example: dict | None = None, is_target: bool = False, labels: tuple[str, ...] = ()) -> str:
    """The text as it is: translations, summaries, DPR."""
    return text


def label(text: str, example: dict | None = None, is_target: bool = False, labels: tuple[str, ...] = ()) -> int:
    """The class whose text it is, letter by letter; -1: of none."""
    return labels.index(text) if text in labels else -1


def number(text: str, example: dict | None = None, is_target: bool = False, labels: tuple[str, ...] = ()) -> float:
    """The number that Python's float reads, which may be nan or inf; -1.0: it is none."""
    try:
        return float(text)
    except ValueError:
        return -1.0


def multirc(text: str, example: dict | None = None, is_target: bool = False,
            labels: tuple[str, ...] = ("False", "True")) -> dict:
    """{"value": class}, for a target with the "group": the number of its question."""
    value = {"value": label(text, labels=labels)}
    return value | {"group": example["idx/question"]} if is_target else value


def record(text: str, example: dict | None = None, is_target: bool = False, labels: tuple[str, ...] = ()) -> dict:
    """{"value": the text}; for a target all answers, and the "group": the numbers of passage and query."""
    if is_target:
        return {"value": example["answers"], "group": (example["idx/passage"], example["idx/query"])}
    return {"value": text}


def qa(text: str, example: dict | None = None, is_target: bool = False,
       labels: tuple[str, ...] = ()) -> str | list[str]:
    """The text; for a target all answers."""
    return example["answers"] if is_target else text


def wsc(text: str, example: dict | None = None, is_target: bool = False, labels: tuple[str, ...] = ()) -> int:
    """1: the predicted noun is the candidate, example["targets"]; 0: it is not; -1: nothing is predicted.

    They are the same where the words of one, without determiners and possessives, are all among the other's, unless
    only one of them holds an apostrophe. A target is its label.
    """
    if is_target:
        return example["label"]
    prediction, candidate = _noun_words(text), _noun_words(example["targets"])
    if not prediction:
        return -1
    if ("'" in text) != ("'" in example["targets"]):
        return 0
    return int(prediction <= candidate or candidate <= prediction)


def _noun_words(noun):
    """The words of a noun in lower case, without determiners and possessives."""
    return {word for word in re.split(" +", noun.strip().lower()) if word} - DETERMINERS
