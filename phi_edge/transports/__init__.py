"""Transports that let SDKs of the cloud services run on a model of this machine, without a socket.

`phi_edge.transports.azure` is for `azure.ai.inference`, `phi_edge.transports.httpx` for `openai`
and whatever else takes an httpx client. Each is imported by its own name, as it needs its SDK.
"""
