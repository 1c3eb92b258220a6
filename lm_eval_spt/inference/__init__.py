"""Running a language model: tokens and a soft prompt in, log-likelihoods out."""
