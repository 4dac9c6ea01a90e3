#!/bin/sh
# The REST interface with curl.
curl --silent --fail-with-body "$AZURE_INFERENCE_ENDPOINT/chat/completions?api-version=2024-05-01-preview" \
    --header "Authorization: Bearer $AZURE_INFERENCE_CREDENTIAL" \
    --header "Content-Type: application/json" \
    --header "extra-parameters: pass-through" \
    --data '{
        "messages": [{"role": "user", "content": "How many languages are in the world?"}],
        "max_tokens": 200,
        "logprobs": true
    }'
