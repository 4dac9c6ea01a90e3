"""How an answer is chosen, and where it ends."""

from phi_edge import ChatCompletionsClient
from phi_edge.models import ChatCompletionsResponseFormat, UserMessage

with ChatCompletionsClient() as client:
    response = client.complete(
        messages=[UserMessage(content="How many languages are in the world?")],
        temperature=0,
        top_p=1,
        presence_penalty=0.1,
        frequency_penalty=0.8,
        max_tokens=200,
        stop=["<|endoftext|>"],
        seed=7,
        response_format={"type": ChatCompletionsResponseFormat.TEXT},
    )

print(response.choices[0].message.content)
