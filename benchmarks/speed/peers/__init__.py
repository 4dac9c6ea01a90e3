"""Write models of Phi-3.5-vision's text dimensions with random weights, for other runtimes.

Each module runs in the Python of the runtime that it writes for.
"""

HIDDEN, INNER, LAYERS, HEADS, VOCABULARY = 3072, 8192, 32, 32, 32064
