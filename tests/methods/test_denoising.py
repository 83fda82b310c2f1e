SMALL = {
    "denoising": {},
    "denoising, only noise": {"learner": {"corruptions": ("noise",), "loss": "l1"}},
}
