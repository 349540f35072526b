"""What GPT-1's section 5 says in numbers, to stand beside what is measured (Radford et al. 2018)."""

VARIANTS = ("full", "without auxiliary LM", "without pre-training", "LSTM")

# table 5: task -> percent in the order of VARIANTS; by the metrics of gpt_tasks, on the test sets of GLUE's server
TABLE_5 = {"cola": (45.4, 47.9, 18.9, 30.3), "sst2": (91.3, 92.0, 84.0, 90.5), "mrpc": (82.3, 84.9, 79.4, 83.2),
           "stsb": (82.0, 83.2, 30.9, 71.8), "qqp": (70.3, 69.8, 65.5, 68.1), "mnli": (81.8, 81.1, 75.7, 73.7),
           "qnli": (88.1, 86.9, 71.2, 81.1), "rte": (56.0, 54.4, 53.8, 54.6)}
AVERAGES = (74.7, 75.0, 59.9, 69.1)  # as printed; the last column's mean is 69.16

# figure 2, left: a transcriber's estimates from the plot, as the paper prints no numbers: task -> (0 layers, 12 layers)
FIGURE_2_LEFT = {"mnli": (72, 82), "race": (40, 60)}
