"""One module a kind of side, run in a process of its own by the Python that has its packages.

Each has a class whose public methods are tasks: they take what the case gives, measure, and return
figures by name. `protocol` is what they share; it needs the standard library only.
"""
