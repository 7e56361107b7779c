"""Bytes by purpose: against real parameter sets, the whole model, and hand-made sums."""

import pytest

from mindspeed_llm.core.structure import model_specs
from mindspeed_llm.tasks.planner import activations
from mindspeed_llm.tasks.planner.advice import candidates
from mindspeed_llm.tasks.planner.job import ASCEND, CPU
from mindspeed_llm.tasks.planner.memory import communicators, stage_memory
from planned import GLM4_9B, TINY, job, mesh


ADAPTERS = "--lora-target-modules linear_qkv linear_fc2 --lora-r 4"


@pytest.mark.parametrize("dtype", ["", "--bf16", f"--bf16 {ADAPTERS}"])
def test_bytes_are_those_of_real_buffers(dtype, monkeypatch):
    monkeypatch.setenv("DEVICE_TARGET", "CPU")
    from mindspeed_llm.core.parameters import ParameterSet
    from mindspeed_llm.runtime import device
    device.setup()
    plan = job(TINY, f"{dtype} {mesh(tp=4, pp=2)}", 8, CPU)
    for stage in (0, 1):
        for tp_rank in range(4):
            real = ParameterSet(plan.tensors(stage), tp_rank, 4, device.dtype(plan.train.params_dtype))
            memory = stage_memory(plan, stage)
            assert memory.numel == real.numel()
            assert (memory.parameters, memory.gradients) == (
                sum(view.nbytes for view in real.buffer.views), sum(view.nbytes for view in real.grads.views))


@pytest.mark.parametrize("tp, pp", [(1, 1), (2, 1), (1, 4), (2, 4)])
@pytest.mark.parametrize("tied", ["", "--untie-embeddings-and-output-weights=false"])
def test_ranks_together_hold_the_model(tp, pp, tied):
    plan = job(TINY, f"{tied} {mesh(tp, pp)}", tp * pp)
    total, once = 0, 0
    for stage in range(pp):
        for spec in plan.tensors(stage):
            whole = 1
            for size in spec.shape:
                whole *= size
            copies = tp if spec.partition_dim is None else 1
            assert plan.local_numel(spec) * tp == whole * copies, spec.name
            total += plan.local_numel(spec) * tp // copies
    for spec in model_specs(plan.model):
        whole = 1
        for size in spec.shape:
            whole *= size
        once += whole
    doubled = 512 * 64 if tied and pp > 1 else 0  # a tied embedding is on the first and on the last stage
    assert total == once + doubled


