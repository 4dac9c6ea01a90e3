"""Chat completions as the Azure AI model inference API and OpenAI's API define them.

A request body comes in, a response body or an iterator of chunks goes out; no transport here.
"""
