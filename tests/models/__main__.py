import sys, time, logging, warnings
import torch, transformers

warnings.filterwarnings("ignore")
transformers.logging.set_verbosity(50)
logging.disable(logging.WARNING)
torch.set_num_threads(1)
from tests.models.trials import *

for k in sys.argv[1:] or ARCHITECTURES:
    t = time.time()
    r = try_architecture(k)
    print(k, r.reason[:200] or {c: v[:150] for c, v in r.cells.items()}, round(time.time() - t, 1), flush=True)
    for c, v in r.wrong.items():
        print("   WRONG", c, v[:300], flush=True)
