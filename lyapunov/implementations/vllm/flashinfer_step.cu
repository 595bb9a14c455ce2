// A C door to FlashInfer's update of a state by one token, without torch.
//
// Macros say for what it is compiled: STATE, INPUT and SCALE are the types of the
// state, of the activations and weights, and of the scale of a row of states (void: none);
// HEAD_DIM and STATES are sizes; ROUNDS of Philox are drawn (0: to nearest).
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <cstdio>
#include <exception>
#include <limits>

// names that FlashInfer's headers read
using state_t = STATE;
using input_t = INPUT;
using weight_t = INPUT;
using matrixA_t = float;
using state_scale_t = SCALE;
using stateIndex_t = int32_t;
using cuSeqlensIndex_t = int32_t;
using numAcceptedIndex_t = int32_t;
constexpr int DIM = HEAD_DIM;
constexpr int DSTATE = STATES;
constexpr int NTOKENS_MTP = 1;
constexpr int PHILOX_ROUNDS = ROUNDS;

#include <flashinfer/mamba/selective_state_update.cuh>

// with names that can be linked to: a function of unnamed types cannot
namespace lyapunov {

struct Tensors {
  void *state, *scale, *x, *dt, *dt_bias, *A, *B, *C, *D, *out, *from, *to, *seed;
};

struct Sizes {
  // elements from one sequence, or slot, to the next
  int64_t x, dt, B, C, out, state, scale;
  int64_t batch, heads, groups, slots, nobody;
};

}  // namespace lyapunov

// 0, or what went wrong in `message`, which has `room` bytes.
extern "C" int lyapunov_flashinfer_step(const lyapunov::Tensors* tensors,
                                        const lyapunov::Sizes* sizes, void* stream, char* message,
                                        int room) {
  namespace mamba = flashinfer::mamba;
  mamba::SelectiveStateUpdateParams p;
  p.batch = sizes->batch;
  p.nheads = sizes->heads;
  p.ngroups = sizes->groups;
  p.dim = DIM;
  p.dstate = DSTATE;
  p.state_cache_size = sizes->slots;
  p.pad_slot_id = sizes->nobody;
  p.x_stride_batch = sizes->x;
  p.dt_stride_batch = sizes->dt;
  p.B_stride_batch = sizes->B;
  p.C_stride_batch = sizes->C;
  p.out_stride_batch = sizes->out;
  p.state_stride_batch = sizes->state;
  p.state_scale_stride_batch = sizes->scale;
  p.state = tensors->state;
  p.state_scale = tensors->scale;
  p.x = tensors->x;
  p.dt = tensors->dt;
  p.dt_bias = tensors->dt_bias;
  p.A = tensors->A;
  p.B = tensors->B;
  p.C = tensors->C;
  p.D = tensors->D;
  p.output = tensors->out;
  p.state_batch_indices = tensors->from;
  p.dst_state_batch_indices = tensors->to;
  p.dst_state_batch_indices_stride_batch = 1;
  p.rand_seed = static_cast<const int64_t*>(tensors->seed);
  p.dt_softplus = true;
  p.update_state = true;
  try {
    mamba::invokeSelectiveStateUpdate<input_t, weight_t, matrixA_t, state_t, stateIndex_t,
                                      state_scale_t>(p, mamba::SSUAlgorithm::kSimple,
                                                     static_cast<cudaStream_t>(stream));
  } catch (const std::exception& error) {
    std::snprintf(message, room, "%s", error.what());
    return 1;
  }
  const cudaError_t found = cudaGetLastError();
  if (found != cudaSuccess) std::snprintf(message, room, "%s", cudaGetErrorString(found));
  return found;
}
