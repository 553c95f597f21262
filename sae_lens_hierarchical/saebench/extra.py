"""Imports SAEBench, an extra, or says how to install it; no other file imports it."""

# A type checker need not find it.
# pyright: reportMissingImports=false

from __future__ import annotations

try:
    import jaxtyping
    import pydantic

    # SAEBench's checks of types want a HookedTransformer, where a bridge does as well.
    jaxtyping.config.update("jaxtyping_disable", True)
    import sae_bench.evals.absorption.common as absorption_common
    import sae_bench.evals.absorption.eval_config as absorption_config
    import sae_bench.evals.absorption.eval_output as absorption_output
    import sae_bench.evals.absorption.feature_absorption as feature_absorption
    import sae_bench.evals.absorption.k_sparse_probing as k_sparse_probing
    import sae_bench.evals.absorption.main as absorption_main
    import sae_bench.evals.absorption.vocab as absorption_vocab
    import sae_bench.evals.autointerp.eval_config as autointerp_config
    import sae_bench.evals.autointerp.eval_output as autointerp_output
    import sae_bench.evals.autointerp.main as autointerp_main
    import sae_bench.evals.core.eval_config as core_config
    import sae_bench.evals.core.main as core_main
    import sae_bench.evals.scr_and_tpp.eval_config as scr_and_tpp_config
    import sae_bench.evals.scr_and_tpp.eval_output as scr_and_tpp_output
    import sae_bench.evals.scr_and_tpp.main as scr_and_tpp_main
    import sae_bench.evals.sparse_probing.eval_config as probing_config
    import sae_bench.evals.sparse_probing.eval_output as probing_output
    import sae_bench.evals.sparse_probing.main as probing_main
    import sae_bench.sae_bench_utils as sae_bench_utils
    import sae_bench.sae_bench_utils.activation_collection as activation_collection
    import sae_bench.sae_bench_utils.dataset_info as dataset_info
    import sae_bench.sae_bench_utils.general_utils as general_utils
except ImportError as error:
    raise ImportError(
        f"SAEBench cannot be imported ({error}): docs/saebench.md of "
        "sae-lens-hierarchical says how to install it"
    ) from error

__all__ = [
    "absorption_common",
    "absorption_config",
    "absorption_main",
    "absorption_output",
    "absorption_vocab",
    "activation_collection",
    "autointerp_config",
    "autointerp_main",
    "autointerp_output",
    "core_config",
    "core_main",
    "dataset_info",
    "feature_absorption",
    "general_utils",
    "k_sparse_probing",
    "probing_config",
    "probing_main",
    "probing_output",
    "pydantic",
    "sae_bench_utils",
    "scr_and_tpp_config",
    "scr_and_tpp_main",
    "scr_and_tpp_output",
]
