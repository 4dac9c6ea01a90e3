"""The local server: the chat completions API over HTTP. Needs the extra `server`."""
