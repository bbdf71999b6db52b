"""The lowest floor: names, errors, protocols, precision, trees, configs."""
