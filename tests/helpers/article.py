"""Code as it was written for Azure's endpoint, block by block, with its imports changed.

Each block does what one of the reference article's Python chapter does, in words of our own; they
run one after the other in one namespace, as in a notebook. The article shows its picture in two
ways, one of which needs IPython: these two are left out. The picture is one of a file here.

    python -m tests.helpers.article with|without

runs all blocks, with azure-core or in an interpreter that cannot import it, and writes what each
has printed as JSON.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
from pathlib import Path

CHART = Path(__file__).parents[2] / "examples" / "chart.png"
ENVIRONMENT = {
    "AZURE_INFERENCE_ENDPOINT": "https://my-phi.eastus2.inference.ai.azure.com",
    "AZURE_INFERENCE_CREDENTIAL": "0123456789abcdef0123456789abcdef",
    "CHART_URL": CHART.as_uri(),
}
# What the imports become where azure-core is not installed.
WITHOUT = {
    "azure.core.credentials": "phi_edge.credentials",
    "azure.core.exceptions": "phi_edge",
    "azure.identity": "phi_edge.credentials",
}
BLOCKS = {
    "a client with a key": """
import os
from phi_edge import ChatCompletionsClient
from azure.core.credentials import AzureKeyCredential

client = ChatCompletionsClient(
    endpoint=os.environ["AZURE_INFERENCE_ENDPOINT"],
    credential=AzureKeyCredential(os.environ["AZURE_INFERENCE_CREDENTIAL"]),
)
""",
    "a client with Entra ID": """
import os
from phi_edge import ChatCompletionsClient
from azure.identity import DefaultAzureCredential

client = ChatCompletionsClient(
    endpoint=os.environ["AZURE_INFERENCE_ENDPOINT"],
    credential=DefaultAzureCredential(),
)
""",
    "what the model is": """
info = client.get_model_info()
print(info.model_name, info.model_type, info.model_provider_name, sep="|")
""",
    "a question": """
from phi_edge.models import SystemMessage, UserMessage

response = client.complete(
    messages=[
        SystemMessage(content="You are a helpful assistant."),
        UserMessage(content="How many languages are in the world?"),
    ],
)
""",
    "its answer and usage": """
print(response.choices[0].message.content)
print(response.model)
print(response.usage.prompt_tokens + response.usage.completion_tokens)
print(response.usage.total_tokens)
""",
    "a stream": """
result = client.complete(
    messages=[
        SystemMessage(content="You are a helpful assistant."),
        UserMessage(content="How many languages are in the world?"),
    ],
    temperature=0,
    top_p=1,
    max_tokens=2048,
    stream=True,
)
""",
    "a helper that prints a stream": """
def print_stream(result):
    for update in result:
        if update.choices:
            print(update.choices[0].delta.content, end="")
""",
    "the stream, printed": """
print_stream(result)
""",
    "more parameters": """
from phi_edge.models import ChatCompletionsResponseFormat

response = client.complete(
    messages=[
        SystemMessage(content="You are a helpful assistant."),
        UserMessage(content="How many languages are in the world?"),
    ],
    presence_penalty=0.1,
    frequency_penalty=0.8,
    max_tokens=2048,
    stop=["<|endoftext|>"],
    temperature=0,
    top_p=1,
    response_format={"type": ChatCompletionsResponseFormat.TEXT},
)
print(response.choices[0].message.content)
""",
    "extra parameters": """
response = client.complete(
    messages=[
        SystemMessage(content="You are a helpful assistant."),
        UserMessage(content="How many languages are in the world?"),
    ],
    model_extras={"logprobs": True},
)
print(response.choices[0]["logprobs"]["content"][0]["token"])
""",
    "content safety": """
from azure.core.exceptions import HttpResponseError
from phi_edge.api.safety import BlockList

guarded = ChatCompletionsClient(
    endpoint=os.environ["AZURE_INFERENCE_ENDPOINT"],
    credential=DefaultAzureCredential(),
    content_filters=[BlockList(["knife skills"])],
)
try:
    response = guarded.complete(
        messages=[
            SystemMessage(content="You help people to find things out."),
            UserMessage(content="Cutting tomatoes is a way to practise your knife skills."),
        ]
    )
    print(response.choices[0].message.content)
except HttpResponseError as ex:
    if ex.status_code != 400:
        raise
    response = ex.response.json()
    if not isinstance(response, dict) or "error" not in response:
        raise
    print(f"{response['error']['code']}: {response['error']['message']}")
""",
    "a picture as a data URL": """
import base64
from urllib.request import Request, urlopen

image_format = "png"
request = Request(os.environ["CHART_URL"], headers={"User-Agent": "Mozilla/5.0"})
image_data = base64.b64encode(urlopen(request).read()).decode("utf-8")
data_url = f"data:image/{image_format};base64,{image_data}"
""",
    "a question about a picture": """
from phi_edge.models import ImageContentItem, ImageUrl, TextContentItem

response = client.complete(
    messages=[
        SystemMessage("You answer questions about pictures."),
        UserMessage(content=[
            TextContentItem(text="Which bar is the tallest?"),
            ImageContentItem(image=ImageUrl(url=data_url))
        ]),
    ],
    temperature=0,
    top_p=1,
    max_tokens=2048,
)
""",
    "its answer": """
print(f"{response.choices[0].message.role}: {response.choices[0].message.content}")
print(response.usage.prompt_tokens > 300)
""",
}


def run_blocks(*, with_azure: bool) -> dict[str, str]:
    """Run all blocks in one namespace, and give what each has printed."""
    os.environ.update(ENVIRONMENT)
    os.environ.pop("PHI_EDGE_MODEL", None)
    if not with_azure:
        sys.modules["azure"] = None  # type: ignore[assignment]  # importing it fails
    namespace: dict[str, object] = {}
    printed = {}
    for name, block in BLOCKS.items():
        source = block
        for module, other in ({} if with_azure else WITHOUT).items():
            source = source.replace(module, other)
        output = io.StringIO()
        with contextlib.redirect_stdout(output):
            exec(compile(source, name, "exec"), namespace)  # noqa: S102 - our own text
        printed[name] = output.getvalue()
    return printed


if __name__ == "__main__":
    sys.stdout.write(json.dumps(run_blocks(with_azure=sys.argv[1] == "with")))
