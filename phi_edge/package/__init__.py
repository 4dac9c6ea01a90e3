"""What a package is: the one contract between what writes a folder of graphs and the runtime.

`base` has what is true of any package, `manifest` the format of our own, `published`, `layouts` and
`known_graphs` those of others, `reading` reads each. `graph`, `external_data` and `protobuf` tell
what is in an ONNX file, `download` what is known of one, `genai_config` what onnxruntime-genai may
be told. All need the standard library alone.
"""

from phi_edge.package.base import *  # noqa: F403 - the names of the format, by its own name
from phi_edge.package.manifest import *  # noqa: F403
from phi_edge.package.published import *  # noqa: F403
from phi_edge.package.reading import *  # noqa: F403
