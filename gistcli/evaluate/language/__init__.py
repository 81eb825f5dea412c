"""What language models are measured by: generated answers, ranked answers, ROUGE-L.

Nothing is imported here: the figures of texts need no network.
"""
