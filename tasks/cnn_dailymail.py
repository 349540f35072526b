"""Reader of CNN/Daily Mail: the story files with their lists, or the three csv files."""

import hashlib
import os

from formats.errors import BadInput, MissingInput
from formats.files import read_text
from tasks.files import lines_of, open_csv

__all__ = ["read_cnn_dailymail", "story_features"]

ENDS = (".", "!", "?", "'", "`", '"', "\u2019", "\u201d", ")")  # a line that ends otherwise gets a dot
LISTS = {"train": "all_train.txt", "valid": "all_val.txt", "test": "all_test.txt"}
TABLES = {"train": "train.csv", "valid": "validation.csv", "test": "test.csv"}


def story_features(text: str) -> dict | None:
    """The "article" and the "highlights" of a story file; None where it lacks one of them.

    Lines lose the blanks at their ends, and get a dot unless they end in a sign; those of the article are joined by
    blanks, those of the highlights by line breaks. What follows the first line that begins with @highlight belongs to
    the highlights.
    """
    article, highlights = [], []
    place = article
    for line in map(str.strip, text.split("\n")):
        if line.startswith("@highlight"):
            place = highlights
        elif line:
            place.append(line if "@highlight" in line or line.endswith(ENDS) else line + ".")
    if not article or not highlights:
        return None
    return {"article": " ".join(article), "highlights": "\n".join(highlights)}


def read_cnn_dailymail(folder: str, split: str) -> list[dict]:
    """Read a split, "train", "valid" or "test".

    Args:
        folder: it holds train.csv, validation.csv, test.csv with the columns article and highlights; or the lists of
            addresses all_train.txt, all_val.txt, all_test.txt, and cnn/stories/ and dailymail/stories/ (a story's name
            is the SHA-1 of its address).
    Returns:
        dicts of "article" and "highlights". Stories that lack one of them are left out, as in the original.
    Raises:
        MissingInput, BadInput: what is missing; the file, the row.
    """
    table = os.path.join(folder, TABLES[split])
    if os.path.isfile(table):
        file = open_csv(table)
        article, highlights = file.places(["article", "highlights"])
        return [{"article": fields[article], "highlights": fields[highlights]} for _, fields in file.rows]
    names = os.path.join(folder, LISTS[split])
    if not os.path.isfile(names):
        raise MissingInput(f"{table}: not found, nor {names}; expected the csv files with the columns article and "
                           "highlights, or the lists of addresses beside cnn/stories/ and dailymail/stories/")
    found = []
    for number, address in lines_of(names):
        name = hashlib.sha1(address.strip().encode()).hexdigest() + ".story"
        paths = [os.path.join(folder, site, "stories", name) for site in ("cnn", "dailymail")]
        path = next(filter(os.path.isfile, paths), None)
        if path is None:
            raise MissingInput(f"{names}: row {number}: the story {name} is in neither cnn/stories/ nor "
                               f"dailymail/stories/ of {folder}")
        found.append(story_features(read_text(path, "a story is UTF-8")))
    found = [features for features in found if features is not None]
    if not found:
        raise BadInput(f"{names}: none of its stories has an article and highlights")
    return found
