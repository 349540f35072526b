"""The toy stories: correct English, files in ROCStories' format, and endings that alone tell nothing."""

import collections
import csv
import itertools
import math
import re
import subprocess
import sys

import numpy as np
import pytest
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression

import datasets
from toy import stories
from utils import run_script

MANY = 10_000  # rows; an accuracy over as many has a standard deviation of half a point


def words(text):
    return re.findall(r"[a-z']+", text.lower())


@pytest.fixture(scope="module")
def train_rows():
    return stories.cloze(MANY, 1, "valid")


@pytest.fixture(scope="module")
def test_rows():
    return stories.cloze(MANY, 2, "test")


@pytest.fixture(scope="module")
def text():
    return stories.unlabelled(30_000, 3)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("toy")
    stories.write_data_dir(str(folder))
    return folder


# ---- the stories

def test_thirty_thousand_distinct_stories_of_five_sentences(text):
    assert len(text) == len(set(text)) == 30_000
    for story in text:
        sentences = re.split(r"(?<=\.) ", story)
        assert len(sentences) == 5, story
        for sentence in sentences:
            assert re.fullmatch(r"[A-Z][^\[\]{}|;:]*[^ .]\.", sentence) and "  " not in sentence, story
            assert 3 <= len(sentence.split()) <= 20, story


def test_equal_seeds_give_equal_stories_and_others_differ():
    assert stories.unlabelled(50, 3) == stories.unlabelled(50, 3) != stories.unlabelled(50, 4)
    assert stories.cloze(50, 1) == stories.cloze(50, 1) != stories.cloze(50, 2)


def test_stories_do_not_depend_on_the_hash_seed(root):
    def printed(hash_seed):
        command = "from toy import stories; print(stories.unlabelled(20, 5), stories.cloze(20, 5))"
        return subprocess.run([sys.executable, "-c", command], cwd=root, check=True, capture_output=True,
                              env={"PYTHONHASHSEED": hash_seed}).stdout

    assert printed("1") == printed("2")


def test_articles_and_verbs_agree(text, train_rows):
    everything = text[:10_000] + [" ".join(row[1:7]) for row in train_rows]
    for story in everything:
        wrong = re.search(r"\b[Aa] (?!uni|one|use|eu)[aeiou]\w*|\b[Aa] (hour|honest)|"
                          r"\b[Aa]n (?!hour|honest)[^aeiou]\w*|\b[Tt]hey was\b|\b([Hh]e|[Ss]he) were\b", story)
        assert not wrong, (wrong[0], story)


def test_a_story_keeps_its_person(text, train_rows):
    forms = {name: set(stories.FORMS[pronoun].values()) - {"was", "were"}
             for pronoun, names in stories.NAMES.items() for name in names.split()}
    assert len(forms) == sum(len(names.split()) for names in stories.NAMES.values())  # a name has one set of pronouns
    for story in text[:10_000] + [" ".join(row[1:7]) for row in train_rows]:
        name, = set(re.findall(r"\w+", story)) & set(forms)
        found = set(words(story)) & {"he", "she", "his", "her", "him"}
        assert found <= forms[name], (name, found, story)


def test_every_phrase_of_every_topic_is_complete_and_drawn(text):
    topics = stories.read_topics()
    assert len(topics) >= 24
    joined = " ".join(text).lower()
    phrases = []
    for topic, kinds in topics.items():
        assert list(kinds) == ["to", "did", "luck", "trouble", "happy", "sad"], topic
        for kind, alternatives in kinds.items():
            assert len(alternatives) >= 3, (topic, kind)
            phrases += alternatives
    assert len(set(phrases)) == len(phrases)
    for phrase in phrases:
        assert phrase.count("[") == phrase.count("]") and set(re.findall(r"\{(\w+)\}", phrase)) <= {"his", "him", "was"}
        pattern = "".join(f"({part[1:-1]})" if part.startswith("[") else re.escape(part).replace(r"\ ", " ")
                          for part in re.findall(r"\[[^]]*\]|[^[]+", re.sub(r"\{\w+\}", "@", phrase)))
        assert re.search(re.sub(r"\b[Aa]n? ", "an? ", pattern).replace("@", r"\w+").lower(), joined), phrase


def test_endings_use_words_of_their_own():
    """Few words of a topic's endings occur in its stories: overlap cannot solve the task."""
    plain = set("a an the of to in on at by for with from into up down out off it and or no not all".split())
    for topic, kinds in stories.read_topics().items():
        def own(*names, kinds=kinds):
            phrases = " ".join(itertools.chain.from_iterable(kinds[name] for name in names))
            return set(words(re.sub(r"\{\w+\}", "", phrases))) - plain
        story, ending = own("to", "did", "luck", "trouble"), own("happy", "sad")
        assert len(story & ending) <= 0.15 * len(ending), (topic, story & ending)


