"""Tar shards, local or by URL: members, sizes, a cache."""
