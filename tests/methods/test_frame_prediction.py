SMALL = {"frame_prediction": {"learner": {"decoder_dim": 16, "decoder_depth": 1, "critic_dim": 4}}}
