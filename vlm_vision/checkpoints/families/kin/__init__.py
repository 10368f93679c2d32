"""Families whose towers are those of CLIP and SigLIP but for names, positions or details."""
