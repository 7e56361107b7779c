#!/usr/bin/env bash
# Generate text with GLM4-9B: bash generate_glm4_9b_ms.sh --task chat
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
source "$EXAMPLE_DIR/inference_args.sh"

launch generate_glm4_9b inference.py "${INFERENCE_ARGS[@]}" --task greedy --max-new-tokens 256 "$@"
