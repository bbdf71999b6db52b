"""Loops over layers: one segment, and runners that apply it.

A runner is a function from segments, a stream and a depth memory to the stream and the
depth memory after them, and what the layers changed. Every runner has everything that
a segment has; `refusal` of its file says what it cannot carry. A new loop (in
parallel, until a token halts) is one more file here.
"""
