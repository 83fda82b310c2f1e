SMALL = {
    "avid": {"learner": {"dim": 16, "negatives": 8, "audio_dim": 32, "audio_depth": 1, "audio_rate": 4000}},
    "avid, with agreement": {
        "learner": {
            "dim": 16, "negatives": 8, "audio_dim": 32, "audio_depth": 1, "audio_rate": 4000, "agreement": 2,
            "agreement_from": 0.0,
        },
    },
}  # fmt: skip
