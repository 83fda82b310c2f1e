SMALL = {
    "moco_v3": {"learner": {"dim": 8, "hidden": 16, "momentum": 0.9, "temperature": 1.0}},
    "moco_v3, patches trained": {"learner": {"dim": 8, "hidden": 16, "temperature": 1.0, "freeze_patches": False}},
}