def test_static_bytes_of_glm4_9b_on_one_node():
    memory = stage_memory(job(GLM4_9B, mesh(tp=2, pp=2), 8), 0)
    assert memory.numel == _matrices() + 20 * (2 * 4096 + 2304)  # two norms and half of the bias a layer
    assert memory.parameters == 2 * memory.numel and memory.gradients == 4 * memory.numel
    assert memory.optimizer == 12 * (memory.numel // 2)  # two replicas share masters and moments


DPO = "--stage dpo --is-pairwise-dataset --ref-model reference"


def test_a_reference_model_is_held_as_parameters_alone():
    plain, dpo = (job(TINY, f"--bf16 --micro-batch-size 2 {mesh(tp=2, pp=2)} {more}", 4) for more in ("", DPO))
    for stage in (0, 1):
        memory, trained = stage_memory(dpo, stage), stage_memory(plain, stage)
        assert memory.reference == memory.parameters == trained.parameters and trained.reference == 0
        assert (memory.gradients, memory.optimizer) == (trained.gradients, trained.optimizer)
        assert memory.static == trained.static + memory.reference
    assert dpo.tokens == 2 * plain.tokens and (dpo.rows, dpo.positions) == (1, 4 * plain.train.seq_length)
    for spared in ("--precompute-ref", "--dpo-loss-type orpo"):
        assert stage_memory(job(TINY, f"{DPO} {spared}"), 0).reference == 0
    adapters = job(TINY, f"{DPO} --lora-target-modules linear_qkv --bf16")
    assert stage_memory(adapters, 0).reference == 2 * stage_memory(job(TINY), 0).numel
    alone = job(TINY, "--stage dpo --is-pairwise-dataset --lora-target-modules linear_qkv --load base")
    assert stage_memory(alone, 0).reference == 0 and alone.compares


def test_precomputing_the_reference_is_the_first_change_proposed():
    held = job(TINY, DPO)
    first = next(candidates(held))
    assert first.flags == ("--precompute-ref",)
    assert stage_memory(held, 0).peak - stage_memory(first.job, 0).peak == stage_memory(held, 0).reference
    assert all(change.flags[0] == "--precompute-ref" for change in candidates(held))


def _matrices() -> int:
    """A stage's half of the embedding and of 20 layers' matrices, without norms and biases."""
    hidden, ffn, q_width, kv_width = 4096, 13696, 32 * 128, 2 * 2 * 128
    layer = hidden * (q_width + kv_width) + hidden * q_width + 3 * hidden * ffn
    return (151552 * hidden + 20 * layer) // 2


def test_optimizer_state_by_dtype_target_and_sharding():
    ddp = job(TINY, "--bf16", 4)
    zero = job(TINY, "--bf16 --use-distributed-optimizer", 4)
    numel = stage_memory(ddp, 0).numel
    assert stage_memory(ddp, 0).optimizer == 12 * numel
    assert stage_memory(zero, 0).optimizer == 12 * -(-numel // 4)
    assert stage_memory(job(TINY, "", 1, CPU), 0).optimizer == 8 * numel  # fp32 parameters are their own masters
    assert stage_memory(job(TINY, "", 1, ASCEND), 0).optimizer == 8 * numel


def test_a_frozen_model_has_weights_only_and_keeps_what_adapters_need():
    plan, full = (job(TINY, f"--bf16 {more} {mesh(tp=2)}", 2) for more in (ADAPTERS, ""))
    memory, qkv, hidden, ffn, layers = stage_memory(plan, 0), (8 + 2 * 2) * 8, 64, 96, 8
    trained = layers * 4 * (hidden + qkv // 2 + ffn // 2 + hidden)     # A whole and B cut, A cut and B whole
    assert memory.trained == trained and memory.gradients == 4 * trained and memory.optimizer == 12 * trained
    assert memory.numel == stage_memory(full, 0).numel + trained
    tokens = 64
    # The inputs of linear_proj and linear_fc1 go, the latter's under sequence parallelism half; two products with A come.
    assert activations.layer_kept(full) - activations.layer_kept(plan) == 2 * tokens * (hidden // 2 + hidden // 2 - 2 * 4)


def test_logits_are_kept_up_to_one_chunk():
    one, two = (job(TINY, f"--max-position-embeddings {length} --seq-length {length}", 1, CPU) for length in (4096, 8192))
    assert activations.head_kept(one) == 4 * 4096 * (2 * 64 + 512 + 3)
    assert activations.head_kept(two) == 4 * 8192 * (2 * 64 + 3)
    # Half of the logits at a time: those computed again and their gradient, beside the norm's gradient so far.
    assert activations.head_transient(two) == 4 * (2 * 4096 * 512 + 8192 * 64)


def test_two_buckets_of_reduced_gradients_lie_beside_the_buffers():
    plain, sharded = (stage_memory(job(GLM4_9B, f"{mesh(tp=2, pp=2)} {zero}", 8, CPU), 1) for zero in
                      ("--use-distributed-optimizer=false", "--use-distributed-optimizer"))
    # The output layer with what came before it; the next largest are one layer's four matrices.
    output, layer = 75776 * 4096, 2304 * 4096 + 2304 + 4096 * 2048 + 13696 * 4096 + 4096 * 6848
    assert plain.step == 4 * (output + layer)
    assert sharded.step == max(4 * (output + layer) // 2, 2 * (output + layer))


def test_layer_keeps_what_its_functions_save():
    plan = job(TINY, "", 1, CPU)
    # 64 tokens; H 64, N x D 64, 2 G x D 32, F 96: norm in/out twice, q and out, k and v, gate-up and their product.
    elements = 64 * (4 * 64 + 2 * 64 + 32 + 3 * 96)
    statistics = 64 * (2 + 8)  # two norms' reciprocal rms, one log-sum-exp per head
    assert activations.layer_kept(plan) == 4 * (elements + statistics)
    assert activations.head_kept(plan) == 4 * 64 * (2 * 64 + 512 + 3)
    assert activations.layer_kept(job(TINY, "--bf16", 1, CPU)) == 2 * elements + 4 * statistics


def test_sequence_parallelism_cuts_the_residual_stream_only():
    whole, cut = job(TINY, mesh(tp=2) + " --sequence-parallel=false", 2), job(TINY, mesh(tp=2), 2)
    assert activations.layer_kept(whole) - activations.layer_kept(cut) == 4 * 32 * (4 * 64 + 2)
    assert activations.logits_bytes(whole) == activations.logits_bytes(cut) == 4 * 64 * 256


@pytest.mark.parametrize("method, expected", [("block --recompute-num-layers 3", 5),
                                              ("uniform --recompute-num-layers 8", 0)])
def test_recompute_keeps_inputs_instead_of_layers(method, expected):
    plan = job(TINY, f"--recompute-granularity full --recompute-method {method}", 1, CPU)
    inputs = 3 if "block" in method else 1
    layers = activations.chunk_kept(plan, 0, 0) - activations.head_kept(plan)
    assert layers == expected * activations.layer_kept(plan) + inputs * plan.hidden_bytes


def test_uniform_units_of_several_layers_live_again_in_backward():
    uniform = f"{mesh(pp=2)} --recompute-granularity full --recompute-method uniform --recompute-num-layers"
    each, four = (job(TINY, f"{uniform} {count}", 2, CPU) for count in (1, 4))
    grown = activations.peak_activations(four, 0) - activations.peak_activations(each, 0)
    # Two micro-batches in flight: 2 x 4 inputs become 2 x 1; one layer that lives again becomes four.
    assert grown == 3 * activations.layer_kept(each) - 6 * each.hidden_bytes


def test_first_stage_keeps_more_micro_batches_and_more_memory():
    plan = job(TINY, mesh(pp=4), 4)
    peaks = [activations.peak_activations(plan, stage) for stage in range(3)]
    assert peaks == sorted(peaks, reverse=True)
    step = activations.chunk_kept(plan, 1, 0)
    assert peaks[0] - peaks[1] == peaks[1] - peaks[2] == step


def test_activations_grow_linearly_with_the_sequence():
    short, long = (job(TINY, f"--max-position-embeddings {length} --seq-length {length}", 1, CPU)
                   for length in (1024, 4096))
    assert activations.peak_activations(long, 0) == 4 * activations.peak_activations(short, 0)


def test_communicators_of_the_scripts():
    assert communicators(job(GLM4_9B, mesh(tp=2, pp=2), 8)) == 5            # tp, dp, pp, tp x pp, world
    assert communicators(job(GLM4_9B, mesh(tp=2, pp=2, cp=2), 16)) == 7     # and cp, dp x cp
    assert communicators(job(GLM4_9B, mesh(tp=8), 8)) == 2     # the world, which tp is, and shared K/V rows
