SMALL = {
    "moco": {"learner": {"dim": 8, "hidden": 16, "queue": 10, "momentum": 0.9}},
    "moco, three clips": {"learner": {"dim": 8, "hidden": 16, "queue": 10, "clips": 3}},
}
