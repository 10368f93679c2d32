"""Every recipe as its tests run it: small data, a small run, and what the laws of recipes need to know of it."""
