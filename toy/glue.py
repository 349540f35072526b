"""Toy sets for classification, entailment and similarity in the layout of GLUE's files, from the toy stories' grammar.

    python -m toy.glue --data_dir toy/glue_data

writes the folders SST-2, RTE, MRPC and STS-B, each with train.tsv, dev.tsv and test.tsv (without labels, as GLUE's):

    SST-2   sentence                    does the story go well? (1: it does)
    RTE     sentence1, sentence2        does it follow from the short story (1) that its person wanted this (2)?
    MRPC    #1 String, #2 String        are the two stories (a wish and a turn) of one topic?
    STS-B   sentence1, sentence2        3.25 for the same topic and 1.75 for the same outcome

The best possible value of each metric is 100: no phrase of the grammar belongs to two topics or to two outcomes. Chance
is 50 (STS-B: 0). Labels are balanced, and one text of a pair alone tells nothing: stories and wishes are drawn alike
for every label. What does not follow, in RTE, is another wish of the same topic in a quarter of the pairs: who tells
topics apart, and no more, is right in 87.5. No story stands in two of the files of a set.
"""

import itertools
import os
import re
import sys

from formats.errors import BadInput
from formats.files import make_path, write_atomically
from toy.stories import WISHES, Grammar, part_of, read_topics, sentence
from utils import OneLineParser, require_ranges, run_script

SAME_SCORES = 3.25, 1.75  # of STS-B, for topic and outcome
SAME_TOPIC = 0.25          # share of RTE's pairs without entailment that have one topic
HEADERS = {  # of train and dev; of test
    "SST-2": ("sentence label", "index sentence"),
    "RTE": ("index sentence1 sentence2 label", "index sentence1 sentence2"),
    "MRPC": ("Quality/#1 ID/#2 ID/#1 String/#2 String", "index/#1 ID/#2 ID/#1 String/#2 String"),
    "STS-B": ("index genre filename year old_index source1 source2 sentence1 sentence2 score",
              "index genre filename year old_index source1 source2 sentence1 sentence2")}
MARK = "toy"  # in a name of a file that is ours


def outcome(grammar, part, yes):
    """Draw (story, label) for SST-2: label 1 where it goes well, which `yes` says."""
    while True:
        sentences, good, _ = grammar.draw(part, grammar.topic())
        if good == yes:
            return [" ".join(sentences)], int(yes)


def follows(grammar, part, yes):
    """Draw (short story, a wish, label) for RTE: who hoped or decided also wanted; no other wish follows."""
    topic = grammar.topic()
    story, _, person = short_story(grammar, part, topic)
    said = re.sub("|".join(WISHES), WISHES[0], story.split(". ")[0], count=1) + "."
    if yes:
        return [story, said], "entailment"
    if grammar.random.random() >= SAME_TOPIC:
        topic = other_topic(grammar, topic)
    wish = said
    while wish == said:
        wish = sentence(f"{{name}} {WISHES[0]} {grammar.phrase(grammar.topics[topic]['to'])}", person)
    return [story, wish], "not_entailment"


def same_topic(grammar, part, yes):
    """Draw (story, story, label) for MRPC."""
    texts, _, _ = two_stories(grammar, part, yes)
    return texts, int(yes)


def likeness(grammar, part, yes):
    """Draw (story, story, score) for STS-B; half of the pairs have one topic, which `yes` says."""
    texts, _, same_outcome = two_stories(grammar, part, yes)
    return texts, f"{yes * SAME_SCORES[0] + same_outcome * SAME_SCORES[1]:.3f}"


def two_stories(grammar, part, same):
    """Draw two short stories of one topic or of two; return their texts, and whether topic and outcome are the same."""
    topic = grammar.topic()
    other = topic if same else other_topic(grammar, topic)
    (first, good, _), (second, other_good, _) = (short_story(grammar, part, of) for of in (topic, other))
    return [first, second], same, good == other_good


def other_topic(grammar, topic):
    """Draw one of the other topics."""
    return grammar.random.choice([t for t in grammar.topics if t != topic])


def short_story(grammar, part, topic):
    """Draw (the wish and the turn of a story, good, person); a text belongs to one part, as whole stories do."""
    while True:
        good, person = grammar.random.random() < 0.5, grammar.person()
        wish, *_, turn = grammar.beginning(topic, good, person)
        if part_of([wish, turn]) == part:
            return f"{wish} {turn}", good, person


