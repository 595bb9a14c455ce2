// vLLM's compiled prefill of Mamba-1, registered under a name of ours. Its sources
// (csrc/mamba/selective_scan_fwd.cu of vLLM 0.33.0's sdist) are compiled beside this.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>

using torch::stable::Tensor;

void selective_scan_fwd(const Tensor &, const Tensor &, const Tensor &, const Tensor &,
                        const Tensor &, const std::optional<Tensor> &,
                        const std::optional<Tensor> &, const std::optional<Tensor> &, bool,
                        const std::optional<Tensor> &, const std::optional<Tensor> &,
                        const std::optional<Tensor> &, const Tensor &, int64_t, int64_t,
                        const std::optional<Tensor> &, const std::optional<Tensor> &,
                        const std::optional<Tensor> &, const std::optional<Tensor> &,
                        const std::optional<Tensor> &);

STABLE_TORCH_LIBRARY(lyapunov_vllm, library) {
  library.def(
      "selective_scan_fwd(Tensor! u, Tensor! delta, Tensor! A, Tensor! B, Tensor! C, "
      "Tensor? D, Tensor!? z, Tensor? delta_bias, bool delta_softplus, "
      "Tensor? query_start_loc, Tensor? cache_indices, Tensor? has_initial_state, "
      "Tensor! ssm_states, int null_block_id, int block_size, Tensor? block_first, "
      "Tensor? block_last, Tensor? initial_state_idx, Tensor? cu_chunk_seqlen, "
      "Tensor? last_chunk_indices) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(lyapunov_vllm, CUDA, library) {
  library.impl("selective_scan_fwd", TORCH_BOX(&selective_scan_fwd));
}
