"""`python -m phi_edge` is the command `phi-edge`."""

from __future__ import annotations

from phi_edge.cli import main

if __name__ == "__main__":
    main()
