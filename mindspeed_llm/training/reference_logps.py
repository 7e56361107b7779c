"""What the reference model says of pairs, computed once (`--precompute-ref`) and kept in a file beside the data.

The file's name carries a key of everything that the numbers come from: the data, the reference model's weights and
shape, the tokenizer, the sequence length and the dtype. So other data or another model have another file, and a file
that is there is right. It may hold only some of the pairs, as after a kill: the others are computed then.
"""

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
from mindspore import Tensor

from mindspeed_llm.checkpoint.safetensors_io import SafetensorsFile, SafetensorsWriter
from mindspeed_llm.config.configs import Configs
from mindspeed_llm.config.errors import UserError
from mindspeed_llm.core.optimizer.gradients import global_sum
from mindspeed_llm.core.parallel_state import ParallelState
from mindspeed_llm.core.structure import model_specs
from mindspeed_llm.data.pairwise_dataset import PairedRows, PairwiseDataset
from mindspeed_llm.data.tokenizer import TOKENIZER_FILES
from mindspeed_llm.runtime.collectives import broadcast
from mindspeed_llm.runtime.memory import from_numpy
from mindspeed_llm.training.micro_batch import Sample
from mindspeed_llm.training.reference import ReferenceModel, load_reference, open_reference, reference_config

SAVE_SECONDS = 60   # of work that a kill may cost
_CHUNK = 1 << 24    # bytes

Compute = Callable[[ReferenceModel, list[list[Sample]]], list[Tensor]]
"""The model's log-probabilities `(2P,)` of each micro-batch of P pairs, on the last stage (elsewhere nothing)."""


class ReferenceLogps:
    """Log-probabilities of the answers of pairs under the reference model, which is in memory only to compute them."""

    def __init__(self, configs: Configs, state: ParallelState) -> None:
        self._configs, self._state = configs, state
        self._model: ReferenceModel | None = None

    def attach(self, datasets: list[PairwiseDataset], compute: Compute) -> None:
        """Give the rows of the data sets their `reference`, known for all rows that occur. Collective of all ranks."""
        for rows in {id(dataset.rows): dataset.rows for dataset in datasets}.values():
            parts = [dataset for dataset in datasets if dataset.rows is rows]
            used = np.unique(np.concatenate([part.used_rows() for part in parts]))
            rows.reference = self._logps(rows, used, parts[0].pair, compute)
        self._model = None

    def _logps(self, rows: PairedRows, used: np.ndarray, pair: Callable[[int], Sample], compute: Compute) -> np.ndarray:
        """fp32 `(rows, 2)`, NaN for rows that are neither used nor known."""
        state, path = self._state, None
        logps = np.full((len(rows), 2), np.nan, np.float32)
        if state.world.rank == 0:
            path = Path(f"{rows.prefix}_reference_{self._key(rows)[:16]}.safetensors")
            logps = _read(path, logps)
        # All ranks go by what the first one found: a node may have files that another lacks.
        logps = broadcast(from_numpy(logps), state.world).asnumpy().copy()
        missing = used[np.isnan(logps[used]).any(axis=1)]
        started = saved = time.monotonic()
        for done, group in self._groups(missing):
            logps[group] = self._computed([pair(int(row)) for row in group], compute)
            if path and (time.monotonic() - saved > SAVE_SECONDS or done == missing.size):
                _write(path, logps)
                saved = time.monotonic()
        if path:
            print(f"log-probabilities of the reference model: {used.size - missing.size} pairs from {path}, "
                  f"{missing.size} computed in {time.monotonic() - started:.1f} s", flush=True)
        return logps

    def _groups(self, missing: np.ndarray) -> list[tuple[int, np.ndarray]]:
        """(how many are done with it, rows) of each pass of all replicas through the pipeline.

        The rows of a group do not depend on what a killed run has computed, nor do their numbers then.
        """
        train, state = self._configs.train, self._state
        size = train.micro_batch_size * state.dp.size * 4 * state.pp.size
        return [(min(start + size, missing.size), missing[start:start + size])
                for start in range(0, missing.size, size)]

    def _computed(self, samples: list[Sample], compute: Compute) -> np.ndarray:
        """fp32 `(n, 2)` of pairs that the replicas share, on every rank."""
        self._model = self._model or load_reference(self._configs, self._state)
        state, size = self._state, self._configs.train.micro_batch_size
        batches = [list(range(start, min(start + size, len(samples)))) for start in range(0, len(samples), size)]
        mine = batches[state.dp.rank::state.dp.size]
        found = np.zeros((len(samples), 2))
        if mine:
            outputs = compute(self._model, [[samples[number] for number in batch] for batch in mine])
            if state.cp.rank == 0:
                for batch, output in zip(mine, outputs):    # none but on the last stage
                    found[batch] = output.asnumpy().reshape(2, -1).T
        return global_sum(found.reshape(-1), state.dp_cp, state.pp).reshape(-1, 2).astype(np.float32)

    def _key(self, rows: PairedRows) -> str:
        """Hexadecimal digest of what the numbers come from."""
        configs, digest = self._configs, hashlib.sha256()
        with open_reference(configs) as source:
            model = reference_config(configs, source.model_config)
            names = [spec.name for spec in model_specs(model, source.noop_layers)]
            described = {"weights": source.fingerprint(names), "model": asdict(model),
                         "noop_layers": source.noop_layers, "seq_length": configs.train.seq_length,
                         "dtype": configs.train.params_dtype}
        digest.update(json.dumps(described, sort_keys=True).encode())
        place = Path(configs.data.tokenizer_name_or_path)
        folder = place.parent if place.is_file() else place
        data = [Path(f"{part.prefix}.{end}") for part in rows.parts.values() for end in ("idx", "bin")]
        for path in (*(folder / name for name in TOKENIZER_FILES), *data):
            digest.update(f"{path.name} {path.stat().st_size if path.is_file() else None}".encode())
            if path.is_file():
                with open(path, "rb") as file:
                    while chunk := file.read(_CHUNK):
                        digest.update(chunk)
        return digest.hexdigest()


def _read(path: Path, unknown: np.ndarray) -> np.ndarray:
    """What the file holds, or `unknown` where there is none."""
    if not path.is_file():
        return unknown
    with SafetensorsFile(path) as file:
        entry = file.tensors.get("logps")
        if entry is None or entry.dtype != "F32" or entry.shape != unknown.shape:
            raise UserError(f"{path} does not hold log-probabilities of {len(unknown)} pairs: remove it")
        return file.flat("logps").reshape(unknown.shape).copy()


def _write(path: Path, logps: np.ndarray) -> None:
    with SafetensorsWriter(path, [("logps", "F32", logps.shape)]) as writer:
        writer.write(logps)
