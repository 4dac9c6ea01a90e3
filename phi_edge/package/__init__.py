"""The package format: the one contract between the exporter and the runtime.

Needs the standard library alone. `phi_edge.package.manifest` has all of it but what a graph names
(`external_data`) and what onnxruntime-genai may be told (`genai_config`).
"""

from phi_edge.package.manifest import *  # noqa: F403 - the names of the format, by its own name
