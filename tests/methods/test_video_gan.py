CLIP = {"made_for": (4, 16, 16)}
SMALL = {
    "video_gan": {"learner": {"latent": 8, "width": 4}, "backbone": CLIP},
    "video_gan, smooth": {"learner": {"latent": 8, "width": 4, "smooth": 10.0, "average": 0.9}, "backbone": CLIP},
}
