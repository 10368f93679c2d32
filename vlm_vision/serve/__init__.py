"""A server for a policy: openpi's websocket and OpenVLA's `/act`, batched across clients.

`serve.server.serve(policy, settings)` runs it; the command is `vlm-vision serve`.
"""
