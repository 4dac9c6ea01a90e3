"""The Azure SDK as it is, on a model in the same process."""

from azure.ai.inference import ChatCompletionsClient
from azure.ai.inference.models import UserMessage
from azure.core.credentials import AzureKeyCredential

import phi_edge
from phi_edge.api.service import ChatService
from phi_edge.transports.azure import LocalTransport

with phi_edge.load_model() as model:
    client = ChatCompletionsClient(
        endpoint="https://local",
        credential=AzureKeyCredential("none"),
        transport=LocalTransport(ChatService(model)),
    )
    response = client.complete(
        messages=[UserMessage(content="How many languages are in the world?")], max_tokens=200
    )

print(response.choices[0].message.content)
