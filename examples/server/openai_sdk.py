"""The OpenAI SDK with `phi-edge serve`: its base URL ends with /v1."""

import os

import openai

client = openai.OpenAI(
    base_url=os.environ["AZURE_INFERENCE_ENDPOINT"] + "/v1",
    api_key=os.environ["AZURE_INFERENCE_CREDENTIAL"],
)
stream = client.chat.completions.create(
    model="phi-3.5-vision",
    messages=[{"role": "user", "content": "How many languages are in the world?"}],
    max_tokens=200,
    stream=True,
)
for chunk in stream:
    print(chunk.choices[0].delta.content or "", end="", flush=True)
print()
