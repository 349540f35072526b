"""The claims of GPT-1's section 5 as experiments: many fine-tunings, a table with ranges, a picture."""
