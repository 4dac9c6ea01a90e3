"""An answer that is shown while it is made."""

from phi_edge import ChatCompletionsClient
from phi_edge.models import UserMessage

with ChatCompletionsClient() as client:
    stream = client.complete(
        messages=[UserMessage(content="How many languages are in the world?")],
        max_tokens=200,
        stream=True,
    )
    for update in stream:
        if update.choices:
            print(update.choices[0].delta.content or "", end="", flush=True)
        if update.usage:
            print("\nTokens:", update.usage.total_tokens)
