"""Other codebases' checkpoints to Tubelet's and back: one file a format, each with what proves it."""
