"""The engine: requests, KV blocks, scheduling, text and the thread that turns it all.

It knows no HTTP, and torch only in `runner.py` and `sampler.py`. Import from the modules; nothing is re-exported here,
so that importing a value type never loads torch.
"""
