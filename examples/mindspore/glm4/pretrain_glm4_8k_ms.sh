#!/usr/bin/env bash
# The documented name of pretrain_glm4_9b_8k_ms.sh.
set -euo pipefail
exec bash "$(dirname "${BASH_SOURCE[0]}")/pretrain_glm4_9b_8k_ms.sh" "$@"
