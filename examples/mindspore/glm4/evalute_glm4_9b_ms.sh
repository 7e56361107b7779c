#!/usr/bin/env bash
# The documented name of evaluate_glm4_9b_ms.sh.
set -euo pipefail
exec bash "$(dirname "${BASH_SOURCE[0]}")/evaluate_glm4_9b_ms.sh" "$@"