# ---- the files

def test_files_have_the_names_and_the_format_of_rocstories(data_dir):
    assert sorted(path.name for path in data_dir.iterdir()) == sorted([datasets.VALID_FILE, datasets.TEST_FILE])
    for path in data_dir.iterdir():
        with open(path, encoding="utf-8", newline="") as f:
            header, *rows = csv.reader(f, strict=True)
        assert header == ["InputStoryid", "InputSentence1", "InputSentence2", "InputSentence3", "InputSentence4",
                          "RandomFifthSentenceQuiz1", "RandomFifthSentenceQuiz2", "AnswerRightEnding"]
        assert len(rows) == 1871 and len({row[0] for row in rows}) == 1871
        assert sorted(collections.Counter(row[7] for row in rows).items()) == [("1", 936), ("2", 935)]
        assert all(row[5] != row[6] for row in rows)
        contents = path.read_text(encoding="utf-8")
        assert ',"' in contents and "'" in contents  # a comma inside a sentence is quoted; apostrophes occur
    train, valid, test = datasets.rocstories(str(data_dir))
    assert [len(split[0]) for split in (train, valid, test)] == [1497, 374, 1871]
    assert train[0][0].count(". ") == 3


def test_no_story_is_in_two_parts(data_dir, text):
    """Whatever the seeds: the same seed for all, and thirty thousand against the default files."""
    def beginnings(rows):
        return {" ".join(row[1:5]) for row in rows}

    text_beginnings = {re.match(r"((?:[^.]*\.){4})", story)[0] for story in text + stories.unlabelled(3000, 7)}
    valid, test = (beginnings(stories.cloze(3000, 7, part)) for part in ("valid", "test"))
    default_valid, _, _, _ = datasets._rocstories(str(data_dir / datasets.VALID_FILE))
    default_test, _, _, _ = datasets._rocstories(str(data_dir / datasets.TEST_FILE))
    valid |= set(default_valid)
    test |= set(default_test)
    assert not text_beginnings & valid and not text_beginnings & test and not valid & test
    assert len(valid) >= 3000 and len(test) >= 3000


def test_command_line(root, tmp_path):
    command = [sys.executable, "-m", "toy.stories"]
    options = ["--data_dir", "data", "--text", "text.txt", "--n_text", "30", "--n_cloze", "11", "--seed", "5"]
    subprocess.run(command + options, cwd=tmp_path, check=True)
    assert (tmp_path / "text.txt").read_text(encoding="utf-8").splitlines() == stories.unlabelled(30, 5)
    found, _, _, _ = datasets._rocstories(str(tmp_path / "data" / datasets.TEST_FILE))
    assert found == [" ".join(row[1:5]) for row in stories.cloze(11, 5, "test")]
    bad = subprocess.run([*command, "--text", "never.txt", "--n_text", "0"], cwd=tmp_path, capture_output=True,
                         text=True)
    assert bad.returncode == 2 and bad.stderr.count("\n") == 1 and "n_text" in bad.stderr
    assert not (tmp_path / "never.txt").exists()


# ---- what endings alone tell

def right_and_wrong(rows):
    """Return the right endings and the wrong ones."""
    pairs = [(row[4 + int(row[7])], row[7 - int(row[7])]) for row in rows]
    return [right for right, _ in pairs], [wrong for _, wrong in pairs]


def endings_alone(train, test):
    """Return the accuracy of logistic regression on n-grams of the two endings: trained on rows, measured on others."""
    vectors = CountVectorizer(ngram_range=(1, 3), min_df=2, token_pattern=r"[\w']+|[.,]")
    vectors.fit([ending for row in train for ending in row[5:7]])

    def differences(rows):
        return vectors.transform([row[5] for row in rows]) - vectors.transform([row[6] for row in rows])

    model = LogisticRegression(C=0.1, max_iter=200).fit(differences(train), [row[7] for row in train])
    return model.score(differences(test), [row[7] for row in test])


def test_an_ending_alone_tells_nothing(train_rows, test_rows):
    assert abs(endings_alone(train_rows, test_rows) - 0.5) < 0.02


