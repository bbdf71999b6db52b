"""What `implementation="auto"` knows: compiled costs of kernels and of plain XLA."""

PREFERRED = {
    "add_norm": "reference",
    "depth_read": "pallas",
    "block_merge": "reference",
    "stream_mix": "reference",
}


def preferred(operation: str) -> str:
    """What an operation runs where both implementations can: it moves fewer bytes."""
    return PREFERRED[operation]
