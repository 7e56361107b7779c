"""A step of preference tuning under any parallel layout, held to the numbers of make_dpo.py."""

import json
from pathlib import Path

import numpy as np

from mindspeed_llm.config.configs import Configs
from mindspeed_llm.config.data import DataConfig
from mindspeed_llm.config.lora import LoraConfig
from mindspeed_llm.config.parallel import ParallelConfig
from mindspeed_llm.config.preference import PreferenceConfig
from mindspeed_llm.config.training import TrainConfig
from mindspeed_llm.core.gpt_model import GPTModel
from mindspeed_llm.data.pairwise_dataset import ANSWERS
from mindspeed_llm.training.micro_batch import Sample
from mindspeed_llm.training.objectives.preference import Preference
from mindspeed_llm.training.reference import ReferenceModel
from tests.golden.reference import Golden
from tests.golden.trial import Trial

CASES = ("sigmoid", "smooth", "hinge", "ipo", "simpo", "orpo", "adapters")
LONGEST = 16


class PreferenceTrial(Trial):
    """A case of dpo.npz: its loss, what it reports, its gradients."""

    def __init__(self, case: str, parallel: ParallelConfig, micro_batch: int = 1, *, pad: bool = False) -> None:
        record = Golden(Path(__file__).with_name("dpo.npz"))
        self.recorded = json.loads(str(record[f"{case}/case"]))
        settings = dict(self.recorded["settings"])
        self._preference = PreferenceConfig(
            settings.pop("loss_type"), settings.pop("beta"), settings.pop("label_smoothing", 0.0),
            **settings)
        self._pad = pad
        own = {name.removeprefix(f"{case}/"): record[name] for kind in ("grad", "weight")
               for name in record.names(f"{case}/{kind}")}
        golden = record.with_changes(record.model, **own)
        golden.lora = LoraConfig.from_dict(self.recorded["lora"]) if "lora" in self.recorded else None
        super().__init__(golden, parallel, micro_batch)

    def make_objective(self) -> Preference:
        """With the recorded reference model, if the loss has one; with adapters it is the model without them."""
        golden, virtual = self.golden, range(len(self.chunks))
        configs = Configs("pretrain", golden.model, self.parallel, train=TrainConfig(seq_length=LONGEST),
                          data=DataConfig(no_pad_to_seq_lengths=not self._pad), preference=self._preference)
        if golden.lora is not None:
            self.load()     # what the reference's passes run on
        if golden.lora is not None or not self._preference.needs_reference:
            return Preference(configs, 0, None)
        chunks = [GPTModel(golden.model, self.parallel, self.state, self.dtype, stage, trainable=False)
                  for stage in virtual]
        for chunk in chunks:
            for name, spec in chunk.parameters.specs.items():
                chunk.parameters.load(name, golden.local("reference", spec, self.state.tp.rank, self.state.tp.size))
        return Preference(configs, 0, ReferenceModel(chunks))

    def samples(self) -> list[Sample]:
        """The recorded pairs."""
        pairs = []
        for row in range(len(self.golden["ids"]) // 2):
            pair = {}
            for number, answer in zip((row, row + len(self.golden["ids"]) // 2), ANSWERS, strict=True):
                length = self.golden["lengths"][number]
                pair |= {f"{answer}_tokens": self.golden["ids"][number, :length - 1],
                         f"{answer}_labels": self.golden["labels"][number, 1:length]}
            pairs.append(pair)
        return pairs

    def measure(self) -> dict[str, float]:
        """Largest errors, as this rank sees them: of the loss and what is reported (absolute below 1, else relative),
        and of the gradients, relative to the whole tensor's L2 norm.
        """
        self.load()
        loss, metrics = self.step_means()
        expected = {"loss": self.recorded["loss"], **self.recorded["metrics"]}
        got = {"loss": loss, **metrics}
        reported = [abs(got[name] - value) / max(1.0, abs(value)) for name, value in expected.items()]
        grads = self.gradient_errors(self.take_sgd_step(), self.golden).values()
        return {"reported": float(np.max(reported)), "grad": float(np.max([*grads, 0.0]))}
