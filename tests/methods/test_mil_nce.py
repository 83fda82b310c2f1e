SMALL = {"mil_nce": {"learner": {"dim": 16, "text_dim": 32, "words": 64}}}
