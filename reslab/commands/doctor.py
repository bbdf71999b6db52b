"""`reslab doctor`: print versions, devices and missing extras."""

import argparse

HELP = "print versions, devices and missing extras"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""


def run(options: argparse.Namespace) -> int:
    """Prints the environment."""
    import json

    from reslab.observe.environment import environment, extras

    print(json.dumps(environment(), indent=1))
    for extra, packages in extras().items():
        missing = [name for name, version in packages.items() if version is None]
        state = f"missing {', '.join(missing)}" if missing else "complete"
        print(f"extra {extra}: {state}")
    return 0
