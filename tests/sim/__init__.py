"""The whole platform in one process, under a clock and a network of its own, with seeded faults.

`make sim ARGS="--seeds 100"` runs any number of seeds; a failing seed is printed and gives the same run again.
"""
