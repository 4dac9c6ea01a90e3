"""What is installed, what of it works, and what to do about the rest."""

from __future__ import annotations

import dataclasses
import os
import platform
import re
from collections.abc import Iterable, Mapping
from importlib.metadata import distributions

from phi_edge.engine.probe import ProbeResult, ProviderChoice, choose_provider, probe
from phi_edge.engine.providers import PROVIDERS
from phi_edge.engine.session import import_onnxruntime
from phi_edge.errors import ProviderError

# Distributions that hold the module `onnxruntime`. They overwrite each other's files, and
# uninstalling one takes files of the others away.
FLAVOURS = (
    *(provider.distribution for provider in PROVIDERS.values() if not provider.plugin),
    *("onnxruntime-qnn", "onnxruntime-rocm", "onnxruntime-training"),
    *("ort-nightly", "ort-nightly-gpu", "ort-nightly-directml"),
)


@dataclasses.dataclass(frozen=True)
class Diagnosis:
    """What `examine` found.

    Attributes:
        python: Version and platform.
        onnxruntime: Version that is imported; None if none is.
        installed: Distributions of the ONNX Runtime family, with their versions.
        problems: What is wrong with the installation, each with the command that mends it.
        telemetry: Whether ONNX Runtime's telemetry is on.
        providers: Provider -> what came of its probe.
        default: Provider of `provider="auto"`, and why.
    """

    python: str
    onnxruntime: str | None
    installed: Mapping[str, str]
    problems: tuple[str, ...]
    telemetry: bool
    providers: Mapping[str, ProbeResult]
    default: ProviderChoice | None

    @property
    def is_well(self) -> bool:
        """Whether the default works: the provider that the package was built for."""
        default = self.default
        return (
            default is not None
            and not default.is_fallback
            and not self.providers[default.provider].problem
        )

    def summary(self) -> dict[str, object]:
        """Give the same for a reader."""
        return {
            "python": self.python,
            "onnxruntime": self.onnxruntime or "none",
            "installed": dict(self.installed),
            "problems": "\n".join(self.problems) or "none",
            "telemetry": "on" if self.telemetry else "off",
            "providers": {
                name: result.problem or f"works; differs from NumPy by {result.max_error:.1e}"
                for name, result in self.providers.items()
            },
            "default": f"{self.default.provider}: {self.default.reason}"
            if self.default
            else "none",
        }


def examine(built_for: str = "cpu") -> Diagnosis:
    """Look at the installation, and probe every provider, for a package's `Manifest.provider`."""
    installed = _installed()
    problems = list(find_conflicts(installed))
    version, results, default = None, {}, None
    try:
        version = str(import_onnxruntime().__version__)
    except ProviderError as error:
        problems.append(str(error))
    else:
        results = {provider: probe(provider) for provider in PROVIDERS}
        default = choose_provider(built_for)
    return Diagnosis(
        python=f"{platform.python_version()} on {platform.platform()}",
        onnxruntime=version,
        installed=installed,
        problems=tuple(problems),
        telemetry=os.environ.get("ORT_DISABLE_TELEMETRY") != "1",
        providers=results,
        default=default,
    )


def _installed() -> dict[str, str]:
    found = {}
    for distribution in distributions():
        # Names are compared as PEP 503 says.
        name = re.sub(r"[-_.]+", "-", distribution.metadata["Name"] or "").lower()
        if name in FLAVOURS or name.startswith("onnxruntime-"):
            found[name] = distribution.version
    return dict(sorted(found.items()))


def find_conflicts(installed: Iterable[str]) -> Iterable[str]:
    """Say which of these distributions overwrite each other, and how to mend it."""
    for flavours in ([name for name in installed if name in FLAVOURS], _genai_flavours(installed)):
        if len(flavours) > 1:
            # The one that is not for the CPU is the one that was wanted.
            wanted = max(flavours, key=len)
            yield (
                f"{' and '.join(flavours)} overwrite each other's files: run "
                f"`pip uninstall -y {' '.join(flavours)}` and then `pip install {wanted}`"
            )


def _genai_flavours(installed: Iterable[str]) -> list[str]:
    return [name for name in installed if name.startswith("onnxruntime-genai")]