def test_fewer_topics_keep_to_the_first_of_the_table(tmp_path):
    stories.main(["--data_dir", str(tmp_path), "--text", str(tmp_path / "text"), "--n_text", "300", "--n_cloze", "200",
                  "--n_topics", "5"])
    topics = [set(words(" ".join(itertools.chain(*kinds.values())))) for kinds in stories.read_topics().values()]
    alone = [topic - set.union(*(other for other in topics if other is not topic)) for topic in topics]
    for name in ("text", datasets.VALID_FILE, datasets.TEST_FILE):
        found = set(words((tmp_path / name).read_text(encoding="utf-8")))
        counts = [len(found & of_topic) for of_topic in alone]
        assert min(counts[:5]) > 30 and max(counts[5:]) < 3, (name, counts)
    assert run_script(stories.main, ["--text", str(tmp_path / "text"), "--n_topics", "1"]) == 2


def test_an_ending_alone_tells_nothing_in_the_default_files(data_dir):
    files = []
    for name in (datasets.VALID_FILE, datasets.TEST_FILE):
        with open(data_dir / name, encoding="utf-8", newline="") as f:
            files.append(list(csv.reader(f))[1:])
    assert abs(endings_alone(*files) - 0.5) < 0.03
    assert abs(endings_alone(*files[::-1]) - 0.5) < 0.03


def test_right_and_wrong_endings_have_the_same_distribution(train_rows, test_rows):
    """Words, first words, word pairs and lengths are as frequent in right endings as in wrong ones."""
    right, wrong = right_and_wrong(train_rows + test_rows)

    def features(ending):
        found = words(ending)
        return {*found, f"first {found[0]}", f"length {len(found)}", *map(" ".join, itertools.pairwise(found))}

    counts = [collections.Counter(itertools.chain.from_iterable(map(features, side))) for side in (right, wrong)]
    for feature in counts[0] | counts[1]:
        a, b = counts[0][feature], counts[1][feature]
        assert abs(a - b) <= 5 * math.sqrt(a + b) + 1, (feature, a, b)


def test_some_wrong_endings_differs_in_the_outcome_alone(train_rows):
    topic_of = {}
    for topic, kinds in stories.read_topics().items():
        for phrase in kinds["happy"] + kinds["sad"]:
            for choice in itertools.product(*[part[1:-1].split("|") if part.startswith("[") else [part]
                                              for part in re.findall(r"\[[^]]*\]|[^[]+", phrase)]):
                # pronouns and articles depend on the person and the next word: leave them out
                topic_of[" ".join(re.findall(r"[a-z]{4,}", re.sub(r"\{\w+\}", " ", "".join(choice).lower())))] = topic

    def topic(ending):
        found = re.findall(r"[a-z]{4,}", re.sub(r"\b(their|them|they|were)\b", " ", ending.lower()))
        return next(topic_of[key] for i in range(4) if (key := " ".join(found[i:])) in topic_of)

    right, wrong = right_and_wrong(train_rows)
    same = np.mean([topic(a) == topic(b) for a, b in zip(right, wrong, strict=True)])
    assert abs(same - stories.SAME_TOPIC) < 0.02


# ---- what story and ending tell together

def association(pairs):
    """Return a score of (story, ending): mean pointwise mutual information of their words, counted in the pairs."""
    n, (stories_with, endings_with, both) = len(pairs), (collections.Counter() for _ in range(3))
    for story, ending in pairs:
        a, b = set(words(story)), set(words(ending))
        stories_with.update(a)
        endings_with.update(b)
        both.update(itertools.product(a, b))

    def score(story, ending):
        total = 0.0
        for a, b in itertools.product(set(words(story)), set(words(ending))):
            expected = stories_with[a] * endings_with[b] / n
            total += math.log((both[a, b] + 0.5 * expected + 0.05) / (1.5 * expected + 0.05))
        return total / len(set(words(ending)))

    return score


def test_unlabelled_stories_show_which_ending_fits(text, test_rows):
    score = association([(story[:cut], story[cut:]) for story in text[:20_000]
                         if (cut := story[:-1].rindex(". ") + 2)])
    rows = test_rows[:1000]
    picks = [1 if score(" ".join(row[1:5]), row[5]) > score(" ".join(row[1:5]), row[6]) else 2 for row in rows]
    assert np.mean([pick == int(row[7]) for pick, row in zip(picks, rows, strict=True)]) > 0.85


def test_shared_words_do_not_show_which_ending_fits(test_rows):
    def shared(row, ending):
        return len(set(words(" ".join(row[1:5]))) & set(words(ending)))

    gains = [(shared(row, row[5]) - shared(row, row[6])) * (1 if row[7] == "1" else -1) for row in test_rows]
    assert abs(np.mean([0.5 + 0.5 * np.sign(gain) for gain in gains]) - 0.5) < 0.06
