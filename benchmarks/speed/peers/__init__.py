"""Writes models of Phi-3.5-vision's text dimensions with random weights, for other runtimes.

Each module runs in the Python of the runtime that it writes for.
"""
