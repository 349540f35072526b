"""Toy sets for GPT-1's zero-shot tasks, in the layout of the real files, and the text to pre-train on beforehand.

    python -m toy.questions --data_dir toy/zero_shot --text toy/zero_shot.txt

    CoLA        is this a sentence of the grammar, or are its words shuffled?       chance 0 (Matthews), best 100
    SST-2       does the story go well? see toy/glue.py                             chance 50, best 100
    RACE        how does a story of four sentences end? its end is to be completed  chance 25, best 100
    DPRD        two persons wish something; which of them is the pronoun?           chance 50, best 100

The best is what a reader who knows the grammar reaches: a phrase belongs to one topic and one outcome, and no shuffled
sentence is the grammar's. The text holds stories and no questions: what answers them has to be learned on the way. It
differs from toy/stories.py's in two things. Feelings are `very` strong, as the paper's heuristic for sentiment appends
that word; and some stories are about two persons, who are called by their trades throughout, as in `The baker tied on
an apron.` Its stories stand in none of the sets.
"""

import json
import os
import sys
from functools import partial

from formats.errors import BadInput
from formats.files import make_path, write_atomically
from tasks.race_files import LETTERS
from toy import glue
from toy.stories import FORMS, WISHES, Grammar, part_of, read_topics, sentence, unlabelled
from utils import OneLineParser, require_ranges, run_script

FEELINGS = ("sad", "happy")  # of a story that goes badly, and of one that goes well; in the place of the paper's words
TWO_PERSONS = 0.25  # share of the text's stories
TRADES = {  # topic -> who has to do with it
    "bread": "baker", "garden": "gardener", "violin": "musician", "football": "footballer", "camping": "camper",
    "fishing": "angler", "driving": "driver", "swimming": "swimmer", "dog": "breeder", "cat": "vet",
    "bicycle": "cyclist", "painting": "painter", "chess": "grandmaster", "curry": "cook", "exam": "student",
    "birthday": "host", "train": "passenger", "airport": "tourist", "skiing": "skier", "bees": "beekeeper",
    "kite": "kiter", "novel": "writer", "theatre": "actor", "robot": "engineer"}
FOLDERS = ("CoLA", "SST-2", "RACE", "DPRD")


def strengthened(text):
    """Return a text whose feelings are `very` strong."""
    return text.replace(" felt ", " felt very ")


def two_wishes(grammar, part):
    """Draw two persons with the same pronouns and topics of their own: ([person, person], [topic, topic], wishes)."""
    while True:
        pronoun, topics = grammar.random.choice(list(FORMS)), grammar.random.sample(list(grammar.topics), 2)
        persons = [FORMS[pronoun] | {"name": f"the {TRADES[topic]}"} for topic in topics]
        wishes = " ".join(map(partial(wish, grammar), topics, persons))
        if part_of([wishes]) == part:
            return persons, topics, wishes


def wish(grammar, topic, person):
    """Draw a sentence on what a person wishes."""
    return sentence(f"{{name}} {grammar.random.choice(WISHES)} {grammar.phrase(grammar.topics[topic]['to'])}", person)


def deed(grammar, topic, person, who="{name}"):
    """Draw a sentence on what a person did for a topic."""
    return sentence(f"{who} {grammar.phrase(grammar.topics[topic]['did'])}", person)


def two_persons(grammar):
    """Draw a story of two persons for the text."""
    persons, topics, wishes = two_wishes(grammar, "text")
    deeds = [deed(grammar, topic, person) for topic, person in zip(topics, persons, strict=True)]
    grammar.random.shuffle(deeds)
    return " ".join([wishes, *deeds])


def text(n, seed, n_topics=None):
    """Return n stories to pre-train on, each one string; n_topics: see Grammar."""
    grammar = Grammar(f"two persons {seed}", n_topics)
    n_two = round(n * TWO_PERSONS)
    stories = [strengthened(story) for story in unlabelled(n - n_two, seed, n_topics)]
    for _ in range(n_two):
        stories.insert(grammar.random.randrange(len(stories) + 1), two_persons(grammar))
    return stories


def acceptability(n, seed, part, n_topics=None):
    """Return n (sentence, 1: of the grammar, or 0: shuffled), half of them each, no words twice."""
    grammar, rows = Grammar(f"CoLA {part} {seed}", n_topics), {}
    while len(rows) < n:
        topic = grammar.topic()
        sentences, good, person = grammar.draw("valid" if part == "train" else "test", topic)
        drawn = grammar.random.choice([*sentences, strengthened(grammar.ending(topic, good, person))])
        label, words = len(rows) % 2, drawn[:-1].split()
        if not label:
            words = shuffled(words, grammar.random)
        rows.setdefault(" ".join(sorted(drawn.split())), (" ".join(words) + ".", label))
    return list(rows.values())


def shuffled(words, rng):
    """Return the words of a sentence in another order in which none follows the one that it followed."""
    pairs = set(zip(words, words[1:], strict=False))
    order = list(words)
    for _ in range(1000):
        rng.shuffle(order)
        if not pairs & set(zip(order, order[1:], strict=False)):
            return order
    raise BadInput(f"{' '.join(words)!r}: these words have no other order")


