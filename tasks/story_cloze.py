"""The reader of the Story Cloze Test: two CSV files to stories, two endings each, and which of them is right.

The names rocstories and _rocstories are those of `datasets.py` in finetune-transformer-lm, and ours has them too.
"""

import os

import numpy as np
from sklearn.model_selection import train_test_split

from formats.errors import BadInput, MissingInput, warn_once
from tasks.files import open_csv

__all__ = ["COLUMNS", "ENDINGS", "SENTENCES", "SPLIT_SEED", "TEST_FILE", "VALID_FILE", "rocstories"]

SPLIT_SEED = 3535999445  # the authors' split of the validation file into train and valid
VALID_FILE = "cloze_test_val__spring2016 - cloze_test_ALL_val.csv"
TEST_FILE = "cloze_test_test__spring2016 - cloze_test_ALL_test.csv"
SENTENCES = ["InputSentence1", "InputSentence2", "InputSentence3", "InputSentence4"]
ENDINGS = ["RandomFifthSentenceQuiz1", "RandomFifthSentenceQuiz2"]
COLUMNS = ["InputStoryid", *SENTENCES, *ENDINGS, "AnswerRightEnding"]


def _rocstories(path: str) -> tuple[list[str], list[str], list[str], np.ndarray]:
    """Read one Story Cloze file.

    The file is CSV in UTF-8 (a byte-order mark and CRLF change nothing), with a header naming COLUMNS in any order.
    Blank lines are skipped; so are rows of nothing but commas at the end, as spreadsheets write them, with one notice.
    Duplicate rows are kept, as they count in the original; a sentence or ending may be
    empty, or hold only signs the vocabulary lacks (an emoji), each of which becomes `<unk>`. A text of any length up
    to csv's limit of 131,072 characters is read; the training script cuts it. Another encoding, such as Latin-1, is
    refused with the row that shows it.

    Returns:
        st: list of stories, the four sentences joined by one space.
        ct1, ct2: lists of the two endings.
        y: int32 array of labels, 0 where the first ending is right, 1 where the second is.
    Raises:
        MissingInput, BadInput: naming the file, the row (the header is row 1), what was found and expected.
    """
    if not os.path.isfile(path):
        raise MissingInput(
            f"{path}: not found; ROCStories is free but must be requested at https://cs.rochester.edu/nlp/rocstories/ "
            f"; put '{VALID_FILE}' and '{TEST_FILE}' into --data_dir, or run `python demo.py`, which needs no data")
    table = open_csv(path)
    places = dict(zip(COLUMNS, table.places(COLUMNS), strict=True))
    st, ct1, ct2, y = [], [], [], []
    for number, row in table.rows:
        answer = row[places["AnswerRightEnding"]]
        if answer not in ("1", "2"):
            raise BadInput(f"{path}: row {number} has AnswerRightEnding {answer[:40]!r}, expected 1 or 2")
        st.append(" ".join(row[places[name]] for name in SENTENCES))
        ct1.append(row[places[ENDINGS[0]]])
        ct2.append(row[places[ENDINGS[1]]])
        y.append(int(answer) - 1)
    if not st:
        raise BadInput(f"{path}: has a header but no stories")
    return st, ct1, ct2, np.asarray(y, dtype=np.int32)


def rocstories(data_dir: str, n_train: int = 1497, n_valid: int = 374) -> tuple[tuple, tuple, tuple]:
    """Read the Story Cloze Test: the validation file split in train and valid, and the test file.

    Args:
        data_dir: folder with VALID_FILE and TEST_FILE.
        n_train: keep at most this many training stories.
        n_valid: number of stories split off for validation.
    Returns:
        (train, valid, test), each (stories, first endings, second endings, labels).
    Raises:
        MissingInput, BadInput: see _rocstories; or n_valid leaves nothing to train on.
    """
    st, ct1, ct2, y = _rocstories(os.path.join(data_dir, VALID_FILE))
    test = _rocstories(os.path.join(data_dir, TEST_FILE))
    if not 0 < n_valid < len(st):
        raise BadInput(f"n_valid is {n_valid}, allowed is 1 to {len(st) - 1}: {VALID_FILE} has {len(st)} stories "
                       "to share between training and validation")
    if 2 * n_valid > len(st):
        warn_once(f"{VALID_FILE} has {len(st)} stories: n_valid {n_valid} leaves {len(st) - n_valid} to train on")
    train, valid = train_test_split(np.arange(len(st)), test_size=n_valid, random_state=SPLIT_SEED)

    def pick(rows):
        return [st[i] for i in rows], [ct1[i] for i in rows], [ct2[i] for i in rows], y[rows]

    return pick(train[:n_train]), pick(valid), test
