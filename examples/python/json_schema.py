"""An answer that is JSON and validates by a schema, whatever the model would like to say."""

import json

from phi_edge import ChatCompletionsClient
from phi_edge.models import JsonSchemaFormat, UserMessage

schema = {
    "type": "object",
    "properties": {"answer": {"type": "string", "maxLength": 20}},
    "required": ["answer"],
    "additionalProperties": False,
}

with ChatCompletionsClient() as client:
    response = client.complete(
        messages=[UserMessage(content="What is the capital of France? Answer as JSON.")],
        response_format=JsonSchemaFormat(name="answer", schema=schema, strict=True),
        max_tokens=200,
    )

print(json.loads(response.choices[0].message.content)["answer"])
