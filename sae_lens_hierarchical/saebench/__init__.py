"""SAEBench's evals at every k of an SAE. No other package knows SAEBench."""
