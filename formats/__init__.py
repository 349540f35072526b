"""The files that models live in: readers and writers that trust nothing, and the errors that say what is wrong."""
