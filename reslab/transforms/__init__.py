"""Transforms: trained parameters rewritten for another architecture, as functions.

A file defines `build(params, fields)`: it takes the parameters of a `LanguageModel`,
out of their boxes, and the config as a flat mapping of dotted names, and returns the
new parameters and the fields that change. Nothing is changed in place.
"""
