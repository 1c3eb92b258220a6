"""The tests. Nothing is asked of the Hugging Face Hub: these are set before the first import that reads them."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
