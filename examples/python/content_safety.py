"""A prompt that a filter refuses."""

from phi_edge import ChatCompletionsClient, HttpResponseError
from phi_edge.api.safety import BlockList
from phi_edge.models import UserMessage

with ChatCompletionsClient(content_filters=[BlockList(["knife"])]) as client:
    try:
        client.complete(messages=[UserMessage(content="How do I sharpen a knife?")])
    except HttpResponseError as error:
        if error.status_code != 400:
            raise
        details = error.response.json()["error"]
        print(f"{details['code']}: {details['message']}")
