"""The OpenAI SDK as it is, on a model in the same process."""

import httpx
import openai

import phi_edge
from phi_edge.api.service import ChatService
from phi_edge.transports.httpx import LocalTransport

with phi_edge.load_model() as model:
    client = openai.OpenAI(
        base_url="http://local/v1",
        api_key="none",
        http_client=httpx.Client(transport=LocalTransport(ChatService(model))),
    )
    response = client.chat.completions.create(
        model="phi-3.5-vision",
        messages=[{"role": "user", "content": "How many languages are in the world?"}],
        max_tokens=200,
    )

print(response.choices[0].message.content)
