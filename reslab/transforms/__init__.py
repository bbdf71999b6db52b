"""Transforms: trained parameters rewritten for another architecture, as functions.

A file defines `build(variables, fields)`: it takes the variables of a `LanguageModel`
(`ModelState`, out of their boxes) and the config as a flat mapping of dotted names, and
returns the new variables and the fields that change. Nothing is changed in place.
"""
