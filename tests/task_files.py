"""Small honest files of every task, in the layouts of the real ones, with labels that the texts tell."""

import json

from cloze_data import WORDS, write_data_dir

from tasks.glue_files import GLUE_TASKS

HEADERS = {
    "sst2": "sentence label", "qqp": "id qid1 qid2 question1 question2 is_duplicate",
    "stsb": "index genre filename year old_index source1 source2 sentence1 sentence2 score",
    "qnli": "index question sentence label", "rte": "index sentence1 sentence2 label",
    "wnli": "index sentence1 sentence2 label",
    "mnli": "index promptID pairID genre sentence1_binary_parse sentence2_binary_parse sentence1_parse sentence2_parse "
            "sentence1 sentence2 label1 gold_label"}
MRPC = ["Quality", "#1 ID", "#2 ID", "#1 String", "#2 String"]
SPLITS = {"train": 24, "dev": 10, "test": 7}


def texts_of(i):
    """Two texts of a few words each."""
    return [" ".join(WORDS[(i * k + j) % len(WORDS)] for j in range(2 + (i + k) % 4)) + ' "!' for k in (3, 5)]


def _glue_row(name, header, i, label):
    values = dict(zip(("sentence1", "sentence2"), texts_of(i), strict=True))
    values |= dict(zip(("question1", "question2"), texts_of(i), strict=True)) if name == "qqp" else {}
    values |= {"question": texts_of(i)[0], "sentence": texts_of(i)[1]} if name in ("qnli", "sst2") else {}
    values |= dict(zip(MRPC[3:], texts_of(i), strict=True))
    values |= dict.fromkeys(("label", "gold_label", "score", "is_duplicate", "Quality"), label)
    return [values.get(column, str(i)) for column in header]


def _label(name, i):
    task = GLUE_TASKS[name]
    if task.classes is None:
        return f"{i % 6 * 0.9:.3f}"
    k = i % len(task.classes)
    return str(k) if task.are_numbers else task.classes[k]


def write_glue(folder, name):
    """Write a GLUE task's folder."""
    task = GLUE_TASKS[name]
    (folder / task.folder).mkdir(parents=True)
    for split, file in task.files.items():
        n, is_test = SPLITS[file.split("_")[0].removesuffix(".tsv")], split.startswith("test")
        rows = []
        if name == "cola":
            rows = [["index", "sentence"], *([str(i), texts_of(i)[0]] for i in range(n))] if is_test else [
                ["gj04", _label(name, i), "", texts_of(i)[0]] for i in range(n)]
        else:
            header = MRPC if name == "mrpc" else HEADERS[name].split(" ")
            rows = [header, *(_glue_row(name, header, i, _label(name, i)) for i in range(n))]
            if is_test and name == "sst2":
                rows = [["index", "sentence"], *([str(i), row[0]] for i, row in enumerate(rows[1:]))]
            elif is_test and name == "mrpc":
                rows = [["index", *row[1:]] if i == 0 else row for i, row in enumerate(rows)]
            elif is_test and name == "qqp":
                rows = [[row[0], *row[3:5]] for row in rows]
            elif is_test:
                rows = [row[:-2] if name == "mnli" else row[:-1] for row in rows]
        (folder / task.folder / file).write_text("".join("\t".join(row) + "\n" for row in rows), encoding="utf-8")


def write_task(folder, name):
    """Write the files of a task into a folder; return it as a string."""
    if name == "rocstories":
        return write_data_dir(folder)
    if name in GLUE_TASKS:
        write_glue(folder, name)
        return str(folder)
    for part, n in SPLITS.items():
        if name == "race":
            for level in ("middle", "high"):
                (folder / "RACE" / part / level).mkdir(parents=True)
                for i in range(n // 4 + 1):
                    record = {"article": "\n".join(texts_of(i)), "questions": [texts_of(i + k)[0] for k in (1, 2)],
                              "options": [[*texts_of(i + k), *texts_of(i + k + 7)] for k in (1, 2)],
                              "answers": ["ABCD"[i % 4], "DCBA"[i % 4]], "id": f"{level}{i}.txt"}
                    (folder / "RACE" / part / level / f"{i}.txt").write_text(json.dumps(record))
        elif name == "snli":
            (folder / "snli_1.0").mkdir(parents=True, exist_ok=True)
            rows = [{"gold_label": ("entailment", "neutral", "contradiction")[i % 3], "sentence1": texts_of(i)[0],
                     "sentence2": texts_of(i)[1]} for i in range(n)]
            (folder / "snli_1.0" / f"snli_1.0_{part}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
        else:
            (folder / "SciTailV1.1" / "tsv_format").mkdir(parents=True, exist_ok=True)
            (folder / "SciTailV1.1" / "tsv_format" / f"scitail_1.0_{part}.tsv").write_text("".join(
                "\t".join([*texts_of(i), ("entails", "neutral")[i % 2]]) + "\n" for i in range(n)))
    return str(folder)


# another form of a task's files -> (task, {} of the path of a file, header, how its rows are made of
# (number, text, text, label); a JSON object a line where there is no header but names)
_SNLI = ["gold_label", *(f"sentence{k}_{what}" for what in ("binary_parse", "parse") for k in (1, 2)), "sentence1",
         "sentence2", "captionID", "pairID", "label1"]
OTHER_FORMS = {
    "snli.txt": ("snli", "snli_1.0/snli_1.0_{}.txt", _SNLI, lambda i, a, b, y: [y, *"pppp", a, b, i, i, y]),
    "snli.tsv": ("snli", "SNLI/{}.tsv", ["index", "captionID", "pairID", "sentence1", "sentence2", "label1",
                                         "gold_label"], lambda i, a, b, y: [i, i, i, a, b, y, y]),
    "scitail.snli": ("scitail", "SciTailV1.1/snli_format/scitail_1.0_{}.txt", None,
                     lambda i, a, b, y: {"gold_label": y.replace("entails", "entailment"), "sentence1": a,
                                         "sentence2": b}),
    "scitail.predictor": ("scitail", "SciTailV1.1/predictor_format/scitail_1.0_structure_{}.jsonl", None,
                          lambda i, a, b, y: {"gold_label": y, "sentence1": a, "sentence2": b, "answer": a}),
    "scitail.dgem": ("scitail", "SciTailV1.1/dgem_format/scitail_1.0_structure_{}.tsv", [],
                     lambda i, a, b, y: [a, b, y, "p"]),
    "mrpc.txt": ("mrpc", "MRPC/msr_paraphrase_{}.txt", MRPC, lambda i, a, b, y: [y, i, i, a, b])}


def write_form(folder, form):
    """As write_task, in a form of OTHER_FORMS; or a task in its usual form. Return the task's name."""
    if form not in OTHER_FORMS:
        write_task(folder, form)
        return form
    name, path, header, row = OTHER_FORMS[form]
    labels = {"mrpc": "10", "scitail": ("entails", "neutral")}.get(name, ("entailment", "neutral", "contradiction"))
    parts = {"train": 24, "test": 7} if name == "mrpc" else SPLITS
    for part, n in parts.items():
        rows = [row(str(i), *texts_of(i), labels[i % len(labels)]) for i in range(n)]
        lines = [json.dumps(r) for r in rows] if header is None else ["\t".join(r) for r in [header, *rows] if r]
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path.format(part)).write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    if name == "mrpc":
        (folder / "MRPC" / "dev_ids.tsv").write_text("".join(f"{i}\t{i}\n" for i in range(10, 20)))
    return name
