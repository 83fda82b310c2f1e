SMALL = {"tclr": {"learner": {"parts": 2, "dim": 8, "hidden": 16}}}
