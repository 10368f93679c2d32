"""LeRobot and openpi folders: pi0 and SmolVLA."""
