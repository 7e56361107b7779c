"""Four ranks say what one process says: generation of every kind, chat, benchmarks; on resident ranks."""

import numpy as np
import pytest

from tests.generation.recorded_generation import record, rows
from tests.inference.tiny_job import write_job

TP, PP = "--tensor-model-parallel-size", "--pipeline-model-parallel-size"
CASES = {
    "TP2 PP2": f"{TP} 2 {PP} 2 --sequence-parallel",
    "TP2 DP2": f"{TP} 2",
    "TP4, more ranks than query groups": f"{TP} 4",
    "PP2 DP2, uneven stages": f"{PP} 2 --num-layer-list 1,3",
}


BATCH_SIZES = (8, 3, 1, 3)    # of the benchmarks, case by case; one process takes one question at a time


@pytest.fixture(scope="module")
def results(ranks, tmp_path_factory):
    """(one process' results, {flags: four ranks' results})."""
    folder = tmp_path_factory.mktemp("parallel_inference")
    write_job(folder)

    def on(world, flags, batch_size):
        return ranks(world).run("tests.distributed.inference_cases:everything", str(folder), flags, batch_size)[0]
    return on(1, "", 1), {flags: on(4, flags, size) for flags, size in zip(CASES.values(), BATCH_SIZES, strict=True)}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("what", ["greedy", "top_k", "top_p", "beams", "chat"])
def test_generation_equals_one_process(results, case, what):
    single, several = results
    assert several[CASES[case]][what] == single[what]
    assert len(single[what]) > 1


@pytest.mark.parametrize("case", CASES)
def test_log_probs_equal_one_process(results, case):
    single, several = results
    for expected, found in zip(single["log_probs"], several[CASES[case]]["log_probs"], strict=True):
        assert len(found) > 1
        np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("case", CASES)
def test_engine_equals_one_process(results, case):
    """Requests that arrive between steps, share a beginning and lose their memory: the answers of each one alone."""
    single, several = results[0]["served"], results[1][CASES[case]]["served"]
    assert several["preempted"] > 0 and several["cached"] > 0 and several["used"] == 0
    assert [answer["ids"] for answer in several["answers"].values()] == single["alone"]
    for name, expected in single["answers"].items():
        found = several["answers"][name]
        assert (found["end"][:2], found["top"]) == (expected["end"][:2], expected["top"])
        np.testing.assert_allclose(found["log_probs"], expected["log_probs"], rtol=0, atol=2e-5)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("task", ["mmlu", "hellaswag", "gsm8k"])
def test_benchmarks_equal_one_process(results, case, task):
    """The same answers question by question, in batches of another size too."""
    single, several = results
    assert single["benchmarks"][task]
    for subject, expected in single["benchmarks"][task].items():
        found = several[CASES[case]]["benchmarks"][task][subject]
        assert found["answers"] == expected["answers"]
        if task == "gsm8k":
            assert any(text for _, text in found["answers"])
        else:  # log-probabilities of a few tokens in fp32, summed in another order
            np.testing.assert_allclose(found["log_probs"], expected["log_probs"], rtol=0, atol=1e-4)


@pytest.mark.parametrize(("tp", "pp", "prompts", "beam_prompts"), [
    (2, 2, 4, 1), *(pytest.param(tp, pp, 50, 8, marks=pytest.mark.full) for tp, pp in ((2, 1), (1, 2), (2, 2)))])
def test_answers_are_hugging_faces(ranks, glm_tokenizer, tokenizer_dir, tp, pp, prompts, beam_prompts):
    """The engine tells rank 0, a beam search every rank: those of all stages, and of a data-parallel replica."""
    found = ranks(4).run("tests.distributed.inference_cases:recorded", tp, pp, prompts, beam_prompts, tokenizer_dir)
    for name in ("greedy", "penalized"):
        assert found[0][name] == rows(name)[:prompts]
    over_http = found[0]["http"]
    assert over_http["answers"] == {
        str(number): glm_tokenizer.decode([token for token in answer if token not in record()["stop"]])
        for number, answer in enumerate(rows("greedy")[:prompts])}
    assert over_http["second"] == [over_http["right"], 64] and len(over_http["right"]) > 1
    for name in ("beams", "penalized_beams"):
        assert [one[name] for one in found] == [rows(name)[:4 * beam_prompts]] * 4
