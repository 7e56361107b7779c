"""mindspeed_llm: GLM4 from Hugging Face weights to a pre-trained, fine-tuned, evaluated model on MindSpore."""

__version__ = "0.1.0"
