"""Who works on what: the processes of a run, and thread replicas inside one. The only home of torch.distributed."""
