"""Protocols of the server: openpi's websocket and OpenVLA's `/act`."""
