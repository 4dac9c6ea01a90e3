"""Parameters that the Azure AI model inference API leaves to the model."""

import math

from phi_edge import ChatCompletionsClient
from phi_edge.models import UserMessage

with ChatCompletionsClient() as client:
    response = client.complete(
        messages=[UserMessage(content="How many languages are in the world?")],
        max_tokens=200,
        model_extras={"logprobs": True, "top_logprobs": 2},
    )

for entry in response.choices[0]["logprobs"]["content"]:
    print(f"{entry['token']!r}: {math.exp(entry['logprob']):.1%}")
