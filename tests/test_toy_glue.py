"""The toy sets in GLUE's layouts: read by the readers of the real files, balanced, and labelled as they say."""

import re

import numpy as np
import pytest
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression

from formats.errors import BadInput
from tasks.glue_files import read_glue
from tasks.gpt_tasks import GPT_TASKS
from toy import glue, stories
from utils import run_script

NAMES = {"sst2": "SST-2", "rte": "RTE", "mrpc": "MRPC", "stsb": "STS-B"}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("toy") / "glue")
    glue.main(["--data_dir", folder, "--n_train", "300", "--n_dev", "60"])
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_the_readers_of_the_real_files_read_them(data_dir, name):
    task = GPT_TASKS[name]
    splits = {split: task.read(data_dir, split) for split in ("train", "valid", "test")}
    assert [len(split) for split in splits.values()] == [300, 60, 60]
    assert splits["test"].labels is None and list(splits["train"].texts) == list(task.texts)
    seen = [text for split in splits.values() for text in split.texts[task.texts[0]]]
    assert len(set(seen)) == len(seen) == 420
    examples = glue.examples(NAMES[name], 360, 7)
    assert [*splits["train"].texts[task.texts[-1]], *splits["valid"].texts[task.texts[-1]]] == \
        [texts[-1] for texts, _ in examples]
    labels = splits["train"].labels
    if name == "stsb":
        assert set(map(float, labels)) == {0, 1.75, 3.25, 5}
    else:
        assert sorted(set(labels)) == sorted(task.classes)
        assert abs(labels.count(task.classes[0]) - 150) < 30


def topic_and_kind(text, topics, *wanted):
    """The only topic, and the only one of the wanted kinds of its phrases, that a text can have."""
    found = {(topic, kind) for topic, kinds in topics.items() for kind in wanted
             for phrase in kinds[kind] if re.search(pattern(phrase), text)}
    (topic, kind), = found
    return topic, kind


def topic_and_outcome(text, topics):
    topic, kind = topic_and_kind(text, topics, "luck", "trouble")
    return topic, kind == "luck"


def pattern(phrase):
    """A regular expression for what a phrase of the grammar can become."""
    phrase = re.sub(r"\b[Aa]n? ", "@ ", phrase)
    parts = re.findall(r"\[[^]]*\]|\{\w+\}|[^[{]+", phrase)
    return "".join(f"(?:{part[1:-1]})" if part[0] == "[" else r"\w+" if part[0] == "{" else re.escape(part)
                   for part in parts).replace("@", "an?")


def test_labels_say_what_the_stories_are():
    topics = stories.read_topics()
    for (text,), label in glue.examples("SST-2", 60, 1):
        assert topic_and_outcome(text, topics)[1] == bool(label)
    for texts, label in glue.examples("MRPC", 60, 1):
        (topic, _), (other, _) = (topic_and_outcome(text, topics) for text in texts)
        assert (topic == other) == bool(label)
    same = {"entailment": [], "not_entailment": []}
    for (story, wish), label in glue.examples("RTE", 400, 1):
        told = story.split(". ")[0] + "."
        assert told.split()[0] == wish.split()[0] and " wanted to " in wish
        assert (re.sub("(wanted|hoped|decided) to", "wanted to", told) == wish) == (label == "entailment")
        same[label].append(topic_and_outcome(story, topics)[0] == topic_and_kind(wish, topics, "to")[0])
    assert all(same["entailment"]) and 0.15 < np.mean(same["not_entailment"]) < 0.35
    for texts, label in glue.examples("STS-B", 60, 1):
        (topic, good), (other, other_good) = (topic_and_outcome(text, topics) for text in texts)
        assert float(label) == 3.25 * (topic == other) + 1.75 * (good == other_good)


@pytest.mark.parametrize("folder", ["RTE", "MRPC"])
def test_one_text_of_a_pair_alone_tells_nothing(folder):
    rows = glue.examples(folder, 3000, 2)
    labels = np.array([label in (1, "entailment") for _, label in rows])
    for part in (0, 1):
        words = CountVectorizer(min_df=3).fit_transform([texts[part] for texts, _ in rows])
        model = LogisticRegression(max_iter=300, C=0.1).fit(words[:2000], labels[:2000])
        assert abs(model.score(words[2000:], labels[2000:]) - 0.5) < 0.05  # three standard deviations


def test_valid_and_test_share_no_story_whatever_the_seed():
    valid, test = ({text for texts, _ in glue.examples("MRPC", 500, seed, part) for text in texts}
                   for seed, part in ((1, "valid"), (2, "test")))
    assert len(valid) == len(test) == 1000 and not valid & test


def test_files_that_may_be_glue_s_are_left_alone(tmp_path, data_dir, capsys):
    glue.write_data_dir(data_dir, n_train=300, n_dev=60, n_test=60)  # our own are written again
    (tmp_path / "RTE").mkdir()
    (tmp_path / "RTE" / "train.tsv").write_text("mine\n")
    assert run_script(glue.main, ["--data_dir", str(tmp_path)]) == 2
    assert "which may be GLUE's; give another --data_dir" in capsys.readouterr().err
    assert (tmp_path / "RTE" / "train.tsv").read_text() == "mine\n" and not (tmp_path / "MRPC").exists()
    with pytest.raises(BadInput, match="sentence1"):
        read_glue("rte", str(tmp_path), "train")
    for option in ("n_train", "n_dev"):
        assert run_script(glue.main, ["--data_dir", str(tmp_path / "new"), f"--{option}", "1"]) == 2
