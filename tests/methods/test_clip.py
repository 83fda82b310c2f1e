"""CLIP on video: the loss is the published one, pairs are found, and what is missing takes no part."""

SMALL = {"clip": {"learner": {"dim": 16, "text_dim": 32, "text_depth": 1, "words": 64}}}
