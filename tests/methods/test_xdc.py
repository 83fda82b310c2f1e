SMALL = {"xdc": {"learner": {"clusters": 2, "components": 2, "audio_dim": 32, "audio_depth": 1, "audio_rate": 4000}}}
