"""Roads over several stages: evaluate a release, the nightly chain, the demo, the benchmarks."""
