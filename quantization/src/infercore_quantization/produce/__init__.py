"""Quantizes a model into files that others load too, and measures what that costs in quality.

`command` and `eval_command` are the commands; `run` goes through a model layer by layer, `gptq`,
`awq` and `rounding` choose codes, `packed_writer` and `bnb_writer` lay them out as the field's
tools do.
"""
