"""A check of training data before training: what a source holds, what is wrong with it, what is doubtful."""
