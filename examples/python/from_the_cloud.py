"""Code for Azure's endpoint with only its imports changed; the endpoint is never contacted."""

import logging
import os

from azure.core.credentials import AzureKeyCredential

from phi_edge import ChatCompletionsClient
from phi_edge.models import SystemMessage, UserMessage

logging.basicConfig(level=logging.INFO)  # says which package answers

client = ChatCompletionsClient(
    endpoint=os.environ.get("AZURE_INFERENCE_ENDPOINT", "https://my-phi.inference.ai.azure.com"),
    credential=AzureKeyCredential(os.environ.get("AZURE_INFERENCE_CREDENTIAL", "a key")),
)
response = client.complete(
    messages=[
        SystemMessage(content="You are a helpful assistant."),
        UserMessage(content="How many languages are in the world?"),
    ],
)
print(f"{response.choices[0].message.role}: {response.choices[0].message.content}")
print(response.usage)
