"""Credentials by the names that Azure's SDKs have for them, where these are not installed.

A model of this machine asks for no credential: `phi_edge.ChatCompletionsClient` takes any object
in its place, those of azure-core and azure-identity too.
"""

from __future__ import annotations

from typing_extensions import Self


class AzureKeyCredential:
    """A key, as `azure.core.credentials.AzureKeyCredential` is one; it is not used."""

    def __init__(self, key: str) -> None:
        self.key = key

    def update(self, key: str) -> None:
        """Take another key."""
        self.key = key


class DefaultAzureCredential:
    """Takes the place of `azure.identity.DefaultAzureCredential`, of `aio` too; it is not used."""

    def __init__(self, **options: object) -> None:
        self.options = options

    def close(self) -> None:
        """Do nothing: nothing is open."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *args: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *args: object) -> None:
        self.close()