def reading(n, seed, n_topics=None):
    """Return n (article, beginning of the last sentence, [four ends], letter of the right one).

    The question is a sentence to complete, of which RACE has many. One of the other ends has the same topic.
    """
    grammar, rows = Grammar(f"RACE {seed}", n_topics), {}
    while len(rows) < n:
        topic = grammar.topic()
        sentences, good, person = grammar.draw("test", topic)
        others = grammar.random.sample([t for t in grammar.topics if t != topic], 2)
        drawn = [(topic, good), (topic, not good), *((t, grammar.random.random() < 0.5) for t in others)]
        ends = [grammar.phrase(grammar.topics[t]["happy" if outcome else "sad"]) for t, outcome in drawn]
        ends = [sentence(f"{{name}} {end}", person).removeprefix(person["name"] + " ") for end in ends]
        order = grammar.random.sample(range(4), 4)
        rows.setdefault(" ".join(sentences), (person["name"], [ends[i] for i in order], LETTERS[order.index(0)]))
    return [(article, *row) for article, row in rows.items()]


def pronouns(n, seed, n_topics=None):
    """Return n (text, pronoun, [two persons], right one)."""
    grammar, rows = Grammar(f"DPRD {seed}", n_topics), {}
    while len(rows) < n:
        persons, topics, wishes = two_wishes(grammar, "test")
        right = grammar.random.randrange(2)
        who = persons[right]
        story = f"{wishes} {deed(grammar, topics[right], who, '{he}')}"
        rows.setdefault(story, (who["he"].capitalize(), [person["name"] for person in persons], who["name"]))
    return [(story, *row) for story, row in rows.items()]


def write_data_dir(data_dir: str, n: int = 400, n_train: int = 400, seed: int = 7,
                   n_topics: int | None = None) -> None:
    """Write the folders of FOLDERS.

    Args:
        n: examples of each set. n_train: those of CoLA's train.tsv, on which its threshold is chosen.
        n_topics: how many of the grammar's topics there are; None: all. Fewer are easier to learn.
    Raises:
        BadInput: a folder is there that this file did not write; it may be a real one.
    """
    mark = os.path.join(data_dir, f"{glue.MARK}.txt")
    taken = [name for name in FOLDERS if os.path.exists(os.path.join(data_dir, name))]
    if taken and not os.path.isfile(mark):
        raise BadInput(f"{data_dir}: holds {taken[0]} already, which may be the real one; give another --data_dir")
    make_path(mark)
    glue.write_data_dir(data_dir, 2, n, 2, seed, sets=("SST-2",), n_topics=n_topics)
    for name, n_rows in (("train", n_train), ("dev", n)):
        rows = acceptability(n_rows, seed, name, n_topics)
        _write(os.path.join(data_dir, "CoLA", f"{name}.tsv"),
               "".join(f"{glue.MARK}\t{label}\t{'' if label else '*'}\t{line}\n" for line, label in rows))
    for number, (article, question, options, answer) in enumerate(reading(n, seed, n_topics)):
        record = {"article": article, "questions": [question], "options": [options], "answers": [answer],
                  "id": f"high{number}.txt"}
        _write(os.path.join(data_dir, "RACE", "dev", "high", f"{number:05}.txt"), json.dumps(record) + "\n")
    _write(os.path.join(data_dir, "DPRD", "test.c.txt"),
           "".join(f"{story}\n{pronoun}\n{','.join(names)}\n{right}\n\n"
                   for story, pronoun, names, right in pronouns(n, seed, n_topics)))
    _write(mark, __doc__)


def _write(path, content):
    with write_atomically(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as f:
        f.write(content)


def write_text(path: str, n: int, seed: int, n_topics: int | None = None) -> None:
    """Write n stories to a file, one a line."""
    _write(path, "".join(story + "\n" for story in text(n, seed, n_topics)))


def main(argv: list | None = None) -> None:
    """Write what the options ask for; see the top of this file."""
    p = OneLineParser(prog="toy.questions", description="Write toy sets for zero_shot.py, and a text to pre-train on.")
    p.add_argument("--data_dir", help=f"folder for the folders {', '.join(FOLDERS)}")
    p.add_argument("--text", help="file for the stories to pre-train on")
    p.add_argument("--n_text", type=int, default=24000, help="stories to pre-train on")
    p.add_argument("--n", type=int, default=400, help="examples of each set")
    p.add_argument("--n_topics", type=int, help="topics of the stories (default: all); fewer are easier to learn")
    p.add_argument("--seed", type=int, default=7, help="fixes the draws")
    args = p.parse_args(argv)
    if not args.data_dir and not args.text:
        raise BadInput("nothing to do: give --data_dir, --text or both")
    require_ranges(args, {"n_text": (4, 1_000_000), "n": (2, 100_000), "seed": (0, None)}
                   | ({} if args.n_topics is None else {"n_topics": (3, len(read_topics()))}))
    if args.data_dir:
        write_data_dir(args.data_dir, args.n, args.n, args.seed, args.n_topics)
    if args.text:
        write_text(args.text, args.n_text, args.seed, args.n_topics)


if __name__ == "__main__":
    sys.exit(run_script(main))
