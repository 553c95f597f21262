"""Imports SAEBench, an extra, or says how to install it; no other file imports it."""

# A type checker need not find it.
# pyright: reportMissingImports=false

from __future__ import annotations

try:
    import jaxtyping
    import pydantic

    # SAEBench's checks of types want a HookedTransformer, where a bridge does as well.
    jaxtyping.config.update("jaxtyping_disable", True)
    import sae_bench.evals.autointerp.eval_config as autointerp_config
    import sae_bench.evals.autointerp.eval_output as autointerp_output
    import sae_bench.evals.autointerp.main as autointerp_main
    import sae_bench.evals.core.eval_config as core_config
    import sae_bench.evals.core.main as core_main
    import sae_bench.evals.sparse_probing.eval_config as probing_config
    import sae_bench.evals.sparse_probing.eval_output as probing_output
    import sae_bench.evals.sparse_probing.main as probing_main
    import sae_bench.sae_bench_utils as sae_bench_utils
    import sae_bench.sae_bench_utils.activation_collection as activation_collection
    import sae_bench.sae_bench_utils.general_utils as general_utils
except ImportError as error:
    raise ImportError(
        f"SAEBench cannot be imported ({error}): docs/saebench.md of "
        "sae-lens-hierarchical says how to install it"
    ) from error

__all__ = [
    "activation_collection",
    "autointerp_config",
    "autointerp_main",
    "autointerp_output",
    "core_config",
    "core_main",
    "general_utils",
    "probing_config",
    "probing_main",
    "probing_output",
    "pydantic",
    "sae_bench_utils",
]
