"""Everything that touches lm_eval: the model class, many prompts at once, what is patched, how lm_eval finds us."""
