"""Prismatic, OpenVLA and OpenVLA-OFT folders."""
