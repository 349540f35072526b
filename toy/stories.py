"""Toy five-sentence stories from a grammar of our own, for those who have no ROCStories at hand.

    python -m toy.stories --data_dir toy/data --text toy/stories.txt

writes unlabelled stories, one a line, and two cloze files in ROCStories' format and under its names.

A story has a person and a topic; it goes well or badly, and the ending follows from topic and outcome:
    Liam hoped to swim across the bay. He swam forty lengths before breakfast. He shaved a second off each turn. Then
    the water was mild and each stroke felt easy.      right: He stood on the top step with a gold medal.
The wrong ending is the right ending of another story with its name and pronouns replaced by this one's. Every ending
is as likely right as wrong, so that an ending alone tells nothing. One wrong ending in twenty has the same topic
and the opposite outcome. Story and ending share few words: which belong together must be learned from other stories.

The unlabelled stories come in chapters, as in a book: the next story often keeps the topic. A language model then
gains from remembering what a story was about after it has ended, which is what a classifier needs to know.

Texts of unlabelled stories, validation file and test file never coincide, whatever the seeds: each belongs to one of
the three by its checksum.
"""

import csv
import itertools
import os
import random
import re
import sys
import zlib
from pathlib import Path

from formats.errors import BadInput
from formats.files import write_atomically
from tasks.story_cloze import COLUMNS, TEST_FILE, VALID_FILE
from utils import OneLineParser, require_ranges, run_script

NAMES = {
    "she": "Aiko Amara Anna Carmen Chloe Divya Elena Fatima Freya Grace Hana Ingrid Leila Lucia Maria Mei Nadia Noor "
           "Olga Priya Rosa Sofia Thandi Yara Zainab",
    "he": "Ahmed Bruno Carlos Chen Daniel Emeka Felix Hiro Hugo Ivan Jamal Jonas Kofi Liam Luis Mateo Mohan Nikos Omar "
          "Oscar Pavel Ravi Samuel Tariq Yusuf",
    "they": "Alex Ariel Jin Kai Noa Quinn Robin Sasha",
}
FORMS = {"she": {"he": "she", "his": "her", "him": "her", "was": "was"},
         "he": {"he": "he", "his": "his", "him": "him", "was": "was"},
         "they": {"he": "they", "his": "their", "him": "them", "was": "were"}}
WISHES = ["wanted to", "hoped to", "decided to"]
TURNS = {True: ["Luckily,", "Then"], False: ["Sadly,", "Then"]}
FEELINGS = {True: ["proud", "happy", "delighted", "thankful"], False: ["sad", "disappointed", "sorry", "gloomy"]}
ENDINGS = ["{{name}} {what}", "{{he}} {what}", "{{he}} felt {feeling} and {what}"]
SAME_TOPIC = 0.05  # share of wrong endings that differ from the right one in the outcome alone
SAME_CHAPTER = 0.75  # how often the next unlabelled story keeps the topic of the one before

# For each topic: the wish, what the person did, the turn for better or worse, and what came of it. Alternatives are
# parted by ; and, within a phrase, stand in [ | ].
TOPICS = Path(__file__).with_name("topics.txt")


def read_topics():
    """Return {topic: {'to' | 'did' | 'luck' | 'trouble' | 'happy' | 'sad': [phrases]}} of the table topics.txt."""
    text, topics, current = TOPICS.read_text(encoding="utf-8"), {}, None
    for line in text.replace("\n        ", " ").strip().splitlines():  # deeper lines continue the one before
        if line.startswith(" "):
            kind, phrases = line.strip().split(": ", 1)
            current[kind] = phrases.split("; ")
        else:
            current = topics[line] = {}
    return topics


class Grammar:
    """Draws stories and cloze rows of the first n_topics topics, None: of all; equal seeds give equal draws."""

    def __init__(self, seed, n_topics=None):
        self.random = random.Random(seed)
        self.topics = dict(itertools.islice(read_topics().items(), n_topics))

    def phrase(self, phrases):
        """Draw one of the phrases and, in it, one of each [a|b]."""
        return re.sub(r"\[([^]]*)\]", lambda m: self.random.choice(m[1].split("|")), self.random.choice(phrases))

    def person(self):
        """Draw a name with its pronouns."""
        pronoun = self.random.choice(["she"] * 3 + ["he"] * 3 + ["they"])
        return FORMS[pronoun] | {"name": self.random.choice(NAMES[pronoun].split())}

    def beginning(self, topic, good, person):
        """Draw four sentences."""
        t = self.topics[topic]
        wish = f"{{name}} {self.random.choice(WISHES)} {self.phrase(t['to'])}"
        deeds = [f"{{he}} {self.phrase([did])}" for did in self.random.sample(t["did"], 2)]
        turn = f"{self.random.choice(TURNS[good])} {self.phrase(t['luck' if good else 'trouble'])}"
        return [sentence(part, person) for part in (wish, *deeds, turn)]

    def ending(self, topic, good, person):
        """Draw the fifth sentence."""
        form = self.random.choice(ENDINGS)
        what = self.phrase(self.topics[topic]["happy" if good else "sad"])
        return sentence(form.format(what=what, feeling=self.random.choice(FEELINGS[good])), person)

    def topic(self):
        """Draw a topic."""
        return self.random.choice(list(self.topics))

    def draw(self, part, topic):
        """Draw the four sentences of a story of one of the parts 'text', 'valid', 'test'.

        Returns:
            (sentences, good, person).
        """
        while True:
            good, person = self.random.random() < 0.5, self.person()
            sentences = self.beginning(topic, good, person)
            if part_of(sentences) == part:
                return sentences, good, person

    def cloze_row(self, part, number, answer):
        """Draw one row in the order of story_cloze.COLUMNS; answer is 1 or 2."""
        topic = self.topic()
        sentences, good, person = self.draw(part, topic)
        other, other_good = topic, not good
        if self.random.random() >= SAME_TOPIC:
            other = self.random.choice([t for t in self.topics if t != topic])
            other_good = self.random.random() < 0.5
        endings = [self.ending(topic, good, person), self.ending(other, other_good, person)]
        return [f"toy-{part}-{number}", *sentences, *(endings if answer == 1 else endings[::-1]), str(answer)]


