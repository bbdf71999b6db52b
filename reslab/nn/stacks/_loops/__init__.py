"""Loops over layers: one span, and runners that apply it.

A runner is a function from spans (or one), a stream and a depth memory to the stream
and the depth memory after them, and what the layers changed. It carries everything that
a span has, but for what `refusal` in its file names. A new loop (in parallel, or
until a token halts) is one more file here.
"""
