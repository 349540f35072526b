"""Reader of SQuAD 1.1: train-v1.1.json and dev-v1.1.json."""

import json
import re

from formats.errors import BadInput, MissingInput
from formats.files import is_lfs_pointer, read_text
from tasks.files import shown

__all__ = ["read_squad"]

LAYOUT = "SQuAD 1.1's data > paragraphs > context, qas > id, question, answers > text"


def read_squad(path: str) -> list[dict]:
    """Read the questions of a file in its order.

    Returns:
        dicts of "question", "context", "answers" (texts) and "id".
    Raises:
        MissingInput, BadInput: no such file, not JSON, or of another layout; where, what was found and expected.
    """
    try:
        if is_lfs_pointer(path):
            raise BadInput(f"{path}: holds no data but Git LFS's note on where they are; run `git lfs pull`")
        data = json.loads(read_text(path, "give the file as it was published").removeprefix("\ufeff"))
    except OSError:
        raise MissingInput(f"{path}: not found; expected SQuAD 1.1's file of this name") from None
    except (ValueError, RecursionError) as error:
        if isinstance(error, BadInput):
            raise
        raise BadInput(f"{path}: is not JSON ({str(error)[:80]}); expected {LAYOUT}") from None

    def of(value, name, kind, where):
        found = value.get(name) if isinstance(value, dict) else None
        if not isinstance(found, kind):
            what = {list: "a list", str: "a text"}[kind]
            raise BadInput(f"{path}: {where} has {name} {shown(found)}, expected {what} ({LAYOUT})")
        if kind is str and re.search("[\0\ud800-\udfff]", found):
            raise BadInput(f"{path}: {where} has a {name} with a NUL or half a character (a lone surrogate); "
                           "correct it")
        return found

    questions = []
    for i, article in enumerate(of(data, "data", list, "the file"), 1):
        for j, paragraph in enumerate(of(article, "paragraphs", list, f"article {i}"), 1):
            where = f"article {i}, paragraph {j}"
            context = of(paragraph, "context", str, where)
            for question in of(paragraph, "qas", list, where):
                name = of(question, "id", str, where)
                answers = [of(answer, "text", str, f"question {shown(name)}")
                           for answer in of(question, "answers", list, f"question {shown(name)}")]
                if not answers:
                    raise BadInput(f"{path}: question {shown(name)} has no answer; expected SQuAD 1.1, where each has "
                                   "one")
                questions.append({"question": of(question, "question", str, where), "context": context,
                                  "answers": answers, "id": name})
    if not questions:
        raise BadInput(f"{path}: holds no questions; expected {LAYOUT}")
    return questions
