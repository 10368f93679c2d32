"""The commands that make, convert and check data, one file each."""
