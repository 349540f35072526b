"""T5's tasks as text: the features of an example to its (input, target) texts, letter by letter as the original's code.

Each function takes features, a dict with the names that the original's readers give them, and returns a list of
outputs {"inputs": text, "targets": text, and what evaluation needs besides}: mostly one, none where the original leaves
an example out, several for ReCoRD. Blanks, line breaks and quotation marks stay as the file has them. A label of -1
means that the file tells none; its target is `<unk>`, as in the original.
"""

import re
import string
from collections.abc import Sequence

from formats.errors import BadInput

__all__ = ["LANGUAGES", "dpr", "glue", "multirc", "record", "squad", "stsb", "summarize", "translate", "wnli_as_wsc",
           "wsc"]

UNKNOWN = "<unk>"  # the target of an example without label
LANGUAGES = {"en": "English", "de": "German", "fr": "French", "ro": "Romanian"}
PRONOUNS = ("he", "she", "they", "it", "her", "his", "their", "them", "him")  # those of WNLI
# two texts of WSC where the original marks the pronoun by hand, X
WSC_BY_HAND = {
    'The boy continued to whip the pony , and eventually the pony threw him over. John laughed out quite loud. "Good '
    'for him," he said. ':
        'The boy continued to whip the pony , and eventually the pony threw him over. John laughed out quite loud. '
        '"Good for X ," he said.',
    "When they had eventually calmed down a bit , and had gotten home, Mr. Farley put the magic pebble in an iron safe "
    ". Some day they might want to use it , but really for now, what more could they wish for?":
        "When they had eventually calmed down a bit , and had gotten home, Mr. Farley put the magic pebble in an iron "
        "safe . Some day they might want to use X , but really for now, what more could they wish for?"}


def glue(features: dict, name: str, labels: Sequence[str], order: Sequence[str] | None = None) -> list[dict]:
    """The rule of most tasks (paper, section 2.4): the task's name, then `key: value` of each text.

    Args:
        features: texts, "label" (a class, -1 where unknown) and "idx".
        name: how the input begins. labels: the texts of the classes.
        order: of the texts; None: by their keys' alphabet.
    """
    order = order or sorted(key for key in features if key not in ("idx", "label"))
    words = [name, *(part for key in order for part in (f"{key}:", features[key]))]
    target = UNKNOWN if features["label"] == -1 else labels[features["label"]]
    return [{"inputs": " ".join(words), "targets": target, "idx": features["idx"]}]


def stsb(features: dict) -> list[dict]:
    """STS-B: the score as a text, rounded to a multiple of 0.2, halves to the even one (2.5 is "2.4", 3.5 "3.6")."""
    score = round(features["label"] * 5) / 5
    text = f"stsb sentence1: {features['sentence1']} sentence2: {features['sentence2']}"
    return [{"inputs": text, "targets": f"{score:.1f}", "idx": features["idx"]}]


def multirc(features: dict) -> list[dict]:
    """MultiRC: one example for each answer, without the markup <br>, <b>, </b>; labels as in BoolQ."""
    (output,) = glue(features, "multirc", ("False", "True"), ("question", "answer", "paragraph"))
    text = output["inputs"].replace("<br>", " ")
    numbers = {f"idx/{key}": features["idx"][key] for key in ("paragraph", "question", "answer")}
    return [{"inputs": re.sub("</?b>", "", text), "targets": output["targets"]} | numbers]


def record(features: dict) -> list[dict]:
    """ReCoRD: one output for each answer. The passage's highlights become sentences."""
    passage = re.sub(r"([.?!\"'])\n@highlight\n", r"\1 ", features["passage"])
    passage = passage.replace("\n@highlight\n", ". ")
    text = f"record query: {features['query']} entities: {', '.join(features['entities'])} passage: {passage}"
    numbers = {f"idx/{key}": features["idx"][key] for key in ("passage", "query")}
    return [{"inputs": text, "targets": answer, "answers": features["answers"]} | numbers
            for answer in features["answers"] or [UNKNOWN]]


def wsc(features: dict, training: bool = False) -> list[dict]:
    """WSC (paper, appendix B): the pronoun stands between asterisks, the target is the noun that it may mean.

    Args:
        features: "text", "span1_text" (the noun), "span2_text" and "span2_index" (the pronoun and its place among the
            words, cut at single blanks), "label" and "idx".
        training: leave out the examples whose noun is not the right one, as the original does.
    Raises:
        BadInput: the pronoun is not at its place.
    """
    if training and features["label"] != 1:
        return []
    text, pronoun, place = (features[key] for key in ("text", "span2_text", "span2_index"))
    words = text.split(" ")
    if text in WSC_BY_HAND:
        text = WSC_BY_HAND[text]
    elif not 0 < place < len(words) or words[place] != pronoun:
        found = repr(words[place]) if 0 < place < len(words) else "none"
        raise BadInput(f"example {features['idx']}: word {place} of the text, counted from 0 and cut at single blanks, "
                       f"is {found}, expected the pronoun {pronoun!r}, and not as the first word")
    else:
        text = " ".join([*words[:place], "X", *words[place + 1:]]) + (" " if place == len(words) - 1 else "")
    # the original replaces each X that stands alone, also one that was there before
    text = text.replace(" X ", f" *{pronoun}* ")
    return [{"inputs": f"wsc: {text}", "targets": features["span1_text"], "label": features["label"],
             "idx": features["idx"]}]


