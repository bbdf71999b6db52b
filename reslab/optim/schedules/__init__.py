"""Learning-rate schedules: step -> factor on the peak learning rate.

A schedule's `build` takes `steps`, the length of the run, and its own options;
it returns an `optax.Schedule` that peaks at 1. Warmups are linear from 0.
"""
