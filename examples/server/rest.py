"""HTTP alone: an image in a data URL, and the answer as server-sent events."""

import base64
import json
import os
from pathlib import Path

import requests

chart = Path(__file__).parents[1] / "chart.png"
data_url = "data:image/png;base64," + base64.b64encode(chart.read_bytes()).decode()
question = [
    {"type": "text", "text": "Which bar is the tallest?"},
    {"type": "image_url", "image_url": {"url": data_url}},
]

with requests.post(
    os.environ["AZURE_INFERENCE_ENDPOINT"] + "/chat/completions",
    headers={"Authorization": f"Bearer {os.environ['AZURE_INFERENCE_CREDENTIAL']}"},
    json={"messages": [{"role": "user", "content": question}], "max_tokens": 200, "stream": True},
    stream=True,
    timeout=600,
) as response:
    response.raise_for_status()
    for line in response.iter_lines():
        data = line.removeprefix(b"data: ")
        if data in (b"", b"[DONE]"):
            continue
        for choice in json.loads(data)["choices"]:
            print(choice["delta"].get("content") or "", end="", flush=True)
print()
