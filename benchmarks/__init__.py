"""Side by side with peers in one process, interleaved: `python -m benchmarks.NAME`. Results are in RESULTS.md."""
