"""Pages for people: results, runs, demo transcripts, as self-contained HTML.

page               the page of a model
results_page       result JSONs -> one page
fine_tuning_page   before and after
demo_transcript    what a model says and draws, kept on disk
steps              long jobs made of commands
scratch_arguments  what recipes/scratch.py can be told
"""

__all__ = ["demo_transcript", "fine_tuning_page", "page", "results_page", "scratch_arguments", "steps"]
