"""Reader of the definite pronoun resolution data (Rahman and Ng 2012): train.c.txt and test.c.txt."""

from formats.errors import BadInput
from tasks.files import lines_of, shown

__all__ = ["read_dpr"]

LINES = ("a sentence", "its pronoun", "two candidates separated by a comma", "the right candidate")


def read_dpr(path: str) -> list[dict]:
    """Read blocks of LINES, with a blank line between them.

    Returns:
        dicts of "sentence", "pronoun", "candidates" (two texts, without blanks at the ends) and "label" (0 or 1).
    Raises:
        MissingInput, BadInput: the file, the row, what was found and expected.
    """
    found, block = [], []
    lines = list(lines_of(path))
    for number, line in [*lines, (lines[-1][0] + 1, "")]:
        if line.strip():
            block.append(line.strip())
            continue
        if block:
            found.append(_features(path, number - len(block), block))
        block = []
    return found


def _features(path, number, block):
    """The features of a block whose first line has this number."""
    if len(block) != len(LINES):
        raise BadInput(f"{path}: the block at row {number} has {len(block)} lines, expected {len(LINES)}: "
                       f"{', '.join(LINES)}; correct or remove it")
    sentence, pronoun, names, right = block
    candidates = [name.strip() for name in names.split(",")]
    if len(candidates) != 2:
        raise BadInput(f"{path}: row {number + 2} is {shown(names)}, expected {LINES[2]}")
    if right not in candidates:
        raise BadInput(f"{path}: row {number + 3} is {shown(right)}, expected one of {shown(names)}")
    return {"sentence": sentence, "pronoun": pronoun, "candidates": candidates, "label": candidates.index(right)}
