SMALL = {"simclr": {"learner": {"dim": 8, "hidden": 16}}}
