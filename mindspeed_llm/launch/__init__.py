"""Starting a job and staying with it to its end: `python -m mindspeed_llm.launch`. Runs without the framework."""
