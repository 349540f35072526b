"""The hand-made files of golden/t5_tasks, written as their data sets have them, and what the original made of them."""

import json

# our name -> (file of the golden, keys in it); mnli's sets have keys of their own there
WHERE = {**{name: ("glue", (name,)) for name in ("cola", "sst2", "mrpc", "qqp", "stsb", "qnli", "rte", "wnli", "ax")},
         "wnli_wsc": ("glue", ("wnli_simple_eval",)),
         "mnli": ("glue", ("mnli", "mnli_matched", "mnli_mismatched")),
         **{name: ("super_glue", (name,)) for name in ("boolq", "cb", "copa", "multirc", "record", "wic", "axb",
                                                         "axg")},
         "super_glue_rte": ("super_glue", ("rte",)), "wsc": ("super_glue", ("wsc_simple_train", "wsc_simple_eval")),
         "dpr": ("other_tasks", ("dpr",)), "squad": ("other_tasks", ("squad",)),
         "squad_since_2022": ("other_tasks", ("squad",)),
         "cnn_dailymail": ("other_tasks", ("cnn_dailymail",)), "wmt_ende": ("other_tasks", ("wmt_t2t_ende_v003",)),
         "wmt_enfr": ("other_tasks", ("wmt15_enfr_v003",)), "wmt_enro": ("other_tasks", ("wmt16_enro_v003",))}
DATA = {}


def golden_file(golden, name):
    if name not in DATA:
        DATA[name] = json.loads((golden / "t5_tasks" / f"{name}.json").read_text(encoding="utf-8"))
    return DATA[name]


def split_of(name, key, split):
    """The name that tasks/t5_tasks.py gives to a split of the golden."""
    split = {"validation": "valid"}.get(split, split)
    if name == "dpr" and split == "test":
        return "valid"
    return f"{split}_mismatched" if key.endswith("mismatched") else split


def write_files(golden, name, folder):
    """Write a task's files into a folder; return {split: what the original made of it, a list of outputs}."""
    file, keys = WHERE[name]
    expected = {}
    for key in keys:
        for split, data in golden_file(golden, file)[key]["files"].items():
            ours = split_of(name, key, split)
            _write(data, folder, name, ours)
            examples = data.get("examples", data.get("stories"))
            expected[ours] = [output for example in examples for output in example["outputs"]]
    return expected


def _write(data, folder, name, split):
    if "stories" in data:
        import hashlib
        lists = {"train": "all_train.txt", "valid": "all_val.txt", "test": "all_test.txt"}
        (folder / "cnn" / "stories").mkdir(parents=True, exist_ok=True)
        addresses = [f"http://web.archive.org/{story['file']}" for story in data["stories"]]
        (folder / lists[split]).write_text("".join(f"{address}\n" for address in addresses), encoding="utf-8")
        for address, story in zip(addresses, data["stories"], strict=True):
            path = folder / "cnn" / "stories" / (hashlib.sha1(address.encode()).hexdigest() + ".story")
            path.write_text(story["text"], encoding="utf-8", newline="\n")
        return
    if "files" in data:
        for file, lines in data["files"].items():
            text = lines if isinstance(lines, str) else "".join(f"{line}\n" for line in lines)
            language = file.removesuffix(".sgm").rsplit(".", 1)[1]
            path = folder / f"{split}.{language}{'.sgm' if file.endswith('.sgm') else ''}"
            path.write_text(text, encoding="utf-8", newline="\n")
        return
    path = folder / data["path"]
    path.parent.mkdir(parents=True, exist_ok=True)
    if "rows" in data:
        rows = ([data["header"]] if data["header"] else []) + data["rows"]
        text = "\ufeff" * data.get("byte_order_mark", False) + "".join("\t".join(row) + "\n" for row in rows)
        if "dev_ids" in data:
            ids = "".join("\t".join(pair) + "\n" for pair in data["dev_ids"])
            (path.parent / "dev_ids.tsv").write_text(ids, encoding="utf-8", newline="\n")
    elif "records" in data:
        text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in data["records"])
    else:
        text = data["text"] if "text" in data else json.dumps(data["json"], ensure_ascii=False)
    path.write_text(text, encoding="utf-8", newline="\n")