def sentence(words, person):
    """Return a phrase as a sentence: person filled in, a or an, a capital, a full stop."""
    words = re.sub(r"\b([Aa]) (?=[aeiouAEIOU])(?!uni|one|use|eu)", r"\1n ", words.format(**person))
    return words[0].upper() + words[1:] + "."


def part_of(sentences):
    """Return 'text', 'valid' or 'test': the part to which a story with these four sentences belongs."""
    return ("text", "text", "text", "text", "text", "text", "valid", "valid", "test", "test")[
        zlib.crc32(" ".join(sentences).encode()) % 10]


def unlabelled(n, seed, n_topics=None):
    """Return n distinct five-sentence stories in chapters, each story one string; n_topics: see Grammar."""
    grammar, stories = Grammar(f"text {seed}", n_topics), {}
    topic = grammar.topic()
    while len(stories) < n:
        if grammar.random.random() >= SAME_CHAPTER:
            topic = grammar.topic()
        sentences, good, person = grammar.draw("text", topic)
        stories[" ".join([*sentences, grammar.ending(topic, good, person)])] = None
    return list(stories)


def cloze(n, seed, part="valid", n_topics=None):
    """Return n rows in the order of story_cloze.COLUMNS with distinct beginnings; as many answers 1 as 2.

    Args:
        part: 'valid' or 'test'; rows of the two never share a story. n_topics: see Grammar.
    """
    grammar = Grammar(f"{part} {seed}", n_topics)
    answers = [1, 2] * (n // 2) + [1] * (n % 2)
    grammar.random.shuffle(answers)
    rows = {}
    while len(rows) < n:
        row = grammar.cloze_row(part, len(rows), answers[len(rows)])
        rows.setdefault(" ".join(row[1:5]), row)
    return list(rows.values())


def write_cloze_csv(path, rows):
    """Write cloze rows in ROCStories' CSV format."""
    with write_atomically(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as f:
        csv.writer(f).writerows([COLUMNS, *rows])


def _first_rows(path):
    """The second row of a CSV file, in a list; nothing where it cannot be read."""
    try:
        with open(path, encoding="utf-8", newline="") as f:
            return [row for row in list(csv.reader(line for _, line in zip(range(2), f, strict=False)))[1:] if row]
    except (OSError, ValueError, csv.Error):
        return []


def write_data_dir(data_dir, n_valid_file=1871, n_test_file=1871, seed=7, n_topics=None):
    """Write the two cloze files into a folder, under ROCStories' names.

    Raises:
        BadInput: a file of that name is there which this script did not write; it may be the real one.
    """
    for name in (VALID_FILE, TEST_FILE):
        path = os.path.join(data_dir, name)
        if os.path.exists(path) and not any(row[0].startswith("toy-") for row in _first_rows(path)):
            raise BadInput(f"{path}: is there already and is no toy data; give another --data_dir")
    write_cloze_csv(os.path.join(data_dir, VALID_FILE), cloze(n_valid_file, seed, "valid", n_topics))
    write_cloze_csv(os.path.join(data_dir, TEST_FILE), cloze(n_test_file, seed, "test", n_topics))


def write_text(path, n, seed, n_topics=None):
    """Write n unlabelled stories to a file, one a line."""
    with write_atomically(path) as temporary, open(temporary, "w", encoding="utf-8") as f:
        f.writelines(story + "\n" for story in unlabelled(n, seed, n_topics))


def main(argv=None):
    """Write what the options ask for; see the top of this file."""
    p = OneLineParser(prog="toy.stories", description="Write toy stories and cloze files.")
    p.add_argument("--data_dir", help="folder for the two cloze files")
    p.add_argument("--text", help="file for the unlabelled stories")
    p.add_argument("--n_text", type=int, default=24000, help="unlabelled stories")
    p.add_argument("--n_cloze", type=int, default=1871, help="rows of each cloze file")
    p.add_argument("--n_topics", type=int, help="topics of the stories (default: all); fewer are easier to learn")
    p.add_argument("--seed", type=int, default=7, help="fixes the draws")
    args = p.parse_args(argv)
    if not args.data_dir and not args.text:
        raise BadInput("nothing to do: give --data_dir, --text or both")
    require_ranges(args, {"n_text": (1, 1_000_000), "n_cloze": (2, 100_000)}
                   | ({} if args.n_topics is None else {"n_topics": (2, len(read_topics()))}))
    if args.data_dir:
        write_data_dir(args.data_dir, args.n_cloze, args.n_cloze, args.seed, args.n_topics)
    if args.text:
        write_text(args.text, args.n_text, args.seed, args.n_topics)


if __name__ == "__main__":
    sys.exit(run_script(main))
