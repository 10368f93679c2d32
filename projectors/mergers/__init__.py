"""Projectors that make one token of neighboring ones, in the forms of published models."""
