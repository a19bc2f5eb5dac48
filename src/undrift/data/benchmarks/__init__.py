"""One file, one benchmark: a function from a folder to a `Benchmark`."""
