SMALL = {
    "cvrl": {"learner": {"dim": 8, "hidden": 16}},
    "cvrl, reversed": {"learner": {"dim": 8, "hidden": 16, "negatives": "reversed", "times": "independent"}},
    "cvrl, shuffled": {"learner": {"dim": 8, "hidden": 16, "negatives": "shuffled"}},
}
