"""LangChain's Azure AI integration with `phi-edge serve`."""

import os

from langchain_azure_ai.chat_models.inference import AzureAIChatCompletionsModel

chat = AzureAIChatCompletionsModel(
    endpoint=os.environ["AZURE_INFERENCE_ENDPOINT"],
    credential=os.environ["AZURE_INFERENCE_CREDENTIAL"],
    max_tokens=200,
)
print(chat.invoke("How many languages are in the world?").content)