DRAWERS = {"SST-2": outcome, "RTE": follows, "MRPC": same_topic, "STS-B": likeness}


def examples(folder: str, n: int, seed: int, part: str = "valid", n_topics: int | None = None) -> list:
    """Return n examples ([text] or [text, text], label as in the file), half of the labels yes, with distinct stories.

    Args:
        folder: the set, a key of DRAWERS. part: 'valid' or 'test', whose stories never coincide.
        n_topics: how many of the grammar's topics there are; None: all. Fewer are easier to learn.
    """
    grammar, rows, seen = Grammar(f"{folder} {part} {seed}"), [], set()
    grammar.topics = dict(itertools.islice(grammar.topics.items(), n_topics))
    answers = [True, False] * (n // 2) + [True] * (n % 2)
    grammar.random.shuffle(answers)
    while len(rows) < n:
        texts, label = DRAWERS[folder](grammar, part, answers[len(rows)])
        stories = set(texts[:1] if folder == "RTE" else texts)  # wishes may come again
        if len(stories) == len(texts[:1] if folder == "RTE" else texts) and not stories & seen:
            seen |= stories
            rows.append((texts, label))
    return rows


def row_of(folder, number, texts, label):
    """Return an example as the cells of a row of its file; label None: of a test file."""
    if folder == "SST-2":
        return [*texts, label] if label is not None else [number, *texts]
    if folder == "MRPC":
        return [number if label is None else label, f"{MARK}-{number}-1", f"{MARK}-{number}-2", *texts]
    before = [number, MARK, MARK, "2018", number, MARK, MARK] if folder == "STS-B" else [number]
    return [*before, *texts, *([] if label is None else [label])]


def write_file(path, folder, rows, labelled):
    """Write examples as one of a set's files: a header, tabs, no quotes."""
    header = HEADERS[folder][0 if labelled else 1]
    with write_atomically(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as f:
        f.write("\t".join(header.split("/" if "/" in header else " ")) + "\n")
        for number, (texts, label) in enumerate(rows):
            f.write("\t".join(map(str, row_of(folder, number, texts, label if labelled else None))) + "\n")


def write_data_dir(data_dir: str, n_train: int = 2000, n_dev: int = 400, n_test: int = 400, seed: int = 7,
                   sets: tuple = tuple(DRAWERS), n_topics: int | None = None) -> None:
    """Write the folders of some toy sets.

    Args:
        n_train, n_dev, n_test: examples of each file. sets: keys of DRAWERS. n_topics: see examples.
    Raises:
        BadInput: a file is there that this script did not write; it may be a real one.
    """
    mark = os.path.join(data_dir, f"{MARK}.txt")  # says that the folder is ours
    if not os.path.isfile(mark) and any(os.path.exists(os.path.join(data_dir, folder)) for folder in sets):
        raise BadInput(f"{data_dir}: holds one of the folders {', '.join(sets)} already, which may be GLUE's; give "
                       "another --data_dir")
    make_path(mark)
    with open(mark, "w", encoding="utf-8") as f:
        f.write(__doc__)
    for folder in sets:
        rows = examples(folder, n_train + n_dev, seed, "valid", n_topics)
        for name, part in (("train", rows[:n_train]), ("dev", rows[n_train:]),
                           ("test", examples(folder, n_test, seed, "test", n_topics))):
            write_file(os.path.join(data_dir, folder, f"{name}.tsv"), folder, part, name != "test")


def main(argv: list | None = None) -> None:
    """Write what the options ask for; see the top of this file."""
    p = OneLineParser(prog="toy.glue", description="Write toy sets in the layout of GLUE's files.")
    p.add_argument("--data_dir", required=True, help="folder for the folders SST-2, RTE, MRPC and STS-B")
    p.add_argument("--n_train", type=int, default=2000, help="examples to train on, of each set")
    p.add_argument("--n_dev", type=int, default=400, help="examples of each dev and each test file")
    p.add_argument("--n_topics", type=int, help="topics of the stories (default: all); fewer are easier to learn")
    p.add_argument("--seed", type=int, default=7, help="fixes the draws")
    args = p.parse_args(argv)
    require_ranges(args, {"n_train": (2, 100_000), "n_dev": (2, 100_000)}
                   | ({} if args.n_topics is None else {"n_topics": (2, len(read_topics()))}))
    write_data_dir(args.data_dir, args.n_train, args.n_dev, args.n_dev, args.seed, n_topics=args.n_topics)


if __name__ == "__main__":
    sys.exit(run_script(main))