def dpr(features: dict) -> list[dict]:
    """Definite pronoun resolution in WSC's form; the first occurrence of the pronoun is marked.

    It has to stand between a blank and a blank, comma or dot; where it nowhere does, nothing is marked.
    """
    pronoun = features["pronoun"]
    text = re.sub(f" {re.escape(pronoun)}(?=[ .,])", lambda match: f" *{pronoun}*", features["sentence"], count=1)
    return [{"inputs": f"wsc: {text}", "targets": features["candidates"][features["label"]]}]


def wnli_as_wsc(features: dict) -> list[dict]:
    """WNLI in WSC's form, for the test set alone (paper, appendix B): what of the hypothesis stands for the pronoun?

    The pronoun is the one whose neighbours agree best with the hypothesis: words before it with the beginning, words
    after it with the end. What is between is the noun. The original's own rule picks differently in odd cases.

    Raises:
        BadInput: the premise holds none of PRONOUNS, or the hypothesis no word.
    """
    premise, hypothesis = features["sentence1"], features["sentence2"]
    words, other = _words(premise), _words(hypothesis)
    if not other:
        raise BadInput(f"example {features['idx']}: the hypothesis {hypothesis[:60]!r} holds no word")
    best = None
    for place, (word, *_) in enumerate(words):
        if word in PRONOUNS:
            # the noun takes one word of the hypothesis at least
            after = _agreeing([w for w, *_ in words[place + 1:]], [w for w, *_ in other[1:]], at_end=True)
            before = _agreeing([w for w, *_ in words[:place]], [w for w, *_ in other[:len(other) - after - 1]])
            if best is None or before + after > best[0]:
                best = before + after, place, before, after
    if best is None:
        raise BadInput(f"example {features['idx']}: the premise {premise[:60]!r} holds none of the pronouns "
                       f"{', '.join(PRONOUNS)}")
    _, place, before, after = best
    noun = other[before:len(other) - after]
    noun = hypothesis[noun[0][1]:noun[-1][2]]
    start, end = words[place][1:]
    marked = premise[:start] + f"*{premise[start:end]}*" + re.sub("^(?=[^ ])", " ", premise[end:])
    return [{"inputs": f"wsc: {marked}", "targets": re.sub("'s$", "", noun), "premise": premise,
             "hypothesis": hypothesis, "label": features["label"], "idx": features["idx"]}]


def _words(text):
    """[(word in lower case without signs at its ends, start, end)] of a text."""
    return [(match[0].lower(), match.start(), match.end()) for match in re.finditer(r"\w(?:\S*\w)?", text)]


def _agreeing(words, other, at_end=False):
    """How many words agree: the last of `words` with the first of `other`, or at_end the first with the last."""
    if at_end:
        return max(n for n in range(len(other) + 1) if words[:n] == other[len(other) - n:])
    return max(n for n in range(len(other) + 1) if words[max(0, len(words) - n):] == other[:n])


def squad(features: dict, as_released: bool = True) -> list[dict]:
    """SQuAD: blanks around signs in question, context and answers; the target is the first answer.

    "passage" is the context as the file has it.

    Args:
        features: "question", "context", "answers" (a list of texts), "id".
        as_released: the rule until April 2022, which the released checkpoints were trained with: a sign is all but
            ASCII letters, digits and `_`. Else: a sign is one of the 32 of ASCII.
    Raises:
        BadInput: there is no answer.
    """
    if not features["answers"]:
        raise BadInput(f"question {features['id']!r} has no answer, expected one at least (SQuAD 1.1)")
    signs = r"[^a-zA-Z0-9_ \t\n\f\r]" if as_released else f"[{re.escape(string.punctuation)}]"

    def spaced(text):
        return re.sub(r"[ \t\n\f\r]+", " ", re.sub(f"({signs})", r" \1 ", text))

    answers = [spaced(answer) for answer in features["answers"]]
    inputs = f"question: {spaced(features['question'])} context: {spaced(features['context'])}"
    return [{"inputs": re.sub(" +", " ", inputs), "targets": answers[0], "id": features["id"], "answers": answers,
             "passage": features["context"]}]


def summarize(features: dict) -> list[dict]:
    """CNN/Daily Mail: the article, and its highlights, one a line."""
    return [{"inputs": f"summarize: {features['article']}", "targets": features["highlights"]}]


def translate(features: dict, source: str, target: str) -> list[dict]:
    """WMT: a sentence and its translation; source, target: keys of LANGUAGES, and of the features."""
    return [{"inputs": f"translate {LANGUAGES[source]} to {LANGUAGES[target]}: {features[source]}",
             "targets": features[target]}]
