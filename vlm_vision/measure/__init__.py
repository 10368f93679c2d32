"""What a trained model does: answers and their accuracy, whether it uses its images, errors of actions, contact sheets."""
