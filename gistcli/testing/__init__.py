"""What every method has to hold, as a test suite that ships with the package.

    pytest --pyargs gistcli.testing                               every registered method
    pytest --pyargs gistcli.testing --gist-method lora            one of them
    pytest --pyargs gistcli.testing --gist-method FILE.py:Class   a method of your own

The suite is generated: a method is tested by being registered, in its default options on every kind
of backbone (`kinds.py`; networks over text are classifiers there, and language modelling is tested
with its objective), and with every other value of its flags and choices on a plain ViT. For our own
methods, what depends less on the pair is tested on fewer of them (`cases.NEEDS`). Pairs
that cannot work are refused by `attach`, before anything is trained; for our own methods
`refusals.py` holds the list of them, so that it can only shrink.

Parameters are moved away from their start before anything is compared, and beside every "the same"
stands a check that something else is not the same.

Properties of PEFT's generic suite without a counterpart here, and why: merging and unmerging in
place, several named adapters and their deletion (a tuner is attached, detached, or merged into a
new file; two tuners on one backbone are tested); conversion to LoRA by SVD (ours is exact, and
tested as such); BatchNorm buffers (a frozen network has none that train); prompts of a tokenizer
and generation (with language backbones); FSDP (later); half precision of the trained parameters
(they are float32 on every backbone).
"""
