import torch

# Two test processes on two cores would otherwise fight for them; the suite's tensors are small.
torch.set_num_threads(min(2, torch.get_num_threads()))
