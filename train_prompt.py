#!/usr/bin/env python
"""Learn a soft prompt on a harness task.

python train_prompt.py --model mini --task mini_topics_eng_Latn --output prompts/my.safetensors
python train_prompt.py --model bigscience/bloom-560m --task sib200_bloom_eng_Latn --preset paper --output my.safetensors
python train_prompt.py --help
"""

import sys

from lm_eval_spt.cli.train import main

if __name__ == "__main__":
    sys.exit(main())
