"""Studies: several configs and seeds as one question, and the report of the answer."""
