"""Models in the layouts of other software: LLaVA and Prismatic, read and written."""
