"""What a run is good for: judging it, predicting classes, embedding videos."""
