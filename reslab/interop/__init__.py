"""Checkpoints of other libraries: one file a family of models, each a table.

A file holds `FAMILY`, a `Family` whose rows are read in both directions: fields of its
`config.json` against the specs of ours (`reslab.interop.base.design`), and names of
tensors against parameter paths (`reslab.interop.base.tensors`).
"""
