"""The reader of the Story Cloze Test under the names of `datasets.py` in finetune-transformer-lm.

Nothing of ours imports this file: a library of the same name, imported before, takes its place. The readers of the
other tasks are in tasks/, see tasks/gpt_tasks.py.
"""

from tasks.story_cloze import (  # noqa: F401 (_rocstories is a name of the original)
    COLUMNS,
    ENDINGS,
    SENTENCES,
    SPLIT_SEED,
    TEST_FILE,
    VALID_FILE,
    _rocstories,
    rocstories,
)

__all__ = ["COLUMNS", "ENDINGS", "SENTENCES", "SPLIT_SEED", "TEST_FILE", "VALID_FILE", "rocstories"]
