"""Pure functions on arrays, each with a readable reference implementation."""
