"""Questions about generated images: a data set, a small model trained on it, and an evaluation."""
