"""Table 14 of the T5 paper for its released sizes: results on the test sets (SQuAD: on validation), in percent."""

__all__ = ["PUBLISHED", "SIZES"]

SIZES = ("small", "base", "large")
# task -> metric -> the numbers of SIZES, as far as noted here
PUBLISHED = {
    "cola": {"matthews_corrcoef": (41.0, 51.1, 61.2)},
    "sst2": {"accuracy": (91.8, 95.2, 96.3)},
    "mrpc": {"f1": (89.7, 90.7, 92.4), "accuracy": (86.6, 87.5, 89.9)},
    "stsb": {"pearson_corrcoef": (85.6, 89.4, 89.9), "spearman_corrcoef": (85.0, 88.6, 89.2)},
    "qqp": {"f1": (70.0, 72.6, 73.9), "accuracy": (88.0, 89.4, 89.9)},
    "mnli": {"accuracy": (82.4, 87.1, 89.9), "mismatched_accuracy": (82.3, 86.2, 89.6)},
    "qnli": {"accuracy": (90.3, 93.7, 94.8)},
    "rte": {"accuracy": (69.9, 80.1, 87.2)},
    "wnli": {"accuracy": (69.2, 78.8, 85.6)},
    "wnli_wsc": {"accuracy": (69.2, 78.8, 85.6)},
    "squad": {"em": (79.10, 85.44), "f1": (87.24, 92.08)},
    "boolq": {"accuracy": (76.4, 81.4)},
    "cb": {"mean_3class_f1": (56.9, 86.2), "accuracy": (81.6, 94.0)},
    "copa": {"accuracy": (46.0, 71.2)},
    "multirc": {"f1": (69.3, 79.7), "exact_match": (26.3, 43.1)},
    "record": {"f1": (56.3, 75.0), "em": (55.4, 74.2)},
    "super_glue_rte": {"accuracy": (73.3, 81.5)},
    "wic": {"accuracy": (66.9, 68.3)},
    "wsc": {"accuracy": (70.5, 80.8)},
    "wmt_ende": {"bleu": (26.7, 30.9)},
    "wmt_enfr": {"bleu": (36.0, 41.2)},
    "wmt_enro": {"bleu": (26.8, 28.0)},
    "cnn_dailymail": {"rouge1": (41.12, 42.05), "rouge2": (19.56, 20.34), "rougeLsum": (38.35, 39.40)},
    "glue": {"average": (77.4, 82.7, 86.4)},
    "super_glue": {"average": (63.3, 76.2)},
}
PUBLISHED["squad_since_2022"] = PUBLISHED["squad"]
