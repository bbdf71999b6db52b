"""Compiler options for programs over many devices."""


def compiler_options(platform: str) -> dict[str, str] | None:
    """Returns compiler options that speed up sharded models, or None.

    A TPU's compiler would pass the shards of a large weight around while it multiplies
    with them, in one piece for every device. Compiled, a step that gathers each weight
    whole takes a third of the memory (`pod_1b` with two layers on v5e:2x4: 1.8 GiB
    against 5.8), and steps and evaluations were estimated to be faster, by a sum of
    their instructions. Generating gains nothing and goes without. On 128 v5e chips and
    more it would gather small shards by adding up arrays that are zero elsewhere,
    which sends twice the bytes.

    Args:
      platform: "cpu", "gpu" or "tpu".
    """
    if platform != "tpu":
        return None
    return {
        "xla_jf_spmd_threshold_for_windowed_einsum_mib": "1000000",
        "xla_tpu_prefer_async_allgather_to_allreduce": "true",
    }
