"""How fast packages are, beside other runtimes: `python -m benchmarks.speed --help`."""
