"""A question about an image."""

from pathlib import Path

from phi_edge import ChatCompletionsClient
from phi_edge.models import ImageContentItem, ImageUrl, TextContentItem, UserMessage

chart = Path(__file__).parents[1] / "chart.png"

with ChatCompletionsClient() as client:
    response = client.complete(
        messages=[
            UserMessage(
                content=[
                    TextContentItem(text="Which bar is the tallest?"),
                    ImageContentItem(image_url=ImageUrl.load(image_file=chart, image_format="png")),
                ]
            )
        ],
        max_tokens=200,
    )

print(response.choices[0].message.content)
print("Prompt tokens:", response.usage.prompt_tokens)
