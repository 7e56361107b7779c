"""What training runs say of themselves: reading their logs, and one page of curves for several of them.

`python -m mindspeed_llm.report LOGDIR...`
"""
