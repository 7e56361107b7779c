# Sourced: MODEL_ARGS, the shape of the model. Each shape is stated once, in mindspeed_llm/families.
set -euo pipefail
MODEL_FLAGS=$(python -m mindspeed_llm.families "$MODEL")
mapfile -t MODEL_ARGS <<<"$MODEL_FLAGS"
