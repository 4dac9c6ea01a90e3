"""LangChain's OpenAI integration with `phi-edge serve`."""

import os

from langchain_openai import ChatOpenAI

chat = ChatOpenAI(
    model="phi-3.5-vision",
    base_url=os.environ["AZURE_INFERENCE_ENDPOINT"] + "/v1",
    api_key=os.environ["AZURE_INFERENCE_CREDENTIAL"],
    max_tokens=200,
)
print(chat.invoke("How many languages are in the world?").content)
