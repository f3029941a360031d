"""What a test of a job with this package needs, and a demonstration of it as well: none of it is used by a run.

`tokenizer`     a tokenizer that needs no training
`checkpoints`   tiny random checkpoints of every supported family
`corpus`        a small corpus of drawn pictures
`damage`        small files of every corpus format and pictures of every kind, and random damage to them
`object_store`  an S3 server on this machine, which counts requests and can misbehave

>>> from pathlib import Path
>>> from scalselect_ray.testing import checkpoints, corpus
>>> checkpoints.llava(Path("model"))
>>> corpus.draw(Path("corpus"), 20)
"""
