"""Model-server engines: how they are installed, started and sized. See `install`, `vllm` and `memory`."""
