"""A question, its answer, and what both cost in tokens."""

from phi_edge import ChatCompletionsClient
from phi_edge.models import SystemMessage, UserMessage

with ChatCompletionsClient() as client:
    response = client.complete(
        messages=[
            SystemMessage(content="You are a helpful assistant."),
            UserMessage(content="How many languages are in the world?"),
        ],
        max_tokens=200,
    )

print(response.choices[0].message.content)
print("Prompt tokens:", response.usage.prompt_tokens)
print("Completion tokens:", response.usage.completion_tokens)
print("Total tokens:", response.usage.total_tokens)
