SMALL = {
    "video_text_audio": {
        "learner": {
            "fine": 16, "coarse": 8, "text_dim": 32, "words": 64, "audio_dim": 32, "audio_depth": 1, "audio_rate": 4000,
        }
    }
}  # fmt: skip
