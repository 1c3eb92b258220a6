"""The recipe of the embedded base model: from public text to the weights in ``lm_eval_spt/mini``; see README.md."""
