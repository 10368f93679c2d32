"""Families whose towers come inside vision-language models."""
