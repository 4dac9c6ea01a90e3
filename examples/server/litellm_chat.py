"""LiteLLM with `phi-edge serve`."""

import os

import litellm

response = litellm.completion(
    model="openai/phi-3.5-vision",
    api_base=os.environ["AZURE_INFERENCE_ENDPOINT"] + "/v1",
    api_key=os.environ["AZURE_INFERENCE_CREDENTIAL"],
    messages=[{"role": "user", "content": "How many languages are in the world?"}],
    max_tokens=200,
)
print(response.choices[0].message.content)
