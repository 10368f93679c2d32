"""What goes over the wire: openpi's websocket and OpenVLA's `/act`."""
