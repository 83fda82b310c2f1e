SMALL = {"byol": {"learner": {"dim": 8, "hidden": 16, "momentum": 0.9}}}
